"""What a technique gives back, and how it is kept."""

from .provenance import Provenance
from .saving import load
from .types import Explanation, Gallery, Heatmap, Neighbours, Projection

__all__ = ["Explanation", "Gallery", "Heatmap", "Neighbours", "Projection", "Provenance", "load"]
