"""Pictures made by a network: one optimisation engine, and the parts that techniques put together with it."""

from ..models.style_network import StyleNetwork
from .canvas import Canvas, Fourier, Pixels
from .checkpoint import Checkpoint
from .facets import clusters
from .features import by_size, features, last_size_but_one
from .optimise import optimise
from .options import Optimised, Regularised, Transformed
from .regularisers import blur, clip_gradients, clip_pixels, p_norm, total_variation
from .run import synthesise
from .style import LEAST_TILE, Style, StyleLoss, layer_shares, shares_that_fit, style_layers
from .tiles import fitting, tiled
from .train import TrainedStyle, train_style
from .training import StyleTraining
from .transforms import affine, jitter

__all__ = [
    "LEAST_TILE",
    "Canvas",
    "Checkpoint",
    "Fourier",
    "Optimised",
    "Pixels",
    "Regularised",
    "Style",
    "StyleLoss",
    "StyleNetwork",
    "StyleTraining",
    "TrainedStyle",
    "Transformed",
    "affine",
    "blur",
    "by_size",
    "clip_gradients",
    "clip_pixels",
    "clusters",
    "features",
    "fitting",
    "jitter",
    "last_size_but_one",
    "layer_shares",
    "optimise",
    "p_norm",
    "shares_that_fit",
    "style_layers",
    "synthesise",
    "tiled",
    "total_variation",
    "train_style",
]
