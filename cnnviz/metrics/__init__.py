"""Measure how faithful, stable and well placed explanations are.

`measure` applies one metric to explanations, `evaluate` compares techniques over many images. Metrics are plugins.
"""

from ..registry import metrics as available
from .evaluate import evaluate
from .evaluation import Evaluation
from .measure import measure

__all__ = ["Evaluation", "available", "evaluate", "measure"]
