"""Patches carried through functions and networks give what whole maps give."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cnnviz.incremental import Base, Patched, Unfollowed, densified

Net = Callable[[Tensor], Any]


def images(
    seed: int, side: tuple[int, int], size: tuple[int, int], count: int = 5, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """An image, patches and where they lie; in the corners too."""
    draws = torch.Generator().manual_seed(seed)
    base = torch.randn(1, 4, *side, generator=draws, dtype=torch.float64).to(dtype)
    patch = torch.randn(count, 4, *size, generator=draws, dtype=torch.float64).to(dtype)
    room = torch.tensor([a - b for a, b in zip(side, size, strict=True)])
    places = (torch.rand(count, 2, generator=draws) * (room + 1)).long().clamp(max=room)
    places[0], places[1] = 0, room
    return base, patch, places


def pasted(base: Tensor, patch: Tensor, places: Tensor) -> Tensor:
    whole = base.repeat(len(patch), 1, 1, 1)
    for number, (top, left) in enumerate(places.tolist()):
        whole[number, :, top : top + patch.shape[2], left : left + patch.shape[3]] = patch[number]
    return whole


ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5}  # of a few layers, as a part of the largest number


def check(
    net: Net,
    seed: int = 0,
    side: tuple[int, int] = (24, 19),
    size: tuple[int, int] = (5, 4),
    dtype: torch.dtype = torch.float64,
    last: bool = False,
) -> Any:
    """Whatever the network returns is what it returns for whole images; returns what it returned for patches."""
    base, patch, places = images(seed, side, size, dtype=dtype)
    source = Base()
    source.channels_last = last
    with torch.no_grad():
        expected = net(pasted(base, patch, places))
        for _ in range(2):  # the second time the base is known
            made = net(Patched(base, patch, places, source))
            for one, right in zip(_each(densified(made)), _each(expected), strict=True):
                torch.testing.assert_close(one, right, rtol=0, atol=ROUNDING[dtype] * float(right.abs().max()))
    return made


def _each(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def conv(*given: Any, **more: Any) -> nn.Module:
    return nn.Conv2d(*given, **more).double()


CONVOLUTIONS = {
    "3x3": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "uneven": {"kernel_size": (5, 3), "padding": (2, 0), "stride": (1, 3)},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "sparse": {"kernel_size": 1, "stride": 3},
    "deep": {"kernel_size": 3, "padding": 1, "groups": 4},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2, "bias": False},
    "same": {"kernel_size": 5, "padding": "same"},
    "same, even": {"kernel_size": 4, "padding": "same"},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "wide": {"kernel_size": 11, "padding": 2, "stride": 4},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
}
POOLS: dict[str, Net] = {
    "max": lambda x: F.max_pool2d(x, 3, 2),
    "max, ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max, padded": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max, dilated": lambda x: F.max_pool2d(x, (2, 3), 1, 1, dilation=(1, 2)),
    "max, same size": lambda x: F.max_pool2d(x, 3, 1, 1),
    "mean": lambda x: F.avg_pool2d(x, 2),
    "mean, padded": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "mean, without padding": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "mean, ceil": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "mean, ceil, padded": lambda x: F.avg_pool2d(x, (3, 2), 2, 1, ceil_mode=True, count_include_pad=False),
    "sum": lambda x: F.avg_pool2d(x, 3, 2, divisor_override=1),
    "indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "adaptive, as it is": lambda x: F.adaptive_avg_pool2d(x, (24, 19)),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own, about its speed
@pytest.mark.parametrize("given", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
@pytest.mark.parametrize("size", [(1, 1), (5, 4), (24, 2), (24, 19)])
def test_convolutions(given: dict[str, Any], size: tuple[int, int]) -> None:
    check(conv(4, 8, **given), size=size)


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS.keys())
@pytest.mark.parametrize("size", [(1, 1), (5, 4)])
def test_pools(pool: Net, size: tuple[int, int]) -> None:
    check(pool, size=size)


NORMALISED = nn.BatchNorm2d(4).double().eval()
OVER_CHANNELS = nn.LayerNorm(4).double()
TO_MORE = nn.Linear(4, 6).double()


def in_place(x: Tensor) -> Tensor:
    y = x * 2
    F.relu(y, inplace=True)
    y += 1
    y.mul_(x)
    return y.clamp_(min=-1).sigmoid_()


def shuffled(x: Tensor) -> Tensor:
    count, _, height, width = x.size()
    return x.view(count, 2, 2, height, width).transpose(1, 2).contiguous().view(count, -1, height, width)


FUNCTIONS: dict[str, Net] = {
    "rectifiers": lambda x: F.relu6(torch.relu(x) + F.leaky_relu(x, 0.3) - x.clamp(min=-0.5)),
    "smooth": lambda x: F.gelu(F.silu(x)) + F.softplus(x).tanh() + F.elu(x, 0.7) + F.hardswish(x) + x.sigmoid(),
    "in place": in_place,
    "batch norm": NORMALISED,
    "sum of shifted": lambda x: F.max_pool2d(x, 3, 1, 1) + F.avg_pool2d(x, 5, 1, 2),
    "product": lambda x: x * F.max_pool2d(x, 3, 1, 1),
    "numbers": lambda x: 3 - (2 * x + 1) / 4,
    "per channel": lambda x: x * torch.arange(4.0, dtype=torch.float64)[:, None, None],
    "per place": lambda x: x * torch.arange(19.0, dtype=torch.float64),
    "cat": lambda x: torch.cat([x, F.avg_pool2d(x, 3, 1, 1), x], 1),
    "cat in space": lambda x: torch.cat([x, x], 2),
    "chunks": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "splits": lambda x: torch.split(x, [1, 3], 1)[1] * 2,
    "slices": lambda x: x[:, 1:3] + x[:, :2],
    "one place": lambda x: x[:, :, 3, 4],
    "shuffle": shuffled,
    "channels last": lambda x: TO_MORE(OVER_CHANNELS(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2),
    "scaled, channels last": lambda x: (x.permute(0, 2, 3, 1) * torch.arange(4.0)).permute(0, 3, 1, 2),
    "flattened": lambda x: x.flatten(1) @ torch.ones(4 * 24 * 19, 2, dtype=torch.float64),
    "mean": lambda x: x.mean((2, 3)),
    "gate": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "padded": lambda x: F.pad(x, (1, 2, 3, 0), value=0.5),
    "reflected": lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"),
    "cropped": lambda x: F.pad(x, (-1, 0, 0, -2)),
    "enlarged": lambda x: F.interpolate(x, scale_factor=2),
    "enlarged unevenly": lambda x: F.interpolate(x, size=(72, 38)),
    "enlarged, bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "by another": lambda x: F.interpolate(x, size=(30, 30)),
    "dropout": lambda x: F.dropout(x, 0.5, training=False) + torchvision.ops.stochastic_depth(x, 0.5, "row", False),
    "softmax": lambda x: x.softmax(1),
    "einsum": lambda x: torch.einsum("nchw,cd->ndhw", x, torch.eye(4, dtype=torch.float64)),
    "whole in the middle": lambda x: F.conv2d(x.softmax(1), torch.ones(2, 4, 3, 3, dtype=torch.float64)),
    "two outputs": lambda x: torch.stack([x.amax((2, 3)), (x * 2).amin((2, 3))]),
    "type": lambda x: x.to(x.dtype).float().double() if x.is_floating_point() else x,
    "written in part": lambda x: written(x.clone()),
    "into a plain tensor": lambda x: torch.zeros(5, 4, 24, 19, dtype=torch.float64).add_(x),
}


def written(x: Tensor) -> Tensor:
    x[:, 0] = 1.0
    return x


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
@pytest.mark.parametrize("size", [(1, 1), (5, 4), (24, 19)])
def test_functions(function: Net, size: tuple[int, int]) -> None:
    check(function, size=size)


FOLLOWED = (
    "rectifiers", "smooth", "in place", "batch norm", "sum of shifted", "product", "numbers", "per channel", "cat",
    "chunks", "splits", "slices", "shuffle", "channels last", "scaled, channels last", "padded", "enlarged",
    "enlarged unevenly", "dropout",
)  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_patches_stay_patches(name: str) -> None:
    made = check(FUNCTIONS[name])
    assert isinstance(made, Patched)
    assert made.whole is None
    assert made.patch.shape[-1] < made.base.shape[-1]


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if name not in ("reflected", "circular", "same, even")])
def test_convolutions_compute_no_more_than_they_must(name: str) -> None:
    """The patch behind a convolution is as large as what the largest of the patches reaches."""
    given = CONVOLUTIONS[name]
    net = conv(4, 8, **given)
    base, patch, places = images(0, (40, 40), (5, 4))
    with torch.no_grad():
        made = net(Patched(base, patch, places, Base()))
        plain = net(base)
        differs = [
            (net(pasted(base, patch[i : i + 1], places[i : i + 1])) != plain).any(1)[0] for i in range(len(patch))
        ]
    assert isinstance(made, Patched)
    heights = [int(one.any(1).sum()) for one in differs]
    widths = [int(one.any(0).sum()) for one in differs]
    assert made.patch.shape[2:] == (max(1, *heights), max(1, *widths))


@st.composite
def networks(draw: Any) -> Net:
    """Chains with branches of convolutions, pools, norms and activations."""
    torch.manual_seed(draw(st.integers(0, 999)))
    parts: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 5))):
        kernel, stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
        padding = draw(st.integers(0, kernel // 2))
        parts.append(
            draw(
                st.sampled_from(
                    [
                        nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups=draw(st.sampled_from([1, 2, 4]))),
                        nn.MaxPool2d(kernel, stride, padding, ceil_mode=draw(st.booleans())),
                        nn.AvgPool2d(kernel, stride, padding, draw(st.booleans()), draw(st.booleans())),
                        Around(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)),
                        Beside(nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU6(), nn.Conv2d(7, 4, 1)),
                        nn.Sequential(nn.BatchNorm2d(4), nn.Hardswish()),
                    ]
                )
            )
        )
    return nn.Sequential(*parts).eval()


class Beside(nn.Sequential):
    """What the first module makes is laid beside its input, for the rest."""

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self
        return nn.Sequential(*others)(torch.cat([x, first(x)], 1))


class Around(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x) + x)


@settings(max_examples=60)
@given(
    networks(),
    st.sampled_from(list(ROUNDING)),
    st.integers(0, 999),
    st.tuples(st.integers(24, 40), st.integers(24, 40)),
    st.data(),
)
def test_networks_drawn(net: nn.Module, dtype: torch.dtype, seed: int, side: tuple[int, int], data: Any) -> None:
    size = tuple(data.draw(st.integers(1, n)) for n in side)
    net = net.to(dtype)
    try:
        with torch.no_grad():
            net(torch.zeros(1, 4, *side, dtype=dtype))
    except RuntimeError:  # nothing is left of the image
        return
    check(net, seed, side, size, dtype)


def _waiting() -> dict[str, Net]:
    """Functions of what convolutions and concatenations make that were not run yet."""
    torch.manual_seed(0)
    near, far, wide = nn.Conv2d(4, 36, 3, padding=1), nn.Conv2d(4, 36, 5, padding=2), nn.Conv2d(36, 36, 3, padding=1)
    norm, each = nn.BatchNorm2d(36).eval(), nn.Conv2d(36, 36, 3, padding=1, groups=36)
    both, mixed = nn.BatchNorm2d(72).eval(), nn.Conv2d(72, 36, 1)
    for one in (norm, both):
        nn.init.normal_(one.running_mean)
        nn.init.uniform_(one.weight)

    def joined(x: Tensor) -> tuple[Tensor, Tensor]:
        a = near(x)
        made = torch.cat([a, far(x)], 1)
        return made, a.relu_()

    def summed(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = near(x), far(x)
        made = b + a
        return made, a.relu_(), b.sigmoid_()

    def taken_twice(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = torch.cat([near(x), far(x)], 1)
        return both(made), F.relu(made), made

    def in_place(x: Tensor) -> Tensor:
        made = wide(near(x))
        made += far(x)
        return F.relu(made, inplace=True)

    return {
        "the far one is waited for": lambda x: F.relu(far(x) + near(x)),
        "the near one stands first": lambda x: F.relu6(near(x) + far(x)),
        "tiles": lambda x: F.relu(wide(F.relu(near(x))) + near(x)),
        "three": lambda x: wide(near(x)) + far(x) + near(x),
        "normalised after": lambda x: norm(wide(near(x)) + near(x)),
        "normalised before": lambda x: F.relu(norm(wide(near(x))) + near(x)),
        "cut off before": lambda x: F.relu(wide(near(x))) + near(x),
        "a single channel": lambda x: wide(near(x)) + near(x)[:, :1],
        "scaled sum": lambda x: torch.add(wide(near(x)), near(x), alpha=0.5),
        "kernels for each": lambda x: F.relu(each(near(x)) + near(x)),
        "itself": lambda x: F.relu((made := wide(near(x))) + made),
        "in place": in_place,
        "side by side": lambda x: F.relu(both(torch.cat([near(x), far(x)], 1))),
        "side by side, cut off": lambda x: F.hardtanh(torch.cat([near(x), far(x)], 1), -0.3, 0.4),
        "cut off, then normalised": lambda x: both(F.relu(torch.cat([near(x), far(x)], 1))),
        "side by side, then a sum": lambda x: F.relu(mixed(both(torch.cat([near(x), far(x)], 1))) + near(x)),
        "concatenations of one": lambda x: torch.cat([torch.cat([near(x), x], 1), far(x)], 1),
        "changed behind a concatenation": joined,
        "changed behind a sum": summed,
        "taken twice": taken_twice,
    }


WAITING = _waiting()


@pytest.mark.parametrize("name", WAITING)
@pytest.mark.parametrize("size", [(1, 1), (5, 4), (24, 19)])
def test_what_waits_becomes_what_comes_next(name: str, size: tuple[int, int]) -> None:
    made = check(WAITING[name], size=size, dtype=torch.float32)
    assert all(isinstance(one, Patched) and one.whole is None for one in _each(made))


VIEWS: dict[str, Net] = {
    "narrowed": lambda x: x.narrow(1, 0, 2),
    "selected": lambda x: x.select(1, 2),
    "a diagonal": lambda x: torch.diagonal(x, dim1=2, dim2=3),
}
KERNELS = {"of a pixel": {"kernel_size": 1}, "tiled": {"padding": 1}, "for each": {"padding": 1, "groups": 36}}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [(5, 4), (24, 19)])
def test_what_waits_sees_nothing_that_is_written_later(
    view: str, kernel: str, dtype: torch.dtype, last: bool, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    before, waits = nn.Conv2d(4, 36, 3, padding=1).to(dtype), nn.Conv2d(36, 36, **{"kernel_size": 3, **KERNELS[kernel]})
    waits.to(dtype)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        seen = F.relu(before(x))
        made = waits(seen)
        VIEWS[view](seen).mul_(2)
        return made, seen

    check(function, size=size, dtype=dtype, last=last)


SCALE = torch.ones(4, 1, 1, dtype=torch.float64)


def stale(x: Tensor) -> Tensor:
    scale = SCALE.clone()
    y = x * scale
    scale.mul_(2)
    return y + x * scale


def written_data(x: Tensor) -> Tensor:
    y = x * 1
    try:
        y.data = F.relu(y)
    except Exception:  # noqa: BLE001  # as careless networks do
        y = y * 2
    return y


def through(write: Callable[[Tensor], Any], view: Callable[[Tensor], Tensor] = lambda x: x) -> Net:
    """Write to a view of a map, and return the map."""

    def function(x: Tensor) -> Tensor:
        y = x * 1
        write(view(y))
        return y + 1

    return function


def before_a_write(x: Tensor) -> Tensor:
    y = x * 1
    flat = y.flatten(1)
    y.mul_(3)
    return flat


class Scripted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * 2


CUNNING: dict[str, Net] = {
    "a channel": through(lambda v: v.mul_(3), lambda x: x[:, 0]),
    "channels": through(lambda v: v.mul_(3), lambda x: x[:, :2]),
    "flattened": through(lambda v: v.mul_(3), lambda x: x.flatten(2)),
    "narrowed": through(lambda v: v.mul_(3), lambda x: x.narrow(1, 0, 2)),
    "an image": through(lambda v: v.mul_(3), lambda x: next(iter(x))),
    "selected": through(lambda v: v.sub_(1), lambda x: x.select(1, 2)),
    "detached": through(lambda v: v.add_(1), lambda x: x.detach()),
    "contiguous": through(lambda v: v.add_(1), lambda x: x.contiguous()),
    "contiguous, its channels last": through(
        lambda v: v.add_(1), lambda x: x.contiguous(memory_format=torch.channels_last)
    ),
    "dropped out": through(lambda v: v.add_(1), lambda x: F.dropout(x, training=False)),
    "the same type": through(lambda v: v.add_(1), lambda x: x.to(x.dtype)),
    "chunks": through(lambda v: v.add_(1), lambda x: x.chunk(2, 1)[0]),
    "permuted": through(lambda v: v.add_(1), lambda x: x.permute(0, 2, 3, 1)),
    "a clone": through(lambda v: v[:, 0].add_(1), lambda x: x.clone()),
    "a clone's part": lambda x: x + written(x.clone()),
    "a view taken before": before_a_write,
    "a changed scale": stale,
    "data": written_data,
    "one more dimension": lambda x: (x * 1).unsqueeze_(0).flatten(0, 1),
    "batch norm, other arguments": lambda x: torch.batch_norm(
        x, NORMALISED.weight, NORMALISED.bias, NORMALISED.running_mean, NORMALISED.running_var, False, 0.1, 1e-5, False
    ),
    "layer norm, other arguments": lambda x: torch.layer_norm(
        x.permute(0, 2, 3, 1), (4,), OVER_CHANNELS.weight, OVER_CHANNELS.bias, 1e-5, False
    ),
    "an operator": lambda x: torch.ops.aten.relu.default(x) + torch.ops.aten.relu(x),
    "rows, channels last": lambda x: x.permute(0, 2, 3, 1) * torch.arange(24.0, dtype=torch.float64)[:, None, None],
    "enlarged a little more": lambda x: F.interpolate(x, scale_factor=3.02),
    "axis": lambda x: torch.cat((x, x), axis=1),
    "chunks by name": lambda x: torch.cat(x.chunk(chunks=2, dim=1), dim=1),
    "other by name": lambda x: torch.add(x, other=x, alpha=2) + torch.mul(input=x, other=2) - x.sub(other=1),
    "shape by name": lambda x: torch.reshape(x, shape=(len(x), -1)),
    "dims by name": lambda x: torch.permute(x, dims=(0, 2, 3, 1)),
    "input by name": lambda x: torch.relu(input=x) + F.relu(input=x),
    "dropout, other arguments": lambda x: torch.dropout(x, p=0.5, train=False),
    "half of the axes": nn.AdaptiveAvgPool2d((None, 7)),
    "statistics of the batch": lambda x: F.batch_norm(x, None, None, training=True),
    "group norm": lambda x: F.group_norm(x, 2) + F.instance_norm(x),
    "compared": lambda x: torch.where(x > 0, x, torch.zeros_like(x)) + x.masked_fill(x < 0, 1.0),
    "another precision": lambda x: x.float().double() + x.half().double(),
    "numbers of every image": lambda x: x * torch.arange(5.0, dtype=torch.float64)[:, None, None, None],
    "another image": lambda x: x + torch.ones(1, 4, 24, 19, dtype=torch.float64),
    "scripted": lambda x: scripted()(x) * 1,
}


@functools.cache
def scripted() -> Any:
    return torch.jit.script(Scripted())


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", CUNNING)
@pytest.mark.parametrize("size", [(5, 4), (24, 19)])
def test_whatever_a_network_does_is_right_or_refused(name: str, size: tuple[int, int]) -> None:
    function = CUNNING[name]
    base, patch, places = images(0, (24, 19), size)
    source = Base()
    with torch.no_grad():
        expected = function(pasted(base, patch, places))
        for _ in range(2):
            try:
                made = densified(function(Patched(base, patch.clone(), places, source)))
            except Unfollowed:
                return
            except RuntimeError:
                assert source.refused  # an interpreter stood between
                return
            torch.testing.assert_close(made, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("side", [56, 260])  # of the larger even the number of pixels is none of half precision
def test_half_precision_means_do_not_overflow(side: int) -> None:
    base = torch.full((1, 2, side + 14, side + 14), 40.0, dtype=torch.float16)
    patch, places = base[:, :, :4, :4].clone(), torch.tensor([[3, 5]])
    with torch.no_grad():
        made = F.avg_pool2d(Patched(base, patch, places, Base()), (side, side), 1)
    assert torch.equal(densified(made), F.avg_pool2d(base, (side, side), 1))


class Partly(nn.Module):
    """Begins without autocast and ends with it."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped, self.linear = nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = self.grouped(x)
            plain = self.linear(x.permute(0, 2, 3, 1))
        return x.relu() + (plain + self.linear(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def _sum_of_two(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    wide, grouped = (torch.randn(8, channels, 3, 3, generator=generator) for channels in (4, 2))
    return F.relu(F.conv2d(x, wide, padding=1) + F.conv2d(x, grouped, padding=1, groups=2), inplace=True)


def _normed(convolution: nn.Module) -> nn.Module:
    return nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 3, 1)).eval()


CAST: dict[str, Callable[[], Net]] = {
    "a sum of two kinds of convolutions": lambda: _sum_of_two,
    "a batch norm": lambda: _normed(nn.Conv2d(4, 8, 3)),
    "a batch norm behind groups": lambda: _normed(nn.Conv2d(4, 8, 3, groups=4)),
    "laid side by side": lambda: Beside(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)),
    "a part of it": Partly,
}


@pytest.mark.parametrize("name", CAST)
def test_autocast_casts_what_it_casts_in_whole_maps(name: str) -> None:
    torch.manual_seed(0)
    net = CAST[name]()
    base, patch, places = images(0, (24, 19), (5, 4), dtype=torch.float32)
    source = Base()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = net(pasted(base, patch, places))
        for _ in range(2):
            made = net(Patched(base, patch, places, source))
            assert isinstance(made, Patched)
            assert made.dtype == expected.dtype
            # The same numbers, cast likewise: sums are those of float32, in another order, and rounded to 8 bits.
            torch.testing.assert_close(densified(made), expected, rtol=0, atol=2**-7 * float(expected.abs().max()))


def test_what_is_made_anew_in_each_pass_is_not_kept_without_end() -> None:
    base, patch, places = images(0, (24, 19), (5, 4))
    source = Base()

    def passes() -> None:
        for _ in range(200):
            source.begin()
            F.relu(Patched(base, patch, places, source) * torch.ones(4, 1, 1, dtype=torch.float64))

    with torch.no_grad(), pytest.raises(Unfollowed, match="other tensors in each pass"):
        passes()


def test_a_view_is_not_written_to() -> None:
    base, patch, places = images(0, (24, 19), (5, 4))
    for function in (lambda x: x[:, :2].add_(1), lambda x: (x.chunk(2, 1), x.mul_(2))):
        with pytest.raises(Unfollowed, match="view"), torch.no_grad():
            function(Patched(base, patch, places, Base()))


def test_what_no_other_has_a_part_of_any_more_is_written_to() -> None:
    def function(x: Tensor) -> Tensor:
        y = (x * 1).contiguous()
        y.add_(1)
        part, _ = y.chunk(2, 1)
        del y, _
        return part.mul_(2)

    base, patch, places = images(0, (24, 19), (5, 4))
    with torch.no_grad():
        made = function(Patched(base, patch, places, Base()))
        assert isinstance(made, Patched)
        assert made.extent == (5, 4)
        assert torch.equal(densified(made), function(pasted(base, patch, places)))


@pytest.mark.parametrize(("share", "outermost"), [(0.0, 0.0625), (0.5, 0.0625), (0.6, 0.0)])
def test_what_changes_little_at_the_rim_goes_no_further(share: float, outermost: float) -> None:
    """A pixel of 1, blurred twice: a quarter, a half and a quarter, and of these the quarters count or do not."""
    blur = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64).reshape(1, 1, 1, 3)
    source = Base()
    source.least = share
    with torch.no_grad():
        x: Tensor = Patched(
            torch.zeros(1, 1, 1, 11).double(), torch.ones(1, 1, 1, 1).double(), torch.tensor([[0, 5]]), source
        )
        for _ in range(2):
            x = F.conv2d(x, blur, padding=(0, 1))
        made = densified(x)[0, 0, 0].tolist()
    assert made == [0.0] * 3 + [outermost, 0.25, 0.375, 0.25, outermost] + [0.0] * 3


def test_what_is_made_of_the_image_is_made_once() -> None:
    """By as many threads as there are, each with its own."""
    net = nn.Sequential(conv(4, 4, kernel_size=3), nn.ReLU(inplace=True), conv(4, 4, kernel_size=3))
    base, patch, places = images(0, (24, 19), (5, 4))
    source = Base()
    with torch.no_grad():
        first = net(Patched(base, patch, places, source))
        second = net(Patched(base, patch[:2], places[:2], source))
    assert first.base is second.base

    def work() -> None:
        check(net, seed=threading.get_ident() % 1000)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
