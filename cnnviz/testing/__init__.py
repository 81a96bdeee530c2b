"""Conformance checks for techniques and metrics: what a plugin author runs, and what the built-ins pass too."""

from .metric import check_metric
from .network import SmallNet
from .suite import ConformanceError
from .technique import check_technique

__all__ = ["ConformanceError", "SmallNet", "check_metric", "check_technique"]
