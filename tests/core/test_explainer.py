"""From model, inputs and a technique to an explanation: what is taken, what is refused, what is recorded."""

from __future__ import annotations

import copy
import functools
import json
import platform
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import cnnviz
from cnnviz import (
    CnnvizError,
    Explainer,
    Gallery,
    Heatmap,
    InputError,
    LayerError,
    Model,
    ModelError,
    OptionError,
    PluginError,
    Preprocess,
    Request,
    TargetError,
    Technique,
    explain,
)

# The network here is in training mode, to see that it is left so; what is said of that has a test of its own.
pytestmark = pytest.mark.filterwarnings("ignore:the model is in training mode")

CLASSES = 5


class Net(nn.Module):
    """Two convolutions, a reused ReLU, normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.deep = nn.Conv2d(4, 6, 3, stride=2)
        self.drop = nn.Dropout(0.5)
        self.unused = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        x = self.relu(self.deep(x))
        return self.head(self.drop(x).mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    made = Net().double()
    made.norm.running_mean.uniform_(-0.5, 0.5)
    return made.eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 3, 10, 12, dtype=torch.float64)


def close(mine: Tensor, theirs: Tensor) -> bool:
    return bool((mine - theirs).abs().max() <= 1e-9 * theirs.abs().max())


# The techniques that take inputs, small enough for the inputs above.
TECHNIQUES: dict[str, dict[str, Any]] = {
    "saliency": {"samples": 2, "noise": 0.1},
    "deconvnet": {},
    "guided-backprop": {},
    "grad-cam": {},
    "occlusion": {"window": 4, "stride": 3},
    "activations": {},
}
each_technique = pytest.mark.parametrize(("technique", "options"), TECHNIQUES.items(), ids=TECHNIQUES.keys())


# ---------------------------------------------------------------- inputs that are refused


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\) float32 on cpu, expected float \(N, C, H, W\).*inputs\[None\]"),
        (torch.zeros(8, 8), r"\(8, 8\).*expected float \(N, C, H, W\)"),
        (torch.zeros(1, 3, 2, 8, 8), r"\(1, 3, 2, 8, 8\).*expected float \(N, C, H, W\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"uint8.*expected floating point.*normalise as in training"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.complex64), r"complex64.*expected floating point"),
        (torch.zeros(0, 3, 8, 8), r"at least one sample"),
        (torch.zeros(1, 3, 0, 8), r"at least one pixel"),
        (torch.zeros(1, 3, 8, 8), r"float32 on cpu, but the model's weights are float64.*inputs.to\(torch.float64\)"),
        (torch.zeros(1, 3, 8, 8, device="meta").double(), r"on meta, but the model's weights.*inputs.to\('cpu'\)"),
        (torch.zeros(1, 7, 8, 8).double(), r"Net cannot run on inputs of shape \(1, 7, 8, 8\)"),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)], r"different sizes \(3, 8, 8\), \(3, 9, 9\).*torch.stack"),
        ([torch.zeros(3, 8, 8)] * 2, r"list of 2 tensors.*torch.stack"),
        ([], r"empty list, expected at least one picture"),
        (3, r"got int 3, expected a tensor \(N, C, H, W\), a path"),
        (numpy.zeros((1, 3, 8, 8)), r"got ndarray(.|\n)*expected a tensor"),
        (["a.png", 3], r"got int 3, expected a tensor|a.png' does not exist"),
        (None, r"'saliency' needs inputs; give a tensor"),
    ],
)
def test_inputs_that_cannot_be_explained_are_told(net: nn.Module, inputs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        explain(net, inputs, "saliency")


def test_picture_for_a_bare_module_is_told(net: nn.Module) -> None:
    with pytest.raises(InputError, match=r"no preprocessing.*preprocess=cnnviz.Preprocess"):
        explain(net, Image.new("RGB", (8, 8)), "saliency")


def test_missing_picture_is_told(described: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing.png' does not exist"):
        explain(described, tmp_path / "nothing.png", "saliency")


@pytest.mark.parametrize("technique", ["saliency", "occlusion", "grad-cam", "activations"])
def test_numbers_that_are_not_finite_are_told(net: nn.Module, x: Tensor, technique: str) -> None:
    x[1, 0, 3, 3] = float("nan")
    with pytest.raises(InputError, match=r"(sample 1 is nan|not finite).*NaN or huge values"):
        explain(net, x, technique, target=1, **({"window": 4} if technique == "occlusion" else {}))


def test_weights_that_are_not_finite_are_told(net: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        net.head.bias[1] = float("inf")
    with pytest.raises(InputError, match=r"score of sample 0 is inf"):
        explain(net, x, "saliency")


def test_inputs_for_a_technique_that_takes_none_are_told(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(InputError, match=r"'filters' takes no inputs, got a tensor \(3, 3, 10, 12\); give None"):
        explain(net, x, "filters")


class Outputs(nn.Module):
    """A network that returns what a function makes of its maps."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).double()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.conv(x))


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda maps: {"out": maps}, r"a dict with 'out' \(3, 4, 8, 10\).*output\['out'\]"),
        (lambda maps: (maps, maps), r"a tuple of \(3, 4, 8, 10\).*output\[0\]"),
        (lambda maps: maps, r"a tensor \(3, 4, 8, 10\).*callable"),
    ],
    ids=["dict", "tuple", "maps"],
)
def test_output_that_holds_no_classes_is_told(
    x: Tensor, make: Callable[[Tensor], Any], words: str, target: int | None
) -> None:
    with pytest.raises(TargetError, match=words):
        explain(Outputs(make), x, "saliency", target=target)


def test_callable_reduces_any_output(x: Tensor) -> None:
    as_dict = explain(Outputs(lambda m: {"out": m}), x, "saliency", target=lambda o: o["out"][:, 2].mean((1, 2)))
    assert as_dict.values.shape == (3, 1, 10, 12)
    assert as_dict.target is None


@pytest.mark.parametrize("make", [lambda maps: (maps > 0).double(), lambda maps: maps.detach()], ids=["step", "detach"])
def test_output_without_gradient_is_told(x: Tensor, make: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CnnvizError, match="gradient"):
        explain(Outputs(lambda maps: make(maps).mean((2, 3))), x, "saliency", target=1)


# ---------------------------------------------------------------- everything else that is refused


def test_model_by_name_is_told(x: Tensor) -> None:
    with pytest.raises(ModelError, match=r"got str 'resnet18', expected an nn.Module.*cnnviz.load_model"):
        explain("resnet18", x, "saliency")


@pytest.mark.parametrize("technique", ["saliency", "grad-cam", "activations", "filters"])
def test_missing_model_is_told(x: Tensor, technique: str) -> None:
    with pytest.raises(ModelError, match=r"model.*give one as the first argument"):
        explain(None, None if technique == "filters" else x, technique)


def instance_forward() -> nn.Module:
    made = nn.Conv2d(3, 4, 1)
    made.forward = functools.partial(nn.Conv2d.forward, made)
    return made


def inference_born() -> nn.Module:
    with torch.inference_mode():
        return nn.Conv2d(3, 4, 1)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        # torch deprecates TorchScript, which users still bring.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.script(nn.Conv2d(3, 4, 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (instance_forward, "replaced on the instance"),
        (inference_born, "inference_mode"),
        (scripted, "TorchScript"),
        pytest.param(
            lambda: nn.Sequential(nn.LazyConv2d(3, 1)),
            "no shape yet",
        ),
    ],
    ids=["instance forward", "inference mode", "TorchScript", "lazy"],
)
def test_model_that_cannot_be_borrowed_is_refused_at_once(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Explainer(make(), "saliency")


def test_unknown_technique_says_the_nearest(net: nn.Module) -> None:
    with pytest.raises(PluginError, match="no technique 'gradcam'; nearest: 'grad-cam'"):
        Explainer(net, "gradcam")


def test_unknown_option_is_told_at_once(net: nn.Module) -> None:
    with pytest.raises(OptionError, match=r"unknown option 'windw' of 'occlusion'; nearest: 'window'"):
        Explainer(net, "occlusion", windw=4)


def test_option_out_of_range_is_told_at_once(net: nn.Module) -> None:
    with pytest.raises(OptionError, match=r"option 'samples' of 'saliency': got 0, expected a whole number"):
        Explainer(net, "saliency", samples=0)


def test_window_larger_than_the_image_is_told(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(OptionError, match=r"'window' of 'occlusion': got \(11, 4\).*\(10, 12\)"):
        explain(net, x, "occlusion", window=(11, 4))


@pytest.mark.parametrize("seed", [-1, 1.5, True, 2**63, "1", None])
def test_seed_that_is_no_number_is_told(net: nn.Module, x: Tensor, seed: Any) -> None:
    with pytest.raises(OptionError, match=r"seed: got .*a whole number from 0"):
        explain(net, x, "saliency", seed=seed)


@pytest.mark.parametrize(
    ("technique", "layer", "words"),
    [
        ("grad-cam", "dep", r"no layer 'dep' in Net; nearest: 'deep'"),
        ("grad-cam", "unused", r"'unused' is never called"),
        ("grad-cam", "relu#2", r"'relu' is called 2 times, so its last call is #1"),
        ("grad-cam", "head", r"layer .head. returns a tensor \(3, 5\), expected maps"),
        ("grad-cam", ["deep", "dep"], r"no layer 'dep'"),
        ("grad-cam", [3], r"layer: got 3, expected a dotted module name"),
        ("saliency", "deep", r"'saliency' takes no layer, got 'deep'"),
        ("activations", ["conv", "deep"], r"'activations' takes one layer, got 'conv', 'deep'"),
    ],
)
def test_layer_that_does_not_fit_is_told(net: nn.Module, x: Tensor, technique: str, layer: Any, words: str) -> None:
    with pytest.raises(LayerError, match=words):
        explain(net, x, technique, layer=layer)


def test_wrong_layer_is_told_before_any_input(net: nn.Module) -> None:
    with pytest.raises(LayerError, match="no layer 'dep'"):
        Explainer(net, "grad-cam", layer="dep")


def test_network_without_maps_asks_for_a_layer(x: Tensor) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(360, 2)).double()
    with pytest.raises(LayerError, match=r"no layer of this model returns a map.*layer=…"):
        explain(flat, x, "grad-cam")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (5, "class 5 is out of range: the model has classes 0 to 4"),
        (-1, "class -1 is out of range"),
        ("cat", "no labels; give a class index"),
        ([0, 1], "got 2 targets for 3 inputs"),
        (1.5, "expected a class index"),
    ],
)
def test_target_that_does_not_fit_is_told(net: nn.Module, x: Tensor, target: Any, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        explain(net, x, "saliency", target=target)


@pytest.mark.parametrize("arguments", [{"technique": None}, {"technique": "grad-cam", "layer": 3}], ids=str)
def test_arguments_of_the_wrong_type_are_told(net: nn.Module, x: Tensor, arguments: dict[str, Any]) -> None:
    with pytest.raises(CnnvizError):
        explain(net, x, **arguments)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda request: None, "returned NoneType None, expected a tensor or an explanation"),
        (lambda request: request.inputs[0], r"returned a tensor \(3, 10, 12\), expected \(N, C, h, w\)"),
        (lambda request: request.inputs[:, :0], r"returned a tensor \(\d+, 0, 10, 12\), expected \(N, C, h, w\)"),
        (
            lambda request: cnnviz.Gallery(images=torch.rand(2, 4, 5, 5)),
            r"returned a tensor \(2, 4, 5, 5\), expected pictures \(M, 3, h, w\)",
        ),
        (lambda request: request.inputs[:1], "a row for each sample"),
        (lambda request: request.inputs > 0, r"returned values of type torch\.bool, expected floating point"),
        (lambda request: request.inputs.long(), r"returned values of type torch\.int64, expected floating point"),
        (lambda request: request.inputs * 1j, r"returned values of type torch\.complex\d+, expected floating point"),
        (
            lambda request: cnnviz.Gallery(images=torch.ones(2, 3, 5, 5, dtype=torch.uint8)),
            r"returned values of type torch\.uint8, expected floating point",
        ),
    ],
)
def test_technique_that_returns_something_else_is_told(
    net: nn.Module, x: Tensor, result: Callable[[Request], Any], words: str
) -> None:
    with pytest.raises(PluginError, match=rf"technique 'odd' {words}|'odd'.*{words}"):
        explain(net, x, Technique("odd", lambda request, options: result(request)))


# ---------------------------------------------------------------- targets


def test_each_sample_may_have_its_own_class(net: nn.Module, x: Tensor) -> None:
    together = explain(net, x, "saliency", target=[0, 3, 2])
    for row, target in enumerate([0, 3, 2]):
        assert close(together.values[row], explain(net, x[row : row + 1], "saliency", target=target).values[0])
    assert together.target.tolist() == [0, 3, 2]
    assert close(together.scores, net(x)[[0, 1, 2], [0, 3, 2]].detach())


def test_class_may_be_named(net: nn.Module, x: Tensor) -> None:
    labelled = Model(net, labels=("cat", "dog", "fish", "bird", "bee"))
    found = explain(labelled, x, "saliency", target="fish")
    assert found.target.tolist() == [2, 2, 2]
    assert found.provenance.target == "class 2 fish"
    assert "fish" in found.captions[0]
    with pytest.raises(TargetError, match="no label 'fsh' among the model's 5; nearest: 'fish'"):
        explain(labelled, x, "saliency", target="fsh")


def test_top_class_is_resolved_on_the_unmodified_inputs(net: nn.Module, x: Tensor) -> None:
    top = net(x).argmax(1)
    noisy = explain(net, x, "saliency", samples=3, noise=10.0)
    assert torch.equal(noisy.target, top)
    assert torch.equal(explain(net, x, "occlusion", window=9, stride=1).target, top)
    assert close(noisy.scores, net(x).amax(1).detach())


def test_callable_may_treat_the_output_as_it_likes(net: nn.Module, x: Tensor) -> None:
    found = explain(net, x, "grad-cam", target=lambda output: output[:, 0] - output[:, 1])
    assert found.target is None
    assert close(found.scores, (net(x)[:, 0] - net(x)[:, 1]).detach())
    assert found.provenance.target.startswith("callable")


# ---------------------------------------------------------------- what comes back


@each_technique
def test_batch_equals_its_samples_alone(net: nn.Module, x: Tensor, technique: str, options: dict[str, Any]) -> None:
    together = explain(net, x, technique, **options)
    for row in range(len(x)):
        alone = explain(net, x[row : row + 1], technique, **options)
        assert close(alone.values[0], together.values[row])


@each_technique
def test_same_seed_gives_the_same_bits(net: nn.Module, x: Tensor, technique: str, options: dict[str, Any]) -> None:
    explainer = Explainer(net, technique, **options)
    first = explainer(x, seed=3)
    torch.rand(7)  # what the global generator does in between is of no interest
    assert explainer(x, seed=3).equals(first)
    assert explain(net, x, technique, seed=3, **options).equals(first)


def test_another_seed_draws_other_numbers(net: nn.Module, x: Tensor) -> None:
    explainer = Explainer(net, "saliency", samples=2, noise=0.1)
    assert not torch.equal(explainer(x, seed=1).values, explainer(x, seed=2).values)


def test_every_sample_sees_the_same_random_numbers(net: nn.Module, x: Tensor) -> None:
    twins = x[:1].repeat(3, 1, 1, 1)
    found = explain(net, twins, "saliency", samples=2, noise=0.1).values
    assert close(found[1:], found[:1].expand(2, -1, -1, -1))


def test_maps_are_resized_to_the_inputs_unless_told_otherwise(net: nn.Module, x: Tensor) -> None:
    assert explain(net, x, "grad-cam").values.shape == (3, 1, 10, 12)
    assert explain(net, x, "grad-cam", upsample=None).values.shape == (3, 1, 4, 5)


def test_several_layers_are_fused_by_their_mean(net: nn.Module, x: Tensor) -> None:
    both = explain(net, x, "grad-cam", layer=["conv", "deep"], target=1)
    single = [explain(net, x, "grad-cam", layer=layer, target=1).values for layer in ("conv", "deep")]
    assert close(both.values, torch.stack(single).mean(0))
    assert both.provenance.layer == ["conv", "deep"]


def test_several_layers_of_different_sizes_need_resizing(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(OptionError, match=r"upsample=None.*different sizes.*\(1, 10, 12\), \(1, 4, 5\)"):
        explain(net, x, "grad-cam", layer=["conv", "deep"], upsample=None)


def test_captions_tell_technique_layer_class_and_score(net: nn.Module, x: Tensor) -> None:
    found = explain(net, x, "grad-cam", target=2)
    assert len(found.captions) == 3
    assert found.captions[1] == f"grad-cam at relu#1: class 2, score {net(x)[1, 2].item():.4g}"


def test_technique_without_inputs_returns_its_gallery(net: nn.Module) -> None:
    found = explain(net, None, "filters")
    assert isinstance(found, Gallery)
    assert torch.equal(found.values, net.conv.weight.detach())
    assert found.pictures is None
    assert found.provenance.layer == "conv"


def test_own_technique_needs_no_registration(net: nn.Module, x: Tensor) -> None:
    found = explain(net, x, Technique("own", lambda request, options: request.inputs[:, :1] * 2))
    assert isinstance(found, Heatmap)
    assert torch.equal(found.values, x[:, :1] * 2)
    assert found.scores is None
    assert found.provenance.distribution is None


# ---------------------------------------------------------------- pictures


@pytest.fixture
def described() -> Model:
    preprocess = Preprocess(resize=20, crop=(16, 16), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    return Model(Net().eval(), preprocess=preprocess, labels=("cat", "dog", "fish", "bird", "bee"))


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    noise = numpy.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=numpy.uint8)
    Image.fromarray(noise).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


def test_pictures_come_as_path_image_or_list(described: Model, photograph: Path) -> None:
    explainer = Explainer(described, "saliency")
    expected = explainer(described.prepare([Image.open(photograph)]), 1)
    for inputs in (photograph, str(photograph), Image.open(photograph), [photograph], (str(photograph),)):
        assert explainer(inputs, 1).equals(expected)
    assert explainer([photograph, Image.open(photograph)], 1).values.shape == (2, 1, 16, 16)


def test_pictures_shown_are_what_the_network_sees(described: Model, photograph: Path) -> None:
    found = explain(described, photograph, "saliency")
    seen = described.preprocess.picture(Image.open(photograph).convert("RGB"))
    expected = torch.from_numpy(numpy.array(seen)).permute(2, 0, 1).float() / 255
    assert found.pictures.shape == (1, 3, 16, 16)
    torch.testing.assert_close(found.pictures[0], expected, rtol=0, atol=1e-6)


def test_pictures_of_bare_tensors_are_stretched(net: nn.Module, x: Tensor) -> None:
    pictures = explain(net, x * 100 - 50, "saliency").pictures
    assert pictures.shape == (3, 3, 10, 12)
    assert pictures.amin((1, 2, 3)).tolist() == [0, 0, 0]
    assert pictures.amax((1, 2, 3)).tolist() == [1, 1, 1]


# ---------------------------------------------------------------- provenance


def test_provenance_says_how_the_result_was_made(net: nn.Module, x: Tensor) -> None:
    found = explain(net, x, "grad-cam", target=[0, 3, 2], seed=7, memory="2GiB", relu=False).provenance
    assert found.technique == "grad-cam"
    assert (found.distribution, found.version) == ("cnnviz", cnnviz.__version__)
    assert found.options == {"relu": False, "upsample": "bilinear"}
    assert found.target == "class 0, 3, 2"
    assert found.layer == "relu#1"
    assert found.model == "Net"
    assert (found.seed, found.memory) == (7, 2 << 30)
    assert (found.batch_sizes, found.out_of_memory) == ([3], 0)
    assert (found.device, found.dtype) == ("cpu", "torch.float64")
    assert found.versions == {
        "cnnviz": cnnviz.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    assert 0 < found.seconds < 60
    assert found.hooks_left_out == 0
    json.dumps(found.to_json())


def test_layer_is_recorded_by_its_full_name(net: nn.Module, x: Tensor) -> None:
    assert explain(net, x, "grad-cam", layer="relu").provenance.layer == "relu#1"
    assert explain(net, x, "grad-cam", layer="relu#0").provenance.layer == "relu#0"
    assert explain(net, x, "grad-cam", layer="deep").provenance.layer == "deep"
    assert explain(net, x, "saliency").provenance.layer is None


def test_target_that_nothing_was_made_of_is_not_recorded(net: nn.Module, x: Tensor) -> None:
    found = explain(net, x, "activations", layer="conv")
    assert found.provenance.target is None
    assert found.scores is None


def test_fingerprints_tell_models_and_inputs_apart(net: nn.Module, x: Tensor) -> None:
    first = explain(net, x, "saliency").provenance
    again = explain(copy.deepcopy(net), x.clone(), "saliency").provenance
    assert first.model_fingerprint == again.model_fingerprint
    assert first.input_fingerprint == again.input_fingerprint
    assert explain(net, x + 1, "saliency").provenance.input_fingerprint != first.input_fingerprint
    assert explain(Net().double(), x, "saliency").provenance.model_fingerprint != first.model_fingerprint


def test_hooks_that_are_left_out_are_counted(net: nn.Module, x: Tensor) -> None:
    called = []
    net.conv.register_forward_hook(lambda *_: called.append(1))
    net.deep.register_forward_pre_hook(lambda *_: called.append(1))
    assert explain(net, x, "saliency").provenance.hooks_left_out == 2
    assert not called


# ---------------------------------------------------------------- progress


@each_technique
@pytest.mark.parametrize("memory", ["1MiB", "1GiB"])
def test_progress_goes_on_to_the_end(technique: str, options: dict[str, Any], memory: str) -> None:
    told: list[tuple[int, int]] = []
    x = torch.rand(3, 3, 40, 40)
    wide = options | {"window": 20, "stride": 10} if technique == "occlusion" else options
    explain(Net(), x, technique, memory=memory, progress=lambda done, total: told.append((done, total)), **wide)
    shares = [done / total for done, total in told]
    assert shares == sorted(shares)
    assert shares[0] >= 0
    assert shares[-1] == 1
    assert shares.count(1) <= 2


def test_progress_is_told_over_several_layers(net: nn.Module, x: Tensor) -> None:
    told: list[float] = []
    explain(net, x, "grad-cam", layer=["conv", "deep"], progress=lambda done, total: told.append(done / total))
    assert told == sorted(told)
    assert told[-1] == 1


def test_progress_is_told_without_inputs(net: nn.Module) -> None:
    told: list[tuple[int, int]] = []
    explain(net, None, "filters", progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]


class CancelledError(Exception):
    """What a caller raises to cancel."""


@each_technique
def test_progress_may_cancel_and_leaves_everything_as_it_was(
    net: nn.Module, x: Tensor, technique: str, options: dict[str, Any]
) -> None:
    net.train()
    net.conv.weight.grad = torch.ones_like(net.conv.weight)
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()

    def cancel(done: int, total: int) -> None:
        raise CancelledError

    explainer = Explainer(net, technique, **options)
    with pytest.raises(CancelledError):
        explainer(x, progress=cancel)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(part.training for part in net.modules())
    assert all(p.requires_grad for p in net.parameters())
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["conv.weight"]
    assert torch.is_grad_enabled()
    assert explainer(x).equals(explain(net, x, technique, **options))


# ---------------------------------------------------------------- a model that changes between calls


@torch.no_grad()
def write(net: nn.Module) -> None:
    net.head.weight.mul_(-2)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "weights in place": write,
    "weights through .data": lambda net: net.head.weight.data.mul_(3),
    "weights loaded": lambda net: net.load_state_dict(Net().double().state_dict()),
    "another parameter": lambda net: setattr(net.head, "weight", nn.Parameter(-2 * net.head.weight.detach())),
    "a buffer": lambda net: net.norm.running_var.mul_(4),
    "another module": lambda net: setattr(net, "relu", nn.LeakyReLU(0.5)),
    "a weight's data": lambda net: setattr(net.head.weight, "data", 3 * net.head.weight.data),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_next_call_notices(net: nn.Module, x: Tensor, change: Callable[[nn.Module], object]) -> None:
    explainer = Explainer(net, "saliency")
    before = explainer(x, 1)
    change(net)
    after = explainer(x, 1)
    assert not torch.equal(after.values, before.values)
    assert torch.equal(after.values, explain(net, x, "saliency", target=1).values)


@pytest.mark.parametrize("change", ["weights in place", "another parameter", "a buffer"])
def test_fingerprint_follows(net: nn.Module, x: Tensor, change: str) -> None:
    explainer = Explainer(net, "saliency")
    before = explainer(x, 1).provenance.model_fingerprint
    CHANGES[change](net)
    assert explainer(x, 1).provenance.model_fingerprint != before
    assert explainer(x, 1).provenance == explain(net, x, "saliency", target=1).provenance


def test_layers_are_looked_up_anew_when_a_module_was_exchanged(net: nn.Module, x: Tensor) -> None:
    explainer = Explainer(net, "grad-cam")
    assert explainer(x).provenance.layer == "relu#1"
    net.relu = nn.Identity()
    assert explainer(x).provenance.layer == "deep"


SILENT: dict[str, Callable[[nn.Module], object]] = {
    "an attribute": lambda net: setattr(net.deep, "stride", (1, 1)),
    "a buffer": lambda net: net.norm.running_var.mul_(4),
}


@pytest.mark.parametrize("change", SILENT.values(), ids=SILENT.keys())
def test_next_call_notices_what_leaves_no_trace(
    net: nn.Module, x: Tensor, change: Callable[[nn.Module], object]
) -> None:
    explainer = Explainer(net, "saliency")
    explainer(x, 1)
    change(net)
    assert torch.equal(explainer(x, 1).values, explain(net, x, "saliency", target=1).values)


class Growing(Net):
    """Counts its calls, and multiplies its scores by the count."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


def test_model_that_keeps_state_is_not_changed(x: Tensor) -> None:
    net = Growing().double()
    explain(net, x, "saliency", target=1)
    assert net.calls == 0


def test_model_that_keeps_state_gives_the_same_each_time(x: Tensor) -> None:
    explainer = Explainer(Growing().double(), "saliency")
    assert torch.equal(explainer(x, 1).values, explainer(x, 1).values)


class Counting(nn.Module):
    """Runs its ReLU as often as the input's values say."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.head = nn.Linear(3, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.detach().max())):
            x = self.relu(x * 1.5)
        return self.head(x.mean((2, 3)))


CHANNEL: dict[str, Any] = {"target": cnnviz.channel("relu", 0)}
LAYER: dict[str, Any] = {"layer": "relu", "target": 1}


@pytest.mark.parametrize(
    ("technique", "arguments", "first", "second"),
    [
        ("saliency", CHANNEL, 1.0, 3.0),
        ("activations", LAYER, 1.0, 3.0),
        ("activations", LAYER, 3.0, 1.0),
        ("grad-cam", LAYER, 1.0, 3.0),
        ("grad-cam", LAYER, 3.0, 1.0),
    ],
)
def test_last_call_is_the_last_of_each_input(
    technique: str, arguments: dict[str, Any], first: float, second: float
) -> None:
    net, fresh = Counting(), Counting()
    fresh.load_state_dict(net.state_dict())
    images = [torch.full((1, 3, 4, 4), value, dtype=torch.float64) for value in (first, second)]
    explain(net, images[0], technique, **arguments)
    assert explain(net, images[1], technique, **arguments).equals(explain(fresh, images[1], technique, **arguments))


# ---------------------------------------------------------------- random numbers


class Stochastic(Net):
    """Draws random numbers in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * (1 + torch.rand_like(x)))


@pytest.fixture
def stochastic() -> nn.Module:
    return Stochastic().double().eval()


@each_technique
def test_stochastic_model_leaves_the_global_generator(
    stochastic: nn.Module, x: Tensor, technique: str, options: dict[str, Any]
) -> None:
    before = torch.get_rng_state()
    explain(stochastic, x, technique, **options)
    assert torch.equal(torch.get_rng_state(), before)


def test_stochastic_model_draws_from_the_seed(stochastic: nn.Module, x: Tensor) -> None:
    explainer = Explainer(stochastic, "saliency")
    first = explainer(x, 1, seed=1)
    torch.rand(5)
    assert explainer(x, 1, seed=1).equals(first)
    assert not torch.equal(explainer(x, 1, seed=2).values, first.values)


class Dimmed(Net):
    """Draws one number for all inputs, which even a pass without values does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * torch.rand(()))


@pytest.mark.parametrize("kind", [Stochastic, Dimmed])
@pytest.mark.parametrize(
    ("technique", "options"),
    {"saliency": {}, "rise": {"masks": 20}, "score-cam": {}, "occlusion": {"window": 4, "stride": 2}}.items(),
)
def test_stochastic_model_gives_the_same_in_every_call(
    kind: type[nn.Module], x: Tensor, technique: str, options: dict[str, Any]
) -> None:
    """Also where the first call tried something out on the model that later ones know."""
    net = kind().eval()
    first, *others = (explain(net, x.float(), technique, target=1, **options) for _ in range(3))
    for other in others:
        assert torch.equal(other.values, first.values)


def test_stochastic_model_leaves_the_generator_after_an_exception(stochastic: nn.Module, x: Tensor) -> None:
    before = torch.get_rng_state()
    with pytest.raises(TargetError):
        explain(stochastic, x, "saliency", target=99)
    assert torch.equal(torch.get_rng_state(), before)


def test_stochastic_model_on_the_cpu_leaves_the_generators_of_gpus(
    stochastic: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    explain(stochastic, x, "saliency", target=1)
    assert not seeded


def test_numbers_are_drawn_without_touching_the_global_generator(net: nn.Module, x: Tensor) -> None:
    before = torch.get_rng_state()
    explain(net, x, "saliency", samples=3, noise=0.2)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- callers of all kinds


class Rectifying(Net):
    """Begins with an in-place operation on its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).relu_())


@each_technique
def test_inputs_are_left_alone(x: Tensor, technique: str, options: dict[str, Any]) -> None:
    before = x.clone()
    x.requires_grad_()
    explain(Rectifying().double().eval(), x, technique, **options)
    assert torch.equal(x, before)
    assert x.requires_grad
    assert x.grad is None
    assert x._version == 0 or torch.equal(x.detach(), before)


@each_technique
def test_network_that_begins_in_place_is_explained_as_its_twin(
    x: Tensor, technique: str, options: dict[str, Any]
) -> None:
    class Outside(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x - 0.5).relu())

    inside, outside = Rectifying().double().eval(), Outside().double().eval()
    outside.load_state_dict(inside.state_dict())
    mine, theirs = (explain(net, x, technique, **options) for net in (inside, outside))
    assert close(mine.values, theirs.values)


@pytest.fixture(params=["no_grad", "inference_mode", "set_grad_enabled"])
def without_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    modes = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "set_grad_enabled": lambda: torch.set_grad_enabled(False),
    }
    with modes[request.param]():
        yield


@each_technique
@pytest.mark.usefixtures("without_gradients")
def test_callers_without_gradients_get_the_same(technique: str, options: dict[str, Any]) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        net, plain = Net().double(), torch.rand(2, 3, 10, 12, dtype=torch.float64)
        expected = explain(net, plain, technique, **options)
    got = explain(net, plain.clone(), technique, **options)
    assert got.equals(expected)
    assert not torch.is_grad_enabled()
    assert not got.values.is_inference()


@each_technique
def test_frozen_model_in_training_mode_is_explained_in_eval_mode(
    net: nn.Module, x: Tensor, technique: str, options: dict[str, Any]
) -> None:
    expected = explain(net, x, technique, **options)
    net.train().requires_grad_(False)
    assert explain(net, x, technique, **options).equals(expected)
    assert net.training


def test_wrapped_model_is_explained_as_what_it_wraps(net: nn.Module, x: Tensor) -> None:
    expected = explain(net, x, "grad-cam")
    assert explain(nn.DataParallel(net), x, "grad-cam").equals(expected)


def test_results_carry_no_graph(net: nn.Module, x: Tensor) -> None:
    found = explain(net, x, "grad-cam")
    assert not any(tensor.requires_grad for tensor in found.tensors().values())


def test_model_without_weights_takes_any_dtype() -> None:
    net = nn.Sequential(nn.ReLU(), nn.AvgPool2d(4), nn.Flatten())
    for dtype in (torch.float32, torch.float64):
        found = explain(net, torch.rand(2, 3, 4, 4, dtype=dtype), "guided-backprop", target=1)
        assert found.values.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_explained_in_half_precision(net: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    found = explain(net.to(dtype), x.to(dtype), "grad-cam", target=1)
    assert found.values.dtype == dtype
    assert found.provenance.dtype == str(dtype)


def test_threads_on_one_explainer_get_what_each_gets_alone(net: nn.Module) -> None:
    explainer = Explainer(net, "guided-backprop")
    pictures = [torch.rand(2, 3, 10, 12, dtype=torch.float64) for _ in range(8)]
    alone = [explainer(picture, 1) for picture in pictures]
    start = threading.Barrier(4, timeout=30)

    def work(number: int) -> list[bool]:
        start.wait()
        return [explainer(pictures[i], 1).equals(alone[i]) for i in (number, number + 4)]

    with ThreadPoolExecutor(4) as pool:
        assert all(all(same) for same in pool.map(work, range(4)))


def test_threads_with_different_techniques_share_a_model(net: nn.Module, x: Tensor) -> None:
    expected = {name: explain(net, x, name, **options) for name, options in TECHNIQUES.items()}
    with ThreadPoolExecutor(4) as pool:
        jobs = {name: pool.submit(explain, net, x, name, **options) for name, options in TECHNIQUES.items()}
        assert all(job.result().equals(expected[name]) for name, job in jobs.items())


def test_threads_on_a_stochastic_model_draw_from_their_own_seeds(stochastic: nn.Module, x: Tensor) -> None:
    explainer = Explainer(stochastic, "saliency")
    alone = [explainer(x, 1, seed=seed) for seed in range(4)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: explainer(x, 1, seed=seed), range(4)))
    assert all(mine.equals(theirs) for mine, theirs in zip(together, alone, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


class Decides(nn.Module):
    """Looks at values, and then writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 1:
            x.div_(255)
        return self.conv(x).relu().mean((2, 3))


def test_a_network_that_looks_at_values_does_not_write_to_the_samples() -> None:
    net, x = Decides().eval(), torch.rand(2, 3, 8, 8) * 255
    before = x.clone()
    made = explain(net, x, "saliency", target=0)
    cnnviz.layers(net, x)
    assert torch.equal(x, before)
    assert close(made.values, explain(net, x / 255, "saliency", target=0).values / 255)


class Doubled(nn.Module):
    """Returns twice as many rows as it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat([x, x.flip(3)])).mean((2, 3))


class OneByOne(Doubled):
    """Calls its convolution once for each sample."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(one[None]).mean((2, 3)) for one in x])


@pytest.mark.parametrize(
    ("kind", "target", "told"),
    [
        (Doubled, 1, "the model returns 4 rows for 2 inputs"),
        (Doubled, None, "the model returns 4 rows for 2 inputs"),
        (Doubled, cnnviz.channel("conv", 0), "layer 'conv' returns 4 rows for 2 inputs"),
        (Doubled, [cnnviz.channel("conv", 0), cnnviz.channel("conv", 1)], "layer 'conv' returns 4 rows for 2 inputs"),
        (OneByOne, cnnviz.channel("conv", 0), "layer 'conv' returns 1 rows for 2 inputs"),
    ],
)
@pytest.mark.parametrize("technique", ["saliency", "occlusion"])
def test_rows_that_are_not_the_samples_are_refused(
    technique: str, kind: type[nn.Module], target: Any, told: str
) -> None:
    options = {"window": 4, "stride": 4} if technique == "occlusion" else {}
    with pytest.raises(TargetError, match=told):
        explain(kind().eval(), torch.rand(2, 3, 8, 8), technique, target=target, **options)


@pytest.mark.parametrize("held", [list, lambda tensors: dict(enumerate(tensors))])
def test_tensors_in_a_list_or_a_dictionary_are_noticed_when_they_change(held: Callable[..., Any]) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.scales = nn.Linear(12, 2), held([torch.tensor(1.0)])

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1)) * self.scales[0]

    net, x = Scaled().eval(), torch.rand(1, 3, 2, 2)
    explainer = Explainer(net, "saliency")
    before = explainer(x, 0).values
    net.scales[0].mul_(5)
    assert close(explainer(x, 0).values, 5 * before)


@pytest.mark.parametrize("layer", [["0", "0#0", "2"], ["0", "2", "0"]])
def test_a_layer_is_named_once(layer: list[str]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(LayerError, match="layer '0' is named more than once"):
        explain(net.eval(), torch.rand(1, 3, 9, 9), "grad-cam", target=0, layer=layer)


def test_layers_inside_an_inner_wrapper_go_by_their_own_names() -> None:
    class Outer(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part, self.head = part, nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.part(x).mean((2, 3)))

    plain = Outer(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())).eval()
    wrapped, x = Outer(nn.DataParallel(plain.part)).eval(), torch.rand(1, 3, 8, 8)
    wrapped.head = plain.head
    assert [layer.name for layer in cnnviz.layers(wrapped, x)] == [layer.name for layer in cnnviz.layers(plain, x)]
    given = {"technique": "grad-cam", "target": 0, "layer": "part.0"}
    assert explain(wrapped, x, **given).values.equal(explain(plain, x, **given).values)
    assert explain(wrapped, x, **(given | {"layer": "part.module.0"})).equals(explain(wrapped, x, **given))
    assert explain(wrapped, None, "filters").images.equal(explain(plain, None, "filters").images)
    with pytest.raises(LayerError, match=r"no layer 'part\.O' in Outer.*'part\.0'"):
        explain(wrapped, x, "grad-cam", target=0, layer="part.O")


@pytest.mark.parametrize("technique", ["deep-dream", "class-visualization", "feature-inversion"])
def test_pictures_of_networks_with_other_channels_are_refused(technique: str) -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    given = None if technique == "class-visualization" else torch.rand(1, 4, 32, 32)
    with pytest.raises(InputError, match="pictures have 1 or 3 channels, and the network takes 4"):
        explain(net, given, technique, **({"target": 0} if given is None else {"layer": "0"}))


def test_four_channels_with_a_preprocessing_are_explained() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    model, x = cnnviz.load_model(net, preprocess=Preprocess(mean=(0.5,) * 4, std=(0.5,) * 4)), torch.rand(1, 4, 9, 9)
    made = explain(model, x, "saliency", target=0)
    assert made.values.equal(explain(net, x, "saliency", target=0).values)
    assert made.pictures is not None
    assert made.pictures.shape == (1, 3, 9, 9)


def test_a_class_beyond_all_numbers_is_refused(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(TargetError, match="class 9223372036854775808 is out of range"):
        explain(net, x, "saliency", target=2**63)


def test_scores_of_the_samples_for_other_targets_are_not_their_own(net: nn.Module, x: Tensor) -> None:
    def contrast(request: cnnviz.Request, options: cnnviz.Options) -> Tensor:
        """Compare each sample's score with what it scores for the other's target."""
        own = request.score()
        other = request.score(rows=list(reversed(range(len(x)))))
        return (own - other).detach()[:, None, None, None].expand(-1, 1, 2, 2).clone()

    target = [number % 2 for number in range(len(x))]
    made = cnnviz.explain(net, x, cnnviz.Technique("contrast", contrast), target=target)
    assert isinstance(made, cnnviz.Heatmap)
    assert made.scores is not None
    with torch.no_grad():
        expected = net.eval()(x).gather(1, torch.tensor(target)[:, None])[:, 0]
    torch.testing.assert_close(made.scores, expected)


def test_a_sweep_of_nothing_has_no_scores(net: nn.Module, x: Tensor) -> None:
    def none(request: cnnviz.Request, options: cnnviz.Options) -> Tensor:
        """Sweep over nothing."""
        assert request.sweep(lambda start, stop: request.inputs[start:stop], 0, []).shape == (0,)
        return request.inputs

    assert cnnviz.explain(net, x, cnnviz.Technique("none", none)).values.shape == x.shape


class OwnNoise(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.head = torch.Generator().manual_seed(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(1, 3, generator=self.generator) if not x.is_meta else 0
        return self.head(x.mean((2, 3)) + noise)


def test_a_network_with_a_generator_of_its_own_gives_the_same_each_time() -> None:
    net, x = OwnNoise(), torch.rand(1, 3, 6, 6)
    before = net.generator.get_state()
    explainer = cnnviz.Explainer(net, "saliency")
    first, second = explainer(x, 1), explainer(x, 1)
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(net.generator.get_state(), before)


class Wary(nn.Module):
    """Refuses devices that it does not know, each in its own way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.head = way, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        match self.way:
            case "asserts":
                assert x.device.type in ("cpu", "cuda"), "needs a real device"
            case "looks up":
                _ = {"cpu": 1, "cuda": 2}[x.device.type]
            case "reads an attribute":
                _ = {"cpu": 1j}.get(x.device.type).real
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("way", ["asserts", "looks up", "reads an attribute"])
def test_a_network_that_looks_at_the_device_is_run_with_values(way: str) -> None:
    made = cnnviz.explain(Wary(way), torch.rand(2, 3, 6, 6), "occlusion", window=2, stride=2)
    assert made.values.shape == (2, 1, 6, 6)


def test_what_a_network_cannot_run_on_is_told_as_it_was_tried() -> None:
    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(2, 3, 6, 6).mean((2, 3))

    with pytest.raises(cnnviz.InputError, match=r"cannot run on inputs of shape \(1, 3, 6, 6\)"):
        cnnviz.explain(Pairs(), torch.rand(2, 3, 6, 6), "saliency")
