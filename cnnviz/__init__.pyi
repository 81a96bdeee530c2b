"""See inside convolutional networks, and trust what you see."""

from . import data as data
from . import errors as errors
from . import incremental as incremental
from . import index as index
from . import models as models
from . import ops as ops
from . import render as render
from .errors import (
    CnnvizError,
    InputError,
    LayerError,
    ModelError,
    OptionError,
    PluginError,
    SaveError,
    TargetError,
)
from .explainer import Explainer, explain
from .explanation import Explanation, Gallery, Heatmap, Neighbours, Projection, Provenance, load
from .hookspecs import hookimpl
from .metric import Case, Measurement, Metric
from .models import Layer, Model, Preprocess, ReceptiveField, capture, layers, load_model, relu_rule
from .options import Baseline, Field, ImageOption, ImagesOption, Options, Pair, Perturbation
from .registry import techniques
from .request import Request
from .targets import channel, direction, neuron, top
from .technique import Technique
from .version import __version__

__all__ = [
    "Baseline",
    "Case",
    "CnnvizError",
    "Explainer",
    "Explanation",
    "Field",
    "Gallery",
    "Heatmap",
    "ImageOption",
    "ImagesOption",
    "InputError",
    "Layer",
    "LayerError",
    "Measurement",
    "Metric",
    "Model",
    "ModelError",
    "Neighbours",
    "OptionError",
    "Options",
    "Pair",
    "Perturbation",
    "PluginError",
    "Preprocess",
    "Projection",
    "Provenance",
    "ReceptiveField",
    "Request",
    "SaveError",
    "TargetError",
    "Technique",
    "__version__",
    "capture",
    "channel",
    "direction",
    "explain",
    "hookimpl",
    "layers",
    "load",
    "load_model",
    "neuron",
    "relu_rule",
    "techniques",
    "top",
]
