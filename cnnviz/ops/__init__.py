"""Hot-path operators: each has one schema, a PyTorch reference, a fake and a backward; native kernels join per device."""

from .crop_patches import crop_patches
from .gram_matrix import gram_matrix
from .guided_relu import guided_relu
from .occlude import occlude
from .overlay_crop import overlay_crop

__all__ = ["crop_patches", "gram_matrix", "guided_relu", "occlude", "overlay_crop"]
