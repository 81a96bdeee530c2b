"""Batch norms that join convolutions while a network runs: the same numbers, whatever the network does between."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrizations import spectral_norm

import cnnviz
from cnnviz.data import demo_picture
from cnnviz.models import Folding, Unfoldable, fold
from cnnviz.models.convolution import _of_tiles
from cnnviz.ops import conv_crops_is_native, packed_kernel
from cnnviz.ops._layout import memory_format
from tests.techniques.networks import images, network


def lively(conv: nn.Conv2d, **given: bool) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    norm = nn.BatchNorm2d(conv.out_channels, **given)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        if tensor is not None:
            nn.init.normal_(tensor)
    if norm.running_var is not None:
        nn.init.uniform_(norm.running_var, 0.1, 3)
    return conv.eval(), norm.eval()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


def run(network: Callable[[Tensor], Tensor], x: Tensor, *modules: nn.Module) -> tuple[Tensor, int]:
    """Return what a network makes within a folding of modules of it, and how many batch norms joined."""
    folding = Folding(nn.ModuleList(modules))
    with torch.no_grad(), folding:
        made = network(x)
    return made, joined(folding)


def joined(folding: Folding) -> int:
    return sum(bool(norm) for _, (_, norm), _ in folding._kernels.values())


def by_our_own(folding: Folding) -> int:
    """Return how many convolutions kernels of our own ran."""
    return sum(pack in (packed_kernel, _of_tiles) for (pack, *_), _, _ in folding._kernels.values())


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "no bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "padded, wide steps": lambda: nn.Conv2d(4, 6, (3, 5), (2, 1), (1, 2), (1, 2)),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "mirrored": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    # Those whose kernels are our own where maps are channels last
    "wide": lambda: nn.Conv2d(64, 40, 3, padding=1),
    "wide, to one channel": lambda: nn.Conv2d(64, 1, 3, padding=1, bias=False),
    "wide, one way": lambda: nn.Conv2d(300, 6, 1),
    "wide, padded, wide steps": lambda: nn.Conv2d(64, 6, (3, 5), (2, 1), (1, 2), (1, 2)),
    "wide, mirrored": lambda: nn.Conv2d(64, 40, 3, padding=1, padding_mode="reflect"),
    "wide, grouped": lambda: nn.Conv2d(64, 40, 3, groups=2),
}


@LAYOUTS
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_pair_is_torchs_own_fused_one(kind: str, affine: bool, layout: torch.memory_format) -> None:
    conv, norm = lively(CONVOLUTIONS[kind](), affine=affine)
    x = torch.randn(2, conv.in_channels, 9, 11).contiguous(memory_format=layout)
    made, folded = run(lambda x: norm(conv(x)), x, conv)
    assert type(made) is Tensor
    assert folded == (kind != "same")  # its padding is spelt in words, and it is run at once
    with torch.no_grad():
        torch.testing.assert_close(made, norm(conv(x)))
        if affine:  # torch's needs the weights
            torch.testing.assert_close(made, fuse_conv_bn_eval(conv, norm)(x))
            given = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            weight, bias = fold(*given, eps=norm.eps)
            fused = fuse_conv_bn_eval(conv, norm)
            torch.testing.assert_close(weight, fused.weight)
            torch.testing.assert_close(bias, fused.bias)


@LAYOUTS
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_alone_is_torchs(kind: str, layout: torch.memory_format) -> None:
    conv = CONVOLUTIONS[kind]().eval()
    x = torch.randn(2, conv.in_channels, 9, 11).contiguous(memory_format=layout)
    folding = Folding(conv)
    with torch.no_grad():
        with folding:
            made, none = conv(x) * 1, conv(x[:0]) * 1
        torch.testing.assert_close(made, conv(x))
        assert none.shape == conv(x[:0]).shape
    assert joined(folding) == 0
    wide = kind.startswith("wide") and kind != "wide, grouped"
    assert by_our_own(folding) == (wide and layout == torch.channels_last and conv_crops_is_native())


@pytest.mark.skipif(not conv_crops_is_native(), reason="there are no kernels of our own")
def test_of_two_in_a_row_both_are_our_own() -> None:
    net = nn.Sequential(nn.Conv2d(300, 40, 1), nn.Conv2d(40, 40, 3), nn.BatchNorm2d(40)).eval()
    x = torch.randn(2, 300, 9, 11).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        with Folding(net) as folding:
            made = net(x)
        torch.testing.assert_close(made, net(x))
    assert (by_our_own(folding), joined(folding)) == (2, 1)


@pytest.mark.parametrize(("channels", "side"), [(512, 3), (64, 3), (1024, 1), (300, 5)])
def test_wide_kernels_err_as_far_as_torch_with_channels_first(channels: int, side: int) -> None:
    net = nn.Sequential(
        *(part for _ in range(3) for part in (nn.Conv2d(channels, channels, side, padding=side // 2), nn.ReLU()))
    ).eval()
    x = torch.randn(4, channels, 10, 10).relu()
    folding = Folding(net)
    native = conv_crops_is_native()
    assert folding.helps == (native or side == 1 or channels == 64)
    if not native:
        pytest.skip("there are no kernels of our own")
    with torch.no_grad():
        plain = net(x)
        with folding:
            made = net(x.contiguous(memory_format=torch.channels_last))
        exact = copy.deepcopy(net).double()(x.double())
    packed = sum(made[0].nbytes for _, _, made in folding._kernels.values())
    assert folding.size == packed, "the weights of all of them"
    errors = [float((one - exact).square().mean().sqrt()) for one in (made, plain)]
    assert errors[0] <= 1.8 * errors[1]


@LAYOUTS
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "efficientnet_b0"])
def test_networks_err_as_far_as_without_it(name: str, layout: torch.memory_format) -> None:
    net, x = network(name, torch.float32), images(torch.float32, count=4)
    if layout == torch.channels_last and not Folding(net).helps:
        pytest.skip("PyTorch itself errs farther in this layout")
    made, folded = run(net, x.contiguous(memory_format=layout), net)
    with torch.no_grad():
        precise = network(name, torch.float64)(x.double())
        own = float((net(x) - precise).abs().max())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert folded == (59 if name == "densenet121" else norms), "DenseNet's others come before their convolutions"
    assert float((made - precise).abs().max()) <= 2 * own


def between(what: Callable[[Tensor], Tensor]) -> Callable[[nn.Conv2d, nn.BatchNorm2d, Tensor], Tensor]:
    return lambda conv, norm, x: norm(what(conv(x)))


def used_twice(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    found = conv(x)
    return norm(found) + found * 2


def used_before(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    found = conv(x)
    return found.mean() + norm(found)


def written_to(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    found = conv(x)
    found.mul_(2)
    found[:, 0] = 1
    return norm(found) + found


def seen_by_a_hook(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = conv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    made = norm(conv(x))
    handle.remove()
    return made + seen[0].detach().numpy().sum()


def of_the_batch(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return functional.batch_norm(conv(x), None, None, norm.weight, norm.bias, training=True)


def under_another(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return torch.ops.aten.relu(conv(x)) + torch.func.vmap(torch.relu)(conv(x))


def with_gradients_after(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    found = conv(x)
    with torch.enable_grad():
        made = norm(found)
        assert made.requires_grad, "of the batch norm's weights"
        assert not (found * 2).requires_grad
    return made.detach()


def in_half_precision(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(x)
    assert found.dtype == torch.bfloat16
    return norm(found.float())


def asked_for_its_shape(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    found = conv(x)
    assert found.shape == (2, 6, 9, 11)
    assert (found.dim(), found.size(1), len(found), found.dtype, found.device) == (4, 6, 2, x.dtype, x.device)
    assert found.is_contiguous(memory_format=memory_format(x))
    return norm(found)


@pytest.mark.parametrize(
    "way",
    [
        between(torch.relu),
        between(lambda x: x.detach()),
        between(lambda x: x.clone().add_(1)),
        between(lambda x: torch.cat([x, x])),
        used_twice,
        used_before,
        written_to,
        seen_by_a_hook,
        of_the_batch,
        under_another,
        with_gradients_after,
        in_half_precision,
        asked_for_its_shape,
    ],
)
@pytest.mark.parametrize("channels", [4, 64])
def test_whatever_comes_between(way: Callable[[nn.Conv2d, nn.BatchNorm2d, Tensor], Tensor], channels: int) -> None:
    conv, norm = lively(nn.Conv2d(channels, 6, 3, padding=1))
    x = torch.randn(2, channels, 9, 11)
    if channels == 64:  # by a kernel of our own
        x = x.contiguous(memory_format=torch.channels_last)
    made, _ = run(lambda x: way(conv, norm, x), x, conv)
    with torch.no_grad():
        torch.testing.assert_close(made, way(conv, norm, x))


def test_a_change_of_what_the_convolution_took_is_noticed() -> None:
    conv, norm = lively(nn.Conv2d(4, 6, 3))

    def spoilt(x: Tensor) -> Tensor:
        found = conv(x)
        x.zero_()
        return norm(found)

    with pytest.raises(Unfoldable):
        run(spoilt, torch.randn(1, 4, 8, 8), conv)


def test_kernels_follow_the_weights() -> None:
    conv, norm = lively(nn.Conv2d(4, 6, 3))
    x, folding, kernels = torch.randn(1, 4, 8, 8), Folding(conv), []

    def replace() -> None:
        conv.weight.data = torch.randn(6, 4, 3, 3)  # which torch counts as no change

    with torch.no_grad():
        for change in (lambda: None, lambda: conv.weight.mul_(2), lambda: norm.running_var.add_(1), replace):
            change()
            with folding:
                made = norm(conv(x))
            torch.testing.assert_close(made, norm(conv(x)))
            kernels.append(folding._kernels[conv][2][0])
        with folding:
            norm(conv(x))
    assert len({id(one) for one in kernels}) == 4
    assert folding._kernels[conv][2][0] is kernels[-1]


def test_weights_that_are_computed_anew_are_not_piled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, norm = lively(spectral_norm(nn.Conv2d(4, 6, 3)))
    made, kernel = [], Folding.kernel

    def watched(self: Folding, *given: Any) -> tuple[Tensor, Tensor]:
        found = kernel(self, *given)
        made.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(Folding, "kernel", watched)
    x, folding = torch.randn(1, 4, 8, 8), Folding(conv)
    with torch.no_grad():
        for _ in range(4):
            with folding:
                folded = norm(conv(x))
            torch.testing.assert_close(folded, norm(conv(x)))
    assert [one() is None for one in made] == [True, True, True, False]


def test_training_and_gradients_are_left_alone() -> None:
    conv, norm = lively(nn.Conv2d(4, 6, 3))
    x = torch.randn(2, 4, 8, 8)
    with Folding(conv) as folding:
        norm(conv(x)).sum().backward()
    assert joined(folding) == 0
    assert conv.weight.grad is not None
    norm.train()
    before = norm.running_mean.clone()
    assert run(lambda x: norm(conv(x)), x, conv)[1] == 0
    assert not torch.equal(norm.running_mean, before), "statistics are kept as ever"


def test_errors_are_torchs_own() -> None:
    conv, norm = lively(nn.Conv2d(4, 6, 3))
    with pytest.raises(RuntimeError, match=r"expected input.* to have 4 channels, but got 3 channels instead"):
        run(lambda x: norm(conv(x)), torch.randn(1, 3, 8, 8), conv)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        run(lambda x: norm(conv(x)), torch.randn(1, 4, 2, 2), conv)


class Doubling(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as torch calls it
        return 2 * super().forward(input)


class Shifting(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002  # as above
        return super()._conv_forward(input, weight, bias) + 1


@pytest.mark.parametrize("kind", [Doubling, Shifting])
def test_convolutions_that_do_something_else_are_left_alone(kind: type[nn.Conv2d]) -> None:
    conv, norm = lively(kind(4, 6, 3))
    x = torch.randn(2, 4, 8, 8)
    made, folded = run(lambda x: norm(conv(x)), x, conv)
    assert folded == 0
    with torch.no_grad():
        torch.testing.assert_close(made, norm(conv(x)), rtol=0, atol=0)


class Settings(nn.Conv2d):
    """Keeps other settings than torch's."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.kernel_size = 3  # type: ignore[assignment]


class Bare(nn.Conv2d):
    """Keeps none."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.kernel)


@pytest.mark.parametrize("kind", [Settings, Bare])
def test_classes_that_keep_other_settings_are_left_alone(kind: type[nn.Conv2d]) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(kind(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval(), torch.randn(1, 3, 8, 8)
    assert not Folding(net).helps
    given = {"window": 4, "stride": 4, "target": 1}
    auto, dense = (cnnviz.explain(net, x, "occlusion", method=method, **given).values for method in ("auto", "dense"))
    torch.testing.assert_close(auto, dense)


def test_wide_transposed_convolutions_are_none_of_ours() -> None:
    assert Folding(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 3))).helps
    assert not Folding(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(256, 8, 3))).helps


def test_it_ends_with_its_block_also_after_an_error() -> None:
    conv, _ = lively(nn.Conv2d(4, 6, 3))
    before = set(vars(conv))

    def fail() -> None:
        with torch.no_grad(), Folding(nn.Sequential(conv, conv)):
            assert type(conv(torch.randn(1, 4, 8, 8))) is not Tensor
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert set(vars(conv)) == before


def test_the_model_itself_sees_nothing_of_it() -> None:
    net, kinds = Plain().eval(), set()
    x, kernel = torch.randn(1, 3, 24, 24), Folding.kernel

    def other_thread() -> None:
        with torch.no_grad():
            kinds.add(type(net.conv(x)))

    def watching(self: Folding, *given: Any) -> tuple[Tensor, Tensor]:
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
        kinds.add("forward" in vars(net.conv))
        return kernel(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folding, "kernel", watching)
        patch.setattr("cnnviz.Request.fits", lambda self, example: False)  # so that auto takes the dense way
        cnnviz.explain(net, x, "occlusion", window=8, stride=8, target=1)
    assert kinds == {Tensor, False}


class Spoiling(nn.Module):
    """Writes to what a convolution took before it looks at what came of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = lively(nn.Conv2d(3, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        found = self.conv(x)
        x.zero_()
        return self.norm(found).mean((2, 3))


class Plain(Spoiling):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3))


class Sometimes(Spoiling):
    """Spoils what is covered in a corner, and its input before."""

    def forward(self, x: Tensor) -> Tensor:
        covered = bool((x[:, :, 0, 0] == 0).any())
        x.add_(1)
        found = self.conv(x)
        if covered:
            x.zero_()
        return self.norm(found).mean((2, 3))


@pytest.mark.parametrize(("kind", "joined"), [(Plain, True), (Spoiling, False), (Sometimes, True)])
def test_sweeps_fold_where_rounding_may_differ(
    kind: type[Spoiling], joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels: list[int] = []
    kernel = Folding.kernel
    monkeypatch.setattr(Folding, "kernel", lambda self, *given: (kernels.append(1), kernel(self, *given))[1])
    net, x = kind().eval(), torch.randn(1, 3, 24, 24)
    given = {"window": 8, "stride": 8, "target": 1}
    dense = cnnviz.explain(net, x, "occlusion", method="dense", **given).values
    assert not kernels, "what is forced is run as it is"
    monkeypatch.setattr("cnnviz.Request.fits", lambda self, example: False)  # so that auto takes the dense way
    auto = cnnviz.explain(net, x, "occlusion", method="auto", **given).values
    assert bool(kernels) == joined
    torch.testing.assert_close(auto, dense, rtol=1e-4, atol=1e-6)


def test_a_map_by_trained_weights_errs_as_far_as_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnviz.Request.fits", lambda self, example: False)  # so that auto takes the dense way
    model = cnnviz.load_model()
    x, given = model.prepare([demo_picture()]), {"window": 48, "stride": 32, "target": 285}
    auto, dense = (cnnviz.explain(model, x, "occlusion", method=method, **given).values for method in ("auto", "dense"))
    assert not torch.equal(auto, dense), "it is rounded otherwise"
    precise = cnnviz.explain(model.module.double(), x.double(), "occlusion", method="dense", **given).values
    own = float((dense - precise).abs().max())
    assert float((auto - precise).abs().max()) <= 2 * own
