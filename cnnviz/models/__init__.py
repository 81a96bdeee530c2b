"""Models: loading them, borrowing them without changing them, and seeing inside."""

from .capture import Captured, addressable, capture, find_module, know_calls, without_wrappers
from .chains import Chains, growths_in
from .folding import Folding, Unfoldable, fold, packed
from .lender import Lender
from .model import Model
from .pools import Pools
from .preprocess import Preprocess
from .randomness import own_randomness
from .receptive_field import ReceptiveField
from .relu_rules import relu_rule
from .replica import differs_in_training, replicate, unwrap
from .sources import load_model
from .state import digest, fingerprint, known_by, named_tensors
from .survey import Layer, Survey, layers, survey, telling

__all__ = [
    "Captured",
    "Chains",
    "Folding",
    "Layer",
    "Lender",
    "Model",
    "Pools",
    "Preprocess",
    "ReceptiveField",
    "Survey",
    "Unfoldable",
    "addressable",
    "capture",
    "differs_in_training",
    "digest",
    "find_module",
    "fingerprint",
    "fold",
    "growths_in",
    "know_calls",
    "known_by",
    "layers",
    "load_model",
    "named_tensors",
    "own_randomness",
    "packed",
    "relu_rule",
    "replicate",
    "survey",
    "telling",
    "unwrap",
    "without_wrappers",
]
