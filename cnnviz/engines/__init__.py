"""Engines that run a network over a whole data set: here, or on a Ray cluster."""

from .build import build_index

__all__ = ["build_index"]
