"""Hot-path operators: each has one schema, a reference in PyTorch, a fake and, where named, a backward.

Where native kernels were built for a device, they take the reference's place; `status` tells which are in use.
"""

from ._native import status
from .changed_spans import changed_spans
from .conv_crops import conv_crops, conv_crops_is_native, packed_kernel
from .crop_patches import crop_patches
from .gram_matrix import gram_matrix
from .grow_texture import Guide, grow_texture
from .guided_relu import guided_relu, guided_relu_
from .max_pool import max_pool, max_pool_is_native
from .occlude import occlude
from .overlay_cat import Joined, conv_cat, overlay_cat
from .overlay_crop import Overlaid, overlay_crop
from .winograd_crops import winograd_crops, winograd_kernel

__all__ = [
    "Guide",
    "Joined",
    "Overlaid",
    "changed_spans",
    "conv_cat",
    "conv_crops",
    "conv_crops_is_native",
    "crop_patches",
    "gram_matrix",
    "grow_texture",
    "guided_relu",
    "guided_relu_",
    "max_pool",
    "max_pool_is_native",
    "occlude",
    "overlay_cat",
    "overlay_crop",
    "packed_kernel",
    "status",
    "winograd_crops",
    "winograd_kernel",
]
