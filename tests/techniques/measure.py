"""By how much two ways of computing one map may differ."""

from __future__ import annotations

from torch import Tensor


def distance(a: Tensor, b: Tensor) -> float:
    """Return max|a - b| / max|b|."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is compared with {tuple(b.shape)}"
    largest = b.double().abs().max()
    assert largest > 0, "a map of zeros tells nothing"
    return float((a.double() - b.double()).abs().max() / largest)


def assert_same_map(a: Tensor, b: Tensor) -> None:
    """Compare float64 maps."""
    assert str(a.dtype) == str(b.dtype) == "torch.float64"
    assert distance(a, b) <= 1e-9


def assert_same_single_map(a: Tensor, b: Tensor, exact: Tensor) -> None:
    """Compare float32 maps: twice as far apart at most as `b` is from its own float64 map, `exact`."""
    assert str(a.dtype) == str(b.dtype) == "torch.float32"
    assert str(exact.dtype) == "torch.float64"
    assert float((a - b).abs().max()) <= 2 * float((b.double() - exact).abs().max())
