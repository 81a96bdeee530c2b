"""Image sources."""

from .images import MAX_PIXELS, open_image

__all__ = ["MAX_PIXELS", "open_image"]
