"""Image sources."""

from .images import MAX_PIXELS, demo_picture, open_image

__all__ = ["MAX_PIXELS", "demo_picture", "open_image"]
