"""Image sources."""

from .crops import Crop, Crops
from .images import MAX_PIXELS, demo_picture, find_images, open_image

__all__ = ["MAX_PIXELS", "Crop", "Crops", "demo_picture", "find_images", "open_image"]
