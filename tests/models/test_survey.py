"""What a forward pass consists of: names, shapes, default layers, bytes, random numbers and receptive fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import cnnviz
from cnnviz import InputError, LayerError, Model, ReceptiveField, layers
from cnnviz.models import survey


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.block = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 5)
        self.unused = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.block(self.relu(self.conv(x))))
        return self.head(self.pool(x).flatten(1))


class Function(nn.Module):
    """A network that is one function; its parts are registered so that they are found."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)
        self.out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.function(self, x))


def blank(size: int = 16) -> Tensor:
    return torch.zeros(1, 3, size, size)


# ---------------------------------------------------------------- names and shapes


def test_layers_come_in_order_of_completion_with_their_shapes() -> None:
    assert [(layer.name, layer.type, layer.shape) for layer in layers(Net(), blank())] == [
        ("conv", "Conv2d", (4, 16, 16)),
        ("relu#0", "ReLU", (4, 16, 16)),
        ("block.0", "Conv2d", (6, 7, 7)),
        ("block.1", "BatchNorm2d", (6, 7, 7)),
        ("block", "Sequential", (6, 7, 7)),
        ("relu#1", "ReLU", (6, 7, 7)),
        ("pool", "AdaptiveAvgPool2d", (6, 1, 1)),
        ("head", "Linear", (5,)),
    ]


def test_parameters_are_counted() -> None:
    counts = {layer.name: layer.parameters for layer in layers(Net(), blank())}
    assert counts["conv"] == 4 * 3 * 9 + 4
    assert counts["block"] == counts["block.0"] + counts["block.1"]
    assert counts["relu#0"] == 0


def test_output_that_is_no_tensor_has_no_shape() -> None:
    net = nn.Sequential(nn.MaxPool2d(2, return_indices=True))
    assert layers(net, blank())[0].shape is None


def test_size_and_channels_are_guessed_where_no_input_is_given() -> None:
    assert layers(nn.Sequential(nn.Conv2d(1, 2, 1)))[0].shape == (2, 224, 224)


def test_model_knows_its_size() -> None:
    model = Model(nn.Sequential(nn.Conv2d(3, 2, 1)), input_size=(20, 30))
    assert layers(model)[0].shape == (2, 20, 30)


def test_batch_size_and_dtype_of_the_example_do_not_matter() -> None:
    expected = layers(Net(), blank())
    assert layers(Net(), blank().expand(5, -1, -1, -1)) == expected
    assert layers(Net().double(), blank().double()) == expected


def test_model_that_cannot_run_says_why() -> None:
    with pytest.raises(InputError, match=r"Net cannot run on inputs of shape \(1, 7, 16, 16\)"):
        layers(Net(), torch.zeros(1, 7, 16, 16))


def test_model_that_cannot_run_on_the_guess_asks_for_an_example() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(18, 2))
    with pytest.raises(InputError, match="give inputs=, an example"):
        layers(net)


# ---------------------------------------------------------------- full names


def test_counts_say_how_often_each_module_is_called() -> None:
    counts = survey(Net(), blank()).counts
    assert counts["relu"] == 2
    assert counts["conv"] == 1
    assert "unused" not in counts


@pytest.mark.parametrize(
    ("given_name", "full"), [("conv", "conv"), ("conv#0", "conv"), ("relu", "relu#1"), ("relu#0", "relu#0")]
)
def test_names_are_resolved_to_the_last_call(given_name: str, full: str) -> None:
    assert survey(Net(), blank()).resolve(given_name) == full


def test_call_beyond_the_last_says_which_is_the_last() -> None:
    with pytest.raises(LayerError, match=r"'relu' is called 2 times, so its last call is #1"):
        survey(Net(), blank()).resolve("relu#2")


def test_layer_that_is_never_called_is_not_resolved() -> None:
    with pytest.raises(LayerError, match="'unused' is never called"):
        survey(Net(), blank()).resolve("unused")


# ---------------------------------------------------------------- the default layer of the CAM family

CAM_LAYERS = {
    "resnet18": "layer4",
    "vgg16": "features.29",
    "vgg11_bn": "features.27",
    "squeezenet1_1": "features",
    "mobilenet_v2": "features",
    "densenet121": "features",
    "googlenet": "inception5b",
    "inception_v3": "Mixed_7c",
    "alexnet": "features.11",
    "efficientnet_b0": "features",
    "convnext_tiny": "features",
    "shufflenet_v2_x0_5": "conv5",
    "swin_t": "permute",
}


@pytest.mark.parametrize(("name", "layer"), CAM_LAYERS.items())
def test_default_cam_layer_of(name: str, layer: str) -> None:
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):  # no need to draw weights
        net = torchvision.models.get_model(name, weights=None, **quick)
    assert survey(net, blank(224)).cam_layer == layer


def test_network_without_maps_has_no_default_cam_layer() -> None:
    assert survey(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), blank()).cam_layer is None


def test_default_cam_layer_of_class_scores_alone_is_their_map() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert survey(net, blank()).cam_layer == "1"


def test_modules_that_compute_weights_are_no_layers() -> None:
    head = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 5, 3, padding=1))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), head, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert [layer.name for layer in layers(net, blank())] == ["0", "1", "2", "3", "4"]
    assert survey(net, blank()).cam_layer == "1"


def test_default_cam_layer_is_before_a_dropout_that_passes_on() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(), nn.AdaptiveAvgPool2d(1))
    assert survey(net, blank()).cam_layer == "1"


def test_default_cam_layer_after_an_in_place_rectifier_is_the_rectifier() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))
    assert survey(net, blank()).cam_layer == "1"


class ChannelsLast(nn.Module):
    """Ends as timm's Swin does: a norm over maps with their channels last, then their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_maps_with_their_channels_last_are_no_default_cam_layer() -> None:
    assert survey(ChannelsLast(), blank()).cam_layer == "conv"


# ---------------------------------------------------------------- bytes and random numbers


def test_bytes_of_one_convolution() -> None:
    found = survey(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), torch.zeros(2, 3, 8, 8))
    came, made = 3 * 8 * 8 * 4, 4 * 8 * 8 * 4
    assert found.largest == made
    assert found.working == came + made
    assert found.kept == made


def test_bytes_grow_with_the_image_and_the_dtype() -> None:
    small, large = survey(Net(), blank(16)), survey(Net(), blank(32))
    wide = survey(Net().double(), blank(16).double())
    assert large.largest == 4 * small.largest
    assert wide.largest == 2 * small.largest
    assert wide.kept == 2 * small.kept


def test_output_shape_is_told() -> None:
    assert survey(Net(), blank()).output == (5,)
    assert survey(nn.Sequential(nn.MaxPool2d(2, return_indices=True)), blank()).output is None


@pytest.mark.parametrize(
    "draw",
    [
        lambda self, x: functional.dropout(x, 0.5, training=True),
        lambda self, x: x + torch.rand_like(x),
        lambda self, x: x + torch.randn(x.shape, device=x.device),
        lambda self, x: x * torch.bernoulli(torch.full_like(x, 0.5)),
    ],
    ids=["dropout", "rand_like", "randn", "bernoulli"],
)
def test_random_numbers_are_noticed(draw: Callable[[nn.Module, Tensor], Tensor]) -> None:
    assert survey(Function(draw), blank()).draws


def test_dropout_that_is_off_draws_nothing() -> None:
    assert not survey(nn.Sequential(nn.Dropout(), nn.Conv2d(3, 4, 1)).train(), blank()).draws


def conditional(_: nn.Module, x: Tensor) -> Tensor:
    return x + torch.rand_like(x) if x.sum().item() >= 0 else x


RANDOM = {
    "on the input's device": lambda self, x: functional.dropout(x, 0.5, training=True),
    "where values are needed": conditional,
}


@pytest.mark.parametrize("draw", RANDOM.values(), ids=RANDOM.keys())
def test_global_random_state_is_left_alone(draw: Callable[[nn.Module, Tensor], Tensor]) -> None:
    before = torch.get_rng_state()
    assert survey(Function(draw), blank()).draws
    assert torch.equal(torch.get_rng_state(), before)


def test_global_random_state_is_left_alone_by_numbers_drawn_on_the_cpu() -> None:
    before = torch.get_rng_state()
    assert survey(Function(lambda self, x: x * torch.rand(())), blank()).draws
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- values decide


class Looping(nn.Module):
    """Runs its ReLU as often as the input's values say."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x[0, 0, 0, 0])):
            x = self.relu(x)
        return self.conv(x)


def test_control_flow_that_needs_values_gets_the_real_data() -> None:
    found = survey(Looping(), torch.full((2, 3, 6, 6), 3.0), fields=True)
    assert [layer.name for layer in found.layers] == ["relu#0", "relu#1", "relu#2", "conv"]
    assert found.layers[-1].shape == (4, 4, 4)
    assert found.layers[-1].receptive_field == ReceptiveField((3, 3), (1, 1), (0, 0))


def test_only_the_first_row_decides() -> None:
    example = torch.full((2, 3, 6, 6), 1.0)
    example[1] = 5.0
    assert survey(Looping(), example).counts["relu"] == 1


@pytest.mark.parametrize("net", [Net(), Looping()], ids=["without data", "with data"])
def test_model_is_not_touched(net: nn.Module) -> None:
    net.train()
    before = {name: (id(t), t._version) for name, t in (*net.named_parameters(), *net.named_buffers())}
    called: list[int] = []
    net.conv.register_forward_hook(lambda *_: called.append(1))
    survey(net, torch.ones(1, 3, 16, 16), fields=True)
    assert not called
    assert len(net.conv._forward_hooks) == 1
    assert all(part.training for part in net.modules())
    assert {name: (id(t), t._version) for name, t in (*net.named_parameters(), *net.named_buffers())} == before


# ---------------------------------------------------------------- receptive fields


def fields(net: nn.Module, size: int = 224) -> dict[str, ReceptiveField | None]:
    return {layer.name: layer.receptive_field for layer in layers(net, blank(size))}


def on_meta(name: str, **extra: Any) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **extra)


@pytest.mark.parametrize(
    ("name", "layer", "size", "stride"),
    [
        # Araujo, Norris and Sim 2019, "Computing receptive fields of convolutional neural networks", table 1 and the
        # network definitions.
        ("vgg16", "features.28", 196, 16),
        ("vgg16", "features.30", 212, 32),
        ("alexnet", "features.10", 163, 16),
        ("alexnet", "features.12", 195, 32),
        ("resnet18", "layer4", 435, 32),
        ("resnet50", "layer4", 427, 32),  # 483 in the table, where the strides are in other convolutions
        ("mobilenet_v2", "features", 491, 32),
    ],
)
def test_known_receptive_fields(name: str, layer: str, size: int, stride: int) -> None:
    found = fields(on_meta(name))[layer]
    assert found is not None
    assert (found.size, found.stride) == ((size, size), (stride, stride))


def test_field_of_a_same_padded_network_is_centred() -> None:
    assert fields(on_meta("vgg16"))["features.2"] == ReceptiveField((5, 5), (1, 1), (-2, -2))


def test_no_field_behind_global_pooling() -> None:
    found = fields(on_meta("resnet18"))
    assert found["avgpool"] is None
    assert found["fc"] is None


def test_no_field_behind_squeeze_and_excitation() -> None:
    found = fields(on_meta("efficientnet_b0"))
    assert found["features.0"] is not None
    assert found["features.1.0.block.1"] is None


def test_fields_are_left_out_unless_asked_for() -> None:
    assert all(layer.receptive_field is None for layer in survey(Net(), blank()).layers)


class Spread(nn.Module):
    """In place of a max pooling: every place of the window counts, so that the gradient shows them all."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.ones(x.shape[1], 1, *self.pool.kernel_size, dtype=x.dtype)
        return functional.conv2d(
            x, kernel, None, self.pool.stride, self.pool.padding, self.pool.dilation, groups=x.shape[1]
        )


class Sum(nn.Module):
    """Parallel branches, added up."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return total


Pair = tuple[int, int]
CHANNELS = 2


def pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def windows(draw: st.DrawFn, *, stride: Pair | None = None, same: bool = False) -> dict[str, Pair]:
    """Kernel, stride, padding and dilation; `same` keeps the size (but for the stride)."""
    kernel = draw(st.sampled_from([1, 3, 5]).flatmap(lambda k: st.tuples(st.just(k), st.sampled_from([1, 3]))))
    dilation = draw(pairs(1, 3))
    full = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    if not same:
        kernel = draw(pairs(1, 5))
        full = draw(pairs(0, 2))
    return {
        "kernel_size": kernel,
        "stride": stride or draw(pairs(1, 3)),
        "padding": full,
        "dilation": dilation,
    }


def convolution(window: dict[str, Pair]) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, CHANNELS, **window)


@st.composite
def max_pools(draw: st.DrawFn) -> nn.Module:
    window = draw(windows())
    window["padding"] = tuple(min(p, k // 2) for p, k in zip(window["padding"], window["kernel_size"], strict=True))
    return nn.MaxPool2d(**window)


@st.composite
def average_pools(draw: st.DrawFn) -> nn.Module:
    window = draw(windows())
    del window["dilation"]
    window["padding"] = tuple(min(p, k // 2) for p, k in zip(window["padding"], window["kernel_size"], strict=True))
    return nn.AvgPool2d(**window)


@st.composite
def branches(draw: st.DrawFn) -> nn.Module:
    stride = draw(pairs(1, 2))
    parts = [convolution(draw(windows(stride=stride, same=True))) for _ in range(draw(st.integers(2, 3)))]
    return Sum(*parts)


PARTS = st.one_of(
    windows().map(convolution),
    max_pools(),
    average_pools(),
    branches(),
    st.sampled_from([nn.ReLU(), nn.BatchNorm2d(CHANNELS), nn.Dropout()]),
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)).map(nn.ZeroPad2d),
)


def hull(net: nn.Module, size: Pair, unit: Pair) -> tuple[Pair, Pair]:
    """Where the unit's gradient is not zero: first and last row and column, the latter not included."""
    x = torch.full((1, CHANNELS, *size), 0.5, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(net(x.clone())[0, :, unit[0], unit[1]].sum(), x)
    rows, columns = (slope.abs().sum((0, 1, axis)).nonzero()[:, 0] for axis in (3, 2))
    return (int(rows[0]), int(columns[0])), (int(rows[-1]) + 1, int(columns[-1]) + 1)


def prepared(parts: list[nn.Module]) -> nn.Module:
    """The network in float64 with positive weights, and with every place of a max pooling counting."""
    net = nn.Sequential(*(Spread(part) if isinstance(part, nn.MaxPool2d) else part for part in parts)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.5, 1.0)
    return net


@settings(max_examples=150)
@given(st.lists(PARTS, min_size=1, max_size=4))
def test_field_is_the_support_of_the_gradient(parts: list[nn.Module]) -> None:
    # On an example so large that something is left of it at the end.
    example = torch.zeros(1, CHANNELS, 1500, 1500, dtype=torch.float64, device="meta")
    found = survey(nn.Sequential(*parts).double(), example, fields=True).layers[-1].receptive_field
    assert found is not None
    # The first unit whose field lies within the image, and the smallest image that holds it.
    unit = tuple(max(0, -(start // stride)) for start, stride in zip(found.start, found.stride, strict=True))
    first = tuple(start + at * stride for start, at, stride in zip(found.start, unit, found.stride, strict=True))
    stop = tuple(at + size for at, size in zip(first, found.size, strict=True))
    assume(max(stop) < 350)
    # The padding below and to the right may be less than above: some more rows and columns.
    size = (stop[0] + 2 * found.stride[0] + 8, stop[1] + 2 * found.stride[1] + 8)
    assert hull(prepared(parts), size, unit) == (first, stop)


@settings(max_examples=50)
@given(st.lists(PARTS, min_size=1, max_size=3), st.sampled_from([(0, 0), (-1, -1), (0, -1)]))
def test_field_clipped_at_the_border_holds_the_support(parts: list[nn.Module], corner: Pair) -> None:
    size = 200
    x = torch.full((1, CHANNELS, size, size), 0.5, dtype=torch.float64).requires_grad_()
    found = survey(nn.Sequential(*parts).double(), x, fields=True).layers[-1]
    unit = [at % length for at, length in zip(corner, found.shape[1:], strict=True)]
    (slope,) = torch.autograd.grad(prepared(parts)(x.clone())[0, :, unit[0], unit[1]].sum(), x)
    field = found.receptive_field
    top, left = (first + at * step for first, at, step in zip(field.start, unit, field.stride, strict=True))
    slope[:, :, max(top, 0) : max(top + field.size[0], 0), max(left, 0) : max(left + field.size[1], 0)] = 0
    assert not slope.any()


def test_network_drawn_has_something_to_show() -> None:
    parts = [nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1), nn.MaxPool2d((3, 3), (2, 2), (1, 1), (1, 1))]
    assert hull(prepared(parts), (21, 21), (2, 2)) == ((5, 5), (12, 12))


# What units see, worked out by hand: (function, its field or None for the whole image).
CONV = {"conv": nn.Conv2d(3, 3, 3, padding=1)}
FUNCTIONS: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, nn.Module], ReceptiveField | None]] = {
    "pointwise": (lambda self, x: (x.relu() * 2 + 1).clamp(0, 6).sigmoid(), {}, ReceptiveField((1, 1), (1, 1), (0, 0))),
    "functional conv": (
        lambda self, x: functional.conv2d(input=x, weight=torch.ones(3, 3, 3, 5, device=x.device), stride=2, padding=1),
        {},
        ReceptiveField((3, 5), (2, 2), (-1, -1)),
    ),
    "padding='same'": (
        lambda self, x: functional.conv2d(x, torch.ones(3, 3, 3, 5, device=x.device), padding="same"),
        {},
        ReceptiveField((3, 5), (1, 1), (-1, -2)),
    ),
    "max_pool2d by keyword": (
        lambda self, x: functional.max_pool2d(x, kernel_size=3, stride=2, padding=1),
        {},
        ReceptiveField((3, 3), (2, 2), (-1, -1)),
    ),
    "pool without stride": (lambda self, x: functional.avg_pool2d(x, 2), {}, ReceptiveField((2, 2), (2, 2), (0, 0))),
    "residual": (lambda self, x: x + self.conv(x), CONV, ReceptiveField((3, 3), (1, 1), (-1, -1))),
    "in-place residual": (lambda self, x: self.conv(x).add_(x), CONV, ReceptiveField((3, 3), (1, 1), (-1, -1))),
    "channels side by side": (
        lambda self, x: torch.cat([x, self.conv(x)], 1),
        CONV,
        ReceptiveField((3, 3), (1, 1), (-1, -1)),
    ),
    "channel shuffle": (
        lambda self, x: torch.cat([x, x], 1).view(1, 2, 3, 16, 16).transpose(1, 2).reshape(1, 6, 16, 16),
        {},
        ReceptiveField((1, 1), (1, 1), (0, 0)),
    ),
    "channels split": (
        lambda self, x: torch.cat(self.conv(x).chunk(3, 1)[::-1], 1),
        CONV,
        ReceptiveField((3, 3), (1, 1), (-1, -1)),
    ),
    "norm with channels last": (
        lambda self, x: functional.layer_norm(self.conv(x).permute(0, 2, 3, 1), (3,)).permute(0, 3, 1, 2),
        CONV,
        ReceptiveField((3, 3), (1, 1), (-1, -1)),
    ),
    "global mean": (lambda self, x: x * x.mean((2, 3), keepdim=True), {}, None),
    "adaptive pooling": (lambda self, x: functional.adaptive_avg_pool2d(x, 4), {}, None),
    "branches with different strides": (
        lambda self, x: functional.avg_pool2d(x, 2)[:, :, :4, :4] + functional.avg_pool2d(x, 4),
        {},
        None,
    ),
    "resizing": (lambda self, x: functional.interpolate(x, scale_factor=2), {}, None),
    "rows side by side": (lambda self, x: torch.cat([x, x], 2), {}, None),
    "columns side by side by a negative axis": (lambda self, x: torch.cat([x, x], -1), {}, None),
    "repeating columns": (lambda self, x: self.row(x).expand_as(x), {"row": nn.Conv2d(3, 3, (1, 16))}, None),
    "flipping": (lambda self, x: x.flip(3), {}, None),
    "transposing": (lambda self, x: x.transpose(2, 3), {}, None),
    "norm over space": (lambda self, x: functional.instance_norm(x), {}, None),
    "softmax over space": (lambda self, x: x.softmax(3), {}, None),
    "linear over columns": (lambda self, x: self.linear(x), {"linear": nn.Linear(16, 16)}, None),
    "reshaping space": (lambda self, x: x.reshape(1, 3, 8, 32).reshape(1, 3, 16, 16), {}, None),
}


@pytest.mark.parametrize(("function", "parts", "expected"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_field_of(
    function: Callable[[Any, Tensor], Tensor], parts: dict[str, nn.Module], expected: ReceptiveField | None
) -> None:
    assert fields(Function(function, **parts), 16)["out"] == expected


def moved(self: nn.Module, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 1:] = x[:, :, :-1]
    return y


def moved_by_view(self: nn.Module, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 1:].add_(x[:, :, :-1])
    return y * 1


ROW = {"row": nn.Conv2d(3, 3, (1, 16))}
TOO_SMALL: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, nn.Module]]] = {
    "circular padding": (lambda self, x: self.c(x), {"c": nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")}),
    "broadcasting along space": (lambda self, x: x + self.row(x), ROW),
    "assigning to a part": (moved, {}),
    "in place on a part": (moved_by_view, {}),
    "batch norm by the batch": (lambda self, x: self.n(x), {"n": nn.BatchNorm2d(3, track_running_stats=False)}),
}


@pytest.mark.parametrize(("function", "parts"), TOO_SMALL.values(), ids=TOO_SMALL.keys())
def test_field_is_never_too_small(function: Callable[[Any, Tensor], Tensor], parts: dict[str, nn.Module]) -> None:
    net = Function(function, **parts).double().eval()
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64).requires_grad_()
    field = survey(net, x, fields=True).layers[-1].receptive_field
    out = net(x)
    for y, column in ((0, 0), (8, out.shape[3] - 1), (15, 8)):
        (slope,) = torch.autograd.grad(out[0, :, y, column].square().sum(), x, retain_graph=True)
        if field is not None:
            top, left = field.start[0] + y * field.stride[0], field.start[1] + column * field.stride[1]
            slope[:, :, max(top, 0) : top + field.size[0], max(left, 0) : left + field.size[1]] = 0
            assert not slope.any()


WRITTEN: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "base of a view": lambda self, v, wide: (v.view(1, 1, 3, 16, 16), v.add_(wide))[0].view(1, 3, 16, 16),
    "what a chunk is of": lambda self, v, wide: (v.chunk(1, 1)[0], v.copy_(wide))[0],
    "a chunk": lambda self, v, wide: (v.chunk(3, 1)[1].add_(wide.chunk(3, 1)[1]), v)[1],
    "another view": lambda self, v, wide: (v.chunk(3, 1), v[:, 1:].add_(wide[:, 1:]))[0][2],
    "a transposed view": lambda self, v, wide: (v.permute(0, 1, 2, 3), v.transpose(2, 3).add_(wide))[0],
    "a view without a batch": lambda self, v, wide: (v.view(3, 16, 16).copy_(wide[0]), v)[1],
    "what was detached": lambda self, v, wide: (v.detach(), v.copy_(wide))[0],
    "detached": lambda self, v, wide: (v.detach().add_(wide), v)[1],
    "data": lambda self, v, wide: (v.data.copy_(wide), v)[1],
    "data set": lambda self, v, wide: (setattr(v, "data", wide), v)[1],
    "a list": lambda self, v, wide: (torch._foreach_add_([v], [wide]), v)[1],
    "out=": lambda self, v, wide: (v.detach(), torch.add(v, wide, out=v))[0],
    "a constant's alias": lambda self, v, wide: (
        (constant := torch.zeros(wide.shape, device=v.device)),
        constant.detach().copy_(wide),
        constant + v,
    )[2],
}


@pytest.mark.parametrize("write", WRITTEN.values(), ids=WRITTEN.keys())
def test_field_is_never_too_small_after_writes_by_another_name(write: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    net = Function(lambda self, x: write(self, x.clone(), self.c(x)), c=nn.Conv2d(3, 3, 5, padding=2)).eval()
    field, x = fields(net, 16)["out"], torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        changed = x.clone()
        changed[:, :, 6, 6] += 1
        assert not torch.equal(net(changed)[:, :, 8, 8], net(x)[:, :, 8, 8])
    assert field is None or field == ReceptiveField((5, 5), (1, 1), (-2, -2))


def test_field_of_what_is_written_to_by_its_only_name_is_exact() -> None:
    def written(self: Any, x: Tensor) -> Tensor:
        made = torch.zeros(x.shape, device=x.device)
        made += self.conv(x)
        made.add_(x).relu_()
        return functional.relu(made.view(1, 1, 3, 16, 16), inplace=True).view(1, 3, 16, 16)

    assert fields(Function(written, **CONV), 16)["out"] == ReceptiveField((3, 3), (1, 1), (-1, -1))


def test_a_second_name_of_a_shared_module_stands_for_the_first() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.alias = self.conv

        def forward(self, x: Tensor) -> Tensor:
            return self.alias(x).mean((2, 3))

    net, x = Shared().eval(), torch.rand(1, 3, 8, 8)
    assert survey(net, x).resolve("alias") == "conv"
    first, second = (cnnviz.explain(net, x, "grad-cam", target=0, layer=name) for name in ("conv", "alias"))
    assert first.values.equal(second.values)


def test_inference_mode_hides_nothing() -> None:
    """In place, where the type of the numbers decides: once without values, once with."""
    plain = Net().eval()
    valued = Function(lambda net, x: net.conv(x) if float(x.sum()) >= 0 else x, conv=nn.Conv2d(3, 4, 3)).eval()
    for net in (plain, valued):
        expected = survey(net, torch.zeros(1, 3, 16, 16), fields=True)
        with torch.inference_mode():
            found = survey(net, torch.zeros(1, 3, 16, 16), fields=True)
            listed = layers(net, torch.zeros(1, 3, 16, 16))
        assert found == expected
        assert listed == list(expected.layers)
