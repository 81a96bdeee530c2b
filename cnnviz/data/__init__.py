"""Image sources."""

from .images import MAX_PIXELS, demo_picture, find_images, open_image

__all__ = ["MAX_PIXELS", "demo_picture", "find_images", "open_image"]
