"""Image sources."""

from .dataset import Dataset, Item, open_dataset
from .images import MAX_PIXELS, demo_picture, find_images, open_image

__all__ = ["MAX_PIXELS", "Dataset", "Item", "demo_picture", "find_images", "open_dataset", "open_image"]
