"""Recompute only what a change inside of a window reaches."""

from . import rules  # noqa: F401  # it tells `patched` how patches go through what
from .patched import Base, Patched, Unfollowed, cropped, densified
from .plan import Step, plan
from .windows import Changes
from .work import Operations

__all__ = ["Base", "Changes", "Operations", "Patched", "Step", "Unfollowed", "cropped", "densified", "plan"]
