"""What is captured is what the layer returned, seen from the right thread, and nothing of it is left on the model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from cnnviz import LayerError, capture


class Net(nn.Module):
    """A convolution, a reused ReLU, a head; counts how often each part ran."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)
        self.deep = nn.Conv2d(4, 4, 3, padding=1)
        self.unused = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)
        self.ran: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.ran.append("start")
        x = self.relu(self.conv(x))
        self.ran.append("first")
        x = self.relu(self.deep(x))
        self.ran.append("second")
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net() -> Net:
    return Net().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 6, 6)


def hooks(model: nn.Module) -> int:
    return sum(
        len(table)
        for part in model.modules()
        for name, table in vars(part).items()
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
    )


# ---------------------------------------------------------------- what is seen


def test_output_is_what_the_layer_returned(net: Net, x: Tensor) -> None:
    with torch.no_grad(), capture(net, "conv") as seen:
        net(x)
    assert torch.equal(seen.output, net.conv(x))


def test_input_is_what_the_layer_was_given(net: Net, x: Tensor) -> None:
    with torch.no_grad(), capture(net, "deep", side="input") as seen:
        net(x)
    assert torch.equal(seen.input, net.conv(x).relu())


def test_input_given_by_keyword_is_seen(x: Tensor) -> None:
    class ByKeyword(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(input=x)

    net = ByKeyword()
    with torch.no_grad(), capture(net, "conv", side="input") as seen:
        net(x)
    assert torch.equal(seen.input, x)


def test_several_layers_come_by_name(net: Net, x: Tensor) -> None:
    with torch.no_grad(), capture(net, ["head", "conv", "relu#0"]) as seen:
        out = net(x)
    assert list(seen.values) == ["head", "conv", "relu#0"]
    assert torch.equal(seen.values["head"], out)
    assert torch.equal(seen.values["relu#0"], seen.values["conv"].relu())


def test_calls_of_a_reused_module_are_told_apart(net: Net, x: Tensor) -> None:
    with torch.no_grad(), capture(net, ["relu#0", "relu#1"]) as seen:
        net(x)
    first = net.conv(x).relu()
    assert torch.equal(seen.values["relu#0"], first)
    assert torch.equal(seen.values["relu#1"], net.deep(first).relu())


def test_name_alone_is_the_last_call(net: Net, x: Tensor) -> None:
    with torch.no_grad(), capture(net, ["relu", "relu#1"]) as seen:
        net(x)
    assert torch.equal(seen.values["relu"], seen.values["relu#1"])


def test_calls_are_counted_anew_for_each_forward_pass(net: Net, x: Tensor) -> None:
    with torch.no_grad(), capture(net, "relu#0") as seen:
        net(torch.zeros_like(x))
        net(x)
    assert torch.equal(seen.output, net.conv(x).relu())


class Mirroring(nn.Module):
    """Adds what it makes of the mirrored image, by calling itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, mirror: bool = True) -> Tensor:
        made = self.conv(x).mean((2, 3))
        return made + self(x.flip(3), mirror=False) if mirror else made


@pytest.mark.parametrize("stop", [True, False])
def test_calls_of_a_network_that_calls_itself_are_one_pass(x: Tensor, stop: bool) -> None:
    net = Mirroring().eval()
    with torch.no_grad(), capture(net, ["conv#0", "conv"], stop=stop) as seen:
        net(x)
    assert torch.equal(seen.values["conv#0"], net.conv(x))
    assert torch.equal(seen.values["conv"], net.conv(x.flip(3)))


def test_passes_that_end_early_are_no_passes_within_each_other(net: Net, x: Tensor) -> None:
    with torch.no_grad(), capture(net, "conv#0") as outer:
        with capture(net, "relu#0", stop=True):
            net(torch.zeros_like(x))
        with pytest.raises(RuntimeError):
            net(x[:, :2])
        net(x)
    assert torch.equal(outer.output, net.conv(x))


def test_layer_that_only_the_first_pass_called_is_an_error(x: Tensor) -> None:
    class Sized(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if len(x) > 1 else x

    net = Sized().eval()
    with torch.no_grad(), capture(net, "conv") as seen:
        net(x)
        assert torch.equal(seen.output, net.conv(x))
        net(x[:1])
        with pytest.raises(LayerError, match="'conv' was never called"):
            _ = seen.output
        net(x)


def test_container_is_captured_as_a_whole(x: Tensor) -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Flatten())
    with torch.no_grad(), capture(net, "0") as seen:
        net(x)
    assert torch.equal(seen.output, net[0](x))


def test_outputs_that_are_no_tensors_come_whole(x: Tensor) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"twice": x * 2, "rest": (x, "text")}

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: Tensor) -> Tensor:
            return self.two(x)["twice"].mul_(5)

    with capture(outer := Outer(), "two") as seen:
        outer(x)
    assert torch.equal(seen.output["twice"], x * 2)
    assert seen.output["rest"][1] == "text"


def test_what_the_model_computes_is_unchanged(net: Net, x: Tensor) -> None:
    expected = net(x)
    with capture(net, ["conv", "relu#0", "deep"]):
        got = net(x)
    with capture(net, "deep", side="input", grad=True):
        again = net(x)
    assert torch.equal(got, expected)
    assert torch.equal(again, expected)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_model_is_seen_through(net: Net, x: Tensor, wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(net)
    with torch.no_grad(), capture(wrapped, "conv") as seen:
        net(x)
    assert torch.equal(seen.output, net.conv(x))


def test_second_name_of_a_shared_module_is_known(net: Net, x: Tensor) -> None:
    net.other_name = net.conv
    with torch.no_grad(), capture(net, "other_name") as seen:
        net(x)
    assert torch.equal(seen.output, net.conv(x))


# ---------------------------------------------------------------- in-place operations afterwards


def test_later_in_place_operation_does_not_reach_the_capture(x: Tensor) -> None:
    net = Net(inplace=True)
    with torch.no_grad(), capture(net, ["conv", "deep"]) as seen:
        net(x)
    assert torch.equal(seen.values["conv"], net.conv(x))
    assert seen.values["conv"].min() < 0
    assert seen.values["deep"].min() < 0


def test_in_place_layer_itself_leaves_the_captured_input(x: Tensor) -> None:
    net = Net(inplace=True)
    with torch.no_grad(), capture(net, "relu#0", side="input") as seen:
        net(x)
    assert torch.equal(seen.input, net.conv(x))


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "layer1.0.bn1"), ("resnet18", "layer4.1.bn2"), ("densenet121", "features.norm5")],
)
def test_norm_before_an_in_place_relu_is_captured_with_its_negative_values(name: str, layer: str) -> None:
    net = torchvision.models.get_model(name, weights=None).eval()
    picture = torch.rand(1, 3, 64, 64)
    expected = []
    handle = net.get_submodule(layer).register_forward_hook(lambda _, __, out: expected.append(out.clone()))
    with torch.no_grad():
        net(picture)
    handle.remove()
    with torch.no_grad(), capture(net, layer) as seen:
        net(picture)
    assert torch.equal(seen.output, expected[0])
    assert seen.output.min() < 0


def test_gradient_of_a_layer_before_an_in_place_relu_is_right(x: Tensor) -> None:
    net = Net(inplace=True)
    with capture(net, "conv", grad=True) as seen:
        score = net(x)[:, 1].sum()
    (got,) = torch.autograd.grad(score, seen.output)
    maps = net.conv(x).detach().requires_grad_()
    reference = net.head(net.deep(maps.relu()).relu().mean((2, 3)))[:, 1].sum()
    (expected,) = torch.autograd.grad(reference, maps)
    torch.testing.assert_close(got, expected)


class Residual(nn.Module):
    """Works in place as MiDaS' residual units do: what its ReLU returns is used again by the name of what it took."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out = self.second(self.relu(x))
        return self.head((out + x).mean((2, 3)))


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("layers", ["relu", ["first", "relu"]])
def test_gradient_of_an_in_place_layer_comes_from_all_uses_of_what_it_wrote_to(
    x: Tensor, layers: str | list[str], trainable: bool
) -> None:
    net = Residual().requires_grad_(trainable)
    with capture(net, layers, grad=True) as seen:
        score = net(x)[:, 1].sum()
    (got,) = torch.autograd.grad(score, seen.values["relu"], retain_graph=True)
    maps = net.first(x).relu().detach().requires_grad_()
    reference = net.head((net.second(maps) + maps).mean((2, 3)))[:, 1].sum()
    (expected,) = torch.autograd.grad(reference, maps)
    torch.testing.assert_close(got, expected)
    assert torch.equal(score, reference)
    if "first" in seen.values:
        (before,) = torch.autograd.grad(score, seen.values["first"])
        torch.testing.assert_close(before, expected * (seen.values["first"] > 0))


class Discarding(nn.Module):
    """Calls a layer that works in place, and goes on with what the layer was given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.relu(x)
        return x.mean((2, 3))


class Passing(nn.Module):
    """Writes to what a layer was given and returned as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.drop = nn.Dropout()
        self.flat = nn.Flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y, z = self.drop(x), self.flat(x)
        x += 100
        return y.mean((2, 3)) + z.mean(2)


PASSED_ON = [
    (Discarding, "relu", "input"),
    (Discarding, "relu", "output"),
    (Discarding, "conv", "output"),
    (Passing, "drop", "output"),
    (Passing, "drop", "input"),
    (Passing, "flat", "output"),
]


@pytest.mark.parametrize(("kind", "layer", "side"), PASSED_ON)
def test_what_is_computed_stays_where_a_tensor_goes_by_two_names(
    x: Tensor, kind: type[nn.Module], layer: str, side: Any
) -> None:
    net = kind().eval().requires_grad_(False)
    expected, conv = net(x), net.conv(x)
    with capture(net, layer, side=side) as seen:
        assert torch.equal(net(x), expected)
    recorded = conv.relu() if (layer, side) == ("relu", "output") else conv
    assert torch.equal(seen.values[layer].flatten(), recorded.flatten())


@pytest.mark.parametrize(("kind", "layer", "side"), PASSED_ON[:3])
def test_what_is_computed_stays_with_gradients(x: Tensor, kind: type[nn.Module], layer: str, side: Any) -> None:
    net = kind().eval().requires_grad_(False)
    expected, conv = net(x), net.conv(x)
    with capture(net, layer, side=side, grad=True) as seen:
        score = net(x)
    assert torch.equal(score, expected)
    recorded = conv.relu() if (layer, side) == ("relu", "output") else conv
    assert torch.equal(seen.values[layer], recorded)
    (got,) = torch.autograd.grad(score.sum(), seen.values[layer])
    passes = torch.ones_like(conv) if (layer, side) == ("relu", "output") else (conv > 0).float()
    assert torch.equal(got, passes / 16)


def test_a_part_of_a_split_from_which_no_gradient_can_start_says_so(x: Tensor) -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu((x * 1).chunk(3, 1)[0])

    net = Halves()
    message = r"gradients cannot start.*name a layer before it"
    with pytest.raises(LayerError, match=message), capture(net, "relu", grad=True):
        net(x)


# ---------------------------------------------------------------- outputs of all kinds


@dataclass(frozen=True)
class Made:
    maps: Tensor
    rest: tuple[Tensor, str]


class Plain:
    def __init__(self, maps: Tensor, rest: tuple[Tensor, str]) -> None:
        self.maps = maps
        self.rest = rest


class Items(dict[str, Any]):
    """As some networks return."""

    def __init__(self, maps: Tensor, rest: tuple[Tensor, str]) -> None:
        super().__init__(maps=maps, rest=rest)

    maps = property(lambda self: self["maps"])
    rest = property(lambda self: self["rest"])


class Holding(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.layer = Function(lambda x: kind(x * 2 - 1, (x + 1, "text")))

    def forward(self, x: Tensor) -> Tensor:
        held = self.layer(x)
        return held.maps.relu_() + held.rest[0].mul_(3)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize("kind", [Made, Plain, Items])
@pytest.mark.parametrize("grad", [True, False])
def test_tensors_in_objects_are_captured_as_they_were_returned(x: Tensor, kind: type, grad: bool) -> None:
    net = Holding(kind)
    with capture(net, "layer", grad=grad) as seen:
        out = net(x)
    assert type(seen.output) is kind
    assert torch.equal(seen.output.maps, x * 2 - 1)
    assert torch.equal(seen.output.rest[0], x + 1)
    assert seen.output.rest[1] == "text"
    assert torch.equal(out, (x * 2 - 1).relu() + (x + 1) * 3)
    if grad:
        (maps, rest) = torch.autograd.grad(out.sum(), [seen.output.maps, seen.output.rest[0]])
        assert torch.equal(maps, (x * 2 - 1 > 0).float())
        assert torch.equal(rest, torch.full_like(x, 3.0))


def test_an_object_without_tensors_is_captured_itself(x: Tensor) -> None:
    held = Plain("maps", (1, "text"))  # type: ignore[arg-type]
    net = nn.Sequential(Function(lambda _: held))
    with capture(net, "0") as seen:
        net(x)
    assert seen.output is held


# ---------------------------------------------------------------- stopping early


def test_stop_leaves_the_block_without_running_the_rest(net: Net, x: Tensor) -> None:
    with torch.no_grad(), capture(net, "conv", stop=True) as seen:
        net(x)
        pytest.fail("the rest of the block should not run")
    assert net.ran == ["start"]
    assert torch.equal(seen.output, net.conv(x))


@pytest.mark.parametrize(
    ("layers", "ran"),
    [
        ("relu#0", ["start"]),
        ("relu", ["start", "first"]),
        ("relu#1", ["start", "first"]),
        (["relu#0", "conv"], ["start"]),
        (["conv", "deep"], ["start", "first"]),
        ("head", ["start", "first", "second"]),
    ],
)
def test_stop_waits_for_the_last_call_that_is_asked_for(
    net: Net, x: Tensor, layers: str | list[str], ran: list[str]
) -> None:
    with torch.no_grad(), capture(net, layers) as expected:
        net(x)
    net.ran.clear()
    with torch.no_grad(), capture(net, layers, stop=True) as seen:
        net(x)
    assert net.ran == ran
    assert all(torch.equal(seen.values[name], expected.values[name]) for name in seen.values)


def test_stop_at_an_input_comes_before_the_layer_runs(net: Net, x: Tensor) -> None:
    called = []
    net.deep.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad(), capture(net, "deep", side="input", stop=True) as seen:
        net(x)
    assert not called
    assert torch.equal(seen.input, net.conv(x).relu())


class Counting(nn.Module):
    """Calls its ReLU as often as its input's values say."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.rest = 0

    def forward(self, x: Tensor) -> Tensor:
        for step in range(int(x.sum().item())):
            x = self.relu(x - step)
        self.rest += 1
        return x


def test_stop_runs_to_the_end_where_the_number_of_calls_depends_on_values() -> None:
    net, x = Counting(), torch.tensor([[3.0]])
    with capture(net, "relu", stop=True) as seen:
        net(x)
    assert net.rest == 1
    assert seen.output.item() == 0.0


class Twice(nn.Module):
    """Calls its ReLU once more in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.relu(x - 0.5) if self.training else x


def test_stop_finds_the_last_call_in_training_mode() -> None:
    net = Twice().train()
    with capture(net, "relu", stop=True) as seen:
        net(torch.ones(1, 1))
    assert seen.output.item() == 0.5


def test_a_model_that_swallows_exceptions_does_not_swallow_the_stop(x: Tensor) -> None:
    class Swallowing(Net):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            except Exception:  # noqa: BLE001 - as careless models do
                return x

    net = Swallowing().eval()
    with torch.no_grad(), capture(net, "conv", stop=True) as seen:
        net(x)
    assert net.ran == ["start"]
    assert seen.output.shape == (2, 4, 6, 6)


def test_nested_captures_each_see_their_layer(net: Net, x: Tensor) -> None:
    with torch.no_grad(), capture(net, "conv") as outer:
        with capture(net, "relu#0", stop=True) as inner:
            net(x)
        assert torch.equal(inner.output, outer.output.relu())
    assert hooks(net) == 0


def test_stop_of_an_outer_capture_goes_through_an_inner_one(net: Net, x: Tensor) -> None:
    with torch.no_grad(), capture(net, "conv", stop=True) as outer, capture(net, "head") as inner:
        net(x)
    assert net.ran == ["start"]
    assert torch.equal(outer.output, net.conv(x))
    assert hooks(net) == 0
    with pytest.raises(LayerError, match="'head' was never called"):
        _ = inner.output


# ---------------------------------------------------------------- gradients


@pytest.fixture
def frozen(net: Net) -> Net:
    return net.requires_grad_(False)


def slope_at(net: Net, x: Tensor, layer: str) -> Tensor:
    with capture(net, layer, grad=True) as seen:
        score = net(x)[:, 1].sum()
    (slope,) = torch.autograd.grad(score, seen.output)
    return slope


@pytest.fixture
def expected_slope(net: Net, x: Tensor) -> Tensor:
    maps = net.deep(net.conv(x).relu()).detach().requires_grad_()
    (slope,) = torch.autograd.grad(net.head(maps.relu().mean((2, 3)))[:, 1].sum(), maps)
    return slope


def test_gradient_with_trainable_weights(net: Net, x: Tensor, expected_slope: Tensor) -> None:
    torch.testing.assert_close(slope_at(net, x, "deep"), expected_slope)
    assert all(p.grad is None for p in net.parameters())


def test_gradient_with_a_frozen_model(frozen: Net, x: Tensor, expected_slope: Tensor) -> None:
    torch.testing.assert_close(slope_at(frozen, x, "deep"), expected_slope)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_gradient_for_a_caller_without_gradients(net: Net, x: Tensor, expected_slope: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(slope_at(net, x, "deep"), expected_slope)
        assert not torch.is_grad_enabled()


def test_gradient_for_a_caller_in_inference_mode(frozen: Net, expected_slope: Tensor, x: Tensor) -> None:
    with torch.inference_mode():
        slope = slope_at(frozen, x.clone(), "deep")
        assert torch.is_inference_mode_enabled()
    torch.testing.assert_close(slope, expected_slope)


def test_gradient_graph_starts_at_the_layer_of_a_frozen_model(frozen: Net, x: Tensor) -> None:
    with capture(frozen, "deep", grad=True) as seen:
        frozen(x)
    assert seen.output.is_leaf
    assert seen.output.requires_grad


def test_gradient_reaches_the_input_where_it_asks_for_one(frozen: Net, x: Tensor) -> None:
    x.requires_grad_()
    with capture(frozen, "deep", grad=True) as seen:
        score = frozen(x).sum()
    at_layer, at_input = torch.autograd.grad(score, [seen.output, x])
    assert at_layer.shape == seen.output.shape
    assert at_input.abs().sum() > 0


def test_gradient_at_a_captured_input(frozen: Net, x: Tensor, net: Net) -> None:
    with capture(frozen, "relu#1", side="input", grad=True) as seen:
        score = frozen(x)[:, 1].sum()
    (got,) = torch.autograd.grad(score, seen.input)
    torch.testing.assert_close(got, slope_at(net, x, "deep"))


def test_gradient_at_several_layers_of_one_pass(frozen: Net, x: Tensor, expected_slope: Tensor) -> None:
    with capture(frozen, ["conv", "deep"], grad=True) as seen:
        score = frozen(x)[:, 1].sum()
    early, late = torch.autograd.grad(score, [seen.values["conv"], seen.values["deep"]])
    torch.testing.assert_close(late, expected_slope)
    maps = frozen.conv(x).requires_grad_()
    (wanted,) = torch.autograd.grad(frozen.head(frozen.deep(maps.relu()).relu().mean((2, 3)))[:, 1].sum(), maps)
    torch.testing.assert_close(early, wanted)


def test_gradient_at_the_last_call_of_a_reused_module(frozen: Net, x: Tensor) -> None:
    with capture(frozen, "relu", grad=True) as seen:
        score = frozen(x)[:, 1].sum()
    (slope,) = torch.autograd.grad(score, seen.output)
    expected = (frozen.head.weight[1] / 36).reshape(1, 4, 1, 1).expand_as(slope)
    torch.testing.assert_close(slope, expected)


def test_integer_outputs_are_captured_beside_gradients(x: Tensor) -> None:
    net = nn.Sequential(nn.MaxPool2d(2, return_indices=True))
    with capture(net, "0", grad=True) as seen:
        net(x)
    values, places = seen.output
    assert values.requires_grad
    assert places.dtype == torch.long


# ---------------------------------------------------------------- errors


def test_layer_that_is_never_called_is_an_error(net: Net, x: Tensor) -> None:
    with pytest.raises(LayerError, match=r"'unused' was never called.*cnnviz layers"), capture(net, "unused"):
        net(x)


def test_model_that_never_ran_is_an_error(net: Net) -> None:
    with pytest.raises(LayerError, match="'conv' was never called"), capture(net, "conv"):
        pass


def test_one_uncalled_layer_among_several_is_an_error(net: Net, x: Tensor) -> None:
    with pytest.raises(LayerError, match="'unused' was never called"), capture(net, ["conv", "unused"]):
        net(x)


def test_compiled_network_that_skips_its_layers_says_which_to_run(x: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    compiled = torch.compile(net, backend="eager")
    compiled(x)
    message = r"compiled network.*run the module that was given to torch\.compile"
    with pytest.raises(LayerError, match=message), capture(compiled, "0"):
        compiled(x)
    with torch.no_grad(), capture(compiled, "0") as seen:
        net(x)
    assert torch.equal(seen.output, net[0](x))


def test_call_that_does_not_exist_tells_how_many_there_are(net: Net, x: Tensor) -> None:
    with pytest.raises(LayerError, match=r"'relu' was called 2 times.*#5"), capture(net, "relu#5"):
        net(x)


def test_wrong_name_lists_the_nearest(net: Net) -> None:
    with pytest.raises(LayerError, match=r"no layer 'con' in Net.*nearest.*'conv'"), capture(net, "con"):
        pass


def test_wrong_nested_name_lists_the_nearest() -> None:
    net = torchvision.models.squeezenet1_1(weights=None)
    with pytest.raises(LayerError, match=r"'features\.12'"), capture(net, "features.1222"):
        pass


@pytest.mark.parametrize("name", ["relu#", "relu#x", "relu#-1", "relu#1.5"])
def test_malformed_call_number_says_what_is_expected(net: Net, name: str) -> None:
    with pytest.raises(LayerError, match="NAME#K"), capture(net, name):
        pass


def test_network_itself_is_no_layer(net: Net) -> None:
    with pytest.raises(LayerError, match="no layer ''"), capture(net, ""):
        pass


def test_no_layer_at_all_is_an_error(net: Net) -> None:
    with pytest.raises(LayerError, match="no layer to capture"), capture(net, []):
        pass


def test_asking_for_the_other_side_is_an_error(net: Net, x: Tensor) -> None:
    with capture(net, "conv") as seen:
        net(x)
    with pytest.raises(LayerError, match="side='input'"):
        _ = seen.input


def test_asking_for_the_only_output_of_several_is_an_error(net: Net, x: Tensor) -> None:
    with capture(net, ["conv", "deep"]) as seen:
        net(x)
    with pytest.raises(LayerError, match=r"2 layers.*\.values"):
        _ = seen.output


def test_looking_before_the_layer_ran_is_an_error(net: Net, x: Tensor) -> None:
    with capture(net, "conv") as seen:
        with pytest.raises(LayerError, match="never called"):
            _ = seen.output
        net(x)


# ---------------------------------------------------------------- nothing is left behind


def test_hooks_are_gone_afterwards(net: Net, x: Tensor) -> None:
    with capture(net, ["conv", "relu"]):
        net(x)
        assert hooks(net) > 0
    assert hooks(net) == 0


def divide_by_zero(_: Tensor) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("grad", [True, False])
def test_hooks_are_gone_after_an_exception(net: Net, x: Tensor, grad: bool) -> None:
    with pytest.raises(ZeroDivisionError), torch.no_grad(), capture(net, "conv", grad=grad):
        divide_by_zero(net(x))
    assert hooks(net) == 0
    assert torch.is_grad_enabled()


def test_hooks_are_gone_after_an_exception_in_forward(net: Net) -> None:
    with pytest.raises(RuntimeError), capture(net, "head"):
        net(torch.rand(2, 7, 6, 6))
    assert hooks(net) == 0


def test_hooks_are_gone_after_a_wrong_name_among_right_ones(net: Net) -> None:
    with pytest.raises(LayerError), capture(net, ["conv", "nothing"]):
        pass
    assert hooks(net) == 0


def test_hooks_are_gone_after_stopping(net: Net, x: Tensor) -> None:
    with capture(net, "conv", stop=True):
        net(x)
    assert hooks(net) == 0


def test_own_hooks_of_the_model_stay_and_run(net: Net, x: Tensor) -> None:
    called = []
    net.conv.register_forward_hook(lambda *_: called.append(1))
    with capture(net, "conv"):
        net(x)
    assert called == [1]
    assert hooks(net) == 1


# ---------------------------------------------------------------- threads


def run_elsewhere(net: nn.Module, x: Tensor) -> None:
    thread = threading.Thread(target=lambda: net(x))
    thread.start()
    thread.join()


def test_only_calls_of_this_thread_are_seen(net: Net, x: Tensor) -> None:
    with torch.no_grad(), capture(net, "conv") as seen:
        net(x)
        run_elsewhere(net, torch.zeros_like(x))
    assert torch.equal(seen.output, net.conv(x))


def test_calls_of_another_thread_alone_are_no_calls(net: Net, x: Tensor) -> None:
    with pytest.raises(LayerError, match="never called"), capture(net, "conv"):
        run_elsewhere(net, x)


def test_several_threads_capture_one_model_at_once() -> None:
    class Waiting(nn.Module):
        """Lets every thread get into the network before any of them goes on."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.barrier = threading.Barrier(4, timeout=30)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            self.barrier.wait()
            return functional.relu(x, inplace=True)

    net = Waiting().eval()
    pictures = [torch.rand(1, 3, 6, 6) for _ in range(4)]

    def work(picture: Tensor) -> Tensor:
        with torch.no_grad(), capture(net, "conv") as seen:
            # Hooks are put on before any thread is inside of the network, and taken off when all are out of it.
            net.barrier.wait()
            net(picture)
            net.barrier.wait()
        return seen.output

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, pictures))
    for picture, output in zip(pictures, found, strict=True):
        assert torch.equal(output, net.conv(picture))
    assert hooks(net) == 0
