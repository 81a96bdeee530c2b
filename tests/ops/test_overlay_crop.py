from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnnviz import ops
from tests.reference import ops as twin

from .drawn import DEVICES, batches, corners, drawn, layouts, lies_as, sizes


@pytest.mark.parametrize("device", DEVICES)
@drawn
@given(
    data=st.data(),
    extent=st.tuples(sizes, sizes),
    size=st.tuples(sizes, sizes),
    pad=st.sampled_from([0.0, -1.5]),
    layout=layouts,
)
def test_patches_inside_and_outside(
    device: str, data: st.DataObject, extent: tuple[int, int], size: tuple[int, int], pad: float, layout: object
) -> None:
    base = data.draw(batches(device).filter(len))[:1]
    count = data.draw(st.integers(0, 4))
    patch = torch.randn(count, base.shape[1], *extent, generator=torch.Generator().manual_seed(2)).to(base)
    patch = layout(patch)  # type: ignore[operator]
    patch_yx, crop_yx = corners(data, count), corners(data, count)
    made = ops.overlay_crop(base, patch, patch_yx, crop_yx, size, pad=pad)
    assert torch.equal(made, twin.overlay_crop(base, patch, patch_yx, crop_yx, size, pad=pad))
    assert lies_as(made, base)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_maps_as_layers_have_them(device: str, channels_last: bool) -> None:
    """Rows long enough to be copied in several pieces, each patch in the middle of its crop."""
    generator = torch.Generator().manual_seed(3)
    base, patch = torch.randn(1, 40, 28, 28, generator=generator), torch.randn(9, 40, 12, 13, generator=generator)
    if channels_last:
        base, patch = (x.contiguous(memory_format=torch.channels_last) for x in (base, patch))
    patch_yx = torch.randint(-3, 20, (9, 2), generator=generator)
    made = ops.overlay_crop(base.to(device), patch.to(device), patch_yx, patch_yx - 2, (17, 18), pad=2.0)
    assert torch.equal(made.cpu(), twin.overlay_crop(base, patch, patch_yx, patch_yx - 2, (17, 18), pad=2.0))
