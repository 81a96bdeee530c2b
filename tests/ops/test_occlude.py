from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnnviz import ops
from tests.reference import ops as twin

from .drawn import DEVICES, batches, drawn


@pytest.mark.parametrize("device", DEVICES)
@drawn
@given(data=st.data(), channels_last=st.booleans())
def test_windows_anywhere(device: str, data: st.DataObject, channels_last: bool) -> None:
    images = data.draw(batches(device))
    count, channels, height, width = images.shape
    windows = []
    for _ in range(data.draw(st.integers(0, 4)) if count else 0):
        top, bottom = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
        left, right = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
        windows.append([data.draw(st.integers(0, count - 1)), top, bottom, left, right])
    boxes = torch.tensor(windows, dtype=torch.long).reshape(-1, 5)
    shape = [data.draw(st.sampled_from([1, length])) for length in (channels, height, width)]
    baseline = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(images)
    made = ops.occlude(images, boxes, baseline, channels_last=channels_last)
    assert torch.equal(made, twin.occlude(images, boxes, baseline))
    assert made.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("device", DEVICES)
def test_writes_its_batch_once(device: str) -> None:
    """No intermediate of the batch's size: the only large memory taken is the result's."""
    from torch.profiler import ProfilerActivity, profile

    images, baseline = torch.rand(1, 3, 128, 128, device=device), torch.zeros(3, 1, 1, device=device)
    windows = torch.tensor([[0, y, y + 32, 0, 32] for y in range(0, 96, 2)])
    batch = len(windows) * images.numel() * 4
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities, profile_memory=True) as seen:
        made = ops.occlude(images, windows, baseline)
    taken = [
        size
        for event in seen.events()
        if event.cpu_parent is None and (size := event.cpu_memory_usage + event.device_memory_usage) > 0
    ]
    assert made.numel() * 4 == batch
    assert sum(taken) <= 1.01 * batch


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_more_elements_than_32_bits_count(device: str) -> None:
    images, count = torch.ones(1, 1, 1024, 1024, dtype=torch.float16, device=device), 2049
    windows = torch.tensor([[0, k % 1000, k % 1000 + 8, 0, 16] for k in range(count)])
    made = ops.occlude(images, windows, torch.zeros(1, 1, 1, dtype=torch.float16, device=device))
    assert made.numel() > 2**31
    assert sum(int(part.count_nonzero()) for part in made.split(128)) == count * (2**20 - 128)
    assert not made[-1, 0, 48:56, :16].any()
