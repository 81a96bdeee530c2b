from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnnviz import ops
from tests.reference import ops as twin

from .drawn import DEVICES, DTYPES, batches, drawn

RULES = ["plain", "deconvnet", "guided"]


@pytest.mark.parametrize("device", DEVICES)
@drawn
@given(data=st.data(), rule=st.sampled_from(RULES), seed=st.integers(0, 99))
def test_forward_and_backward(device: str, data: st.DataObject, rule: Any, seed: int) -> None:
    x = data.draw(batches(device)).detach().requires_grad_()
    made = ops.guided_relu(x, rule)
    assert torch.equal(made, torch.relu(x))
    arriving = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    (gradient,) = torch.autograd.grad(made, x, arriving)
    assert torch.equal(gradient, twin.guided_relu_gradient(x.detach(), arriving, rule))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_passes_as_in_clamp(dtype: torch.dtype, rule: Any, device: str) -> None:
    special = [float("nan"), float("-nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-7, -1e-7, 1.0, -1.0]
    x = torch.tensor(special * 7, dtype=dtype, device=device)
    made = ops.guided_relu(x, rule)
    torch.testing.assert_close(made, x.clamp(min=0), rtol=0, atol=0, equal_nan=True)
    arriving = x.roll(3)
    gradient = torch.ops.cnnviz.guided_relu_backward(arriving, made, rule)
    passed = arriving if rule == "plain" else arriving.clamp(min=0)
    expected = passed if rule == "deconvnet" else passed.masked_fill(made <= 0, 0)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 0, 2), (1, 2, 3, 4, 5)])
def test_any_number_of_dimensions(shape: Any, device: str) -> None:
    x = torch.randn(shape, device=device)
    assert torch.equal(ops.guided_relu(x), x.relu())


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_more_elements_than_32_bits_count(device: str) -> None:
    x = torch.zeros(2**31 + 40, dtype=torch.bfloat16, device=device)
    x[-3:] = torch.tensor([-1, 2, 3])
    x[0] = 4
    made = ops.guided_relu(x)
    assert made[-3:].tolist() == [0, 2, 3]
    assert sum(int(part.count_nonzero()) for part in made.split(2**28)) == 3


@pytest.mark.parametrize("rule", RULES)
def test_in_place_gives_the_same(rule: Any) -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    given = 2 * x
    made = ops.guided_relu_(given, rule)
    assert made is given
    expected = ops.guided_relu(2 * x, rule)
    assert torch.equal(made, expected)
    back = torch.randn_like(made)
    (mine,), (theirs,) = torch.autograd.grad(made, x, back), torch.autograd.grad(expected, x, back)
    assert torch.equal(mine, theirs)
    with torch.no_grad():
        assert torch.equal(ops.guided_relu_(x.detach().clone(), rule), x.relu())
