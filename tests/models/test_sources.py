"""Models are loaded with the right weights and preprocessing, without unpickling, and every failure says what to do."""

from __future__ import annotations

import functools
import io
import os
import pickle
import random
import re
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from cnnviz import InputError, Model, ModelError, OptionError, Preprocess, load_model
from cnnviz.data import demo_picture, open_image
from cnnviz.render import to_tensor

SMALL = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def embedded() -> Model:
    return load_model()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A small architecture with weights that are not the usual initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = models.get_model(SMALL, weights=None)
        for norm in (part for part in net.modules() if isinstance(part, nn.BatchNorm2d)):
            norm.running_mean.normal_()
    return net.eval()


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return open_image(demo_picture())


def same_weights(mine: nn.Module, theirs: nn.Module) -> bool:
    own, other = mine.state_dict(), theirs.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


def top(model: Model, image: Image.Image, count: int = 1) -> list[int]:
    with torch.no_grad():
        scores = model.module(model.prepare([image]))
    return scores.topk(count).indices[0].tolist()


# ---------------------------------------------------------------- the embedded default


def test_embedded_model_describes_itself(embedded: Model) -> None:
    assert embedded.name == "mobilenet_v2"
    assert embedded.input_size == (224, 224)
    assert len(embedded.labels) == 1000
    assert "embedded" in embedded.source
    assert not embedded.module.training
    assert {p.dtype for p in embedded.module.parameters()} == {torch.float32}


def test_embedded_model_sees_the_cat(embedded: Model, photograph: Image.Image) -> None:
    with torch.no_grad():
        shares = embedded.module(embedded.prepare([photograph])).softmax(1)[0]
    best = shares.topk(3)
    assert [embedded.labels[i] for i in best.indices.tolist()] == ["Egyptian cat", "tiger cat", "tabby"]
    assert best.values[0] > 0.6


def test_embedded_model_sees_the_coffee(embedded: Model, data: Path) -> None:
    (best,) = top(embedded, open_image(data / "images" / "coffee.png"))
    assert embedded.labels[best] == "espresso"


def test_embedded_model_knows_the_photographs(embedded: Model, data: Path) -> None:
    paths = sorted((data / "images" / "imagenet").glob("*.jpg"))
    assert len(paths) == 20
    known = [int(path.stem.rpartition("_")[2]) in top(embedded, open_image(path), 5) for path in paths]
    assert sum(known) >= 17


def test_embedded_weights_are_the_ones_that_were_checked(embedded: Model, data: Path) -> None:
    other = load_model("mobilenet_v2", weights=data / "weights" / "mobilenet_v2.safetensors")
    assert same_weights(other.module, embedded.module)
    assert other.labels == embedded.labels


def test_embedded_architecture_with_random_weights() -> None:
    model = load_model(weights=None)
    assert model.name == "mobilenet_v2"
    assert model.labels is None
    assert "random weights" in model.source


# ---------------------------------------------------------------- torchvision by name


def test_random_weights_have_no_labels_but_a_preprocessing() -> None:
    model = load_model(SMALL, weights=None)
    assert model.name == SMALL
    assert model.labels is None
    assert model.input_size == (224, 224)
    assert "torchvision" in model.source
    assert not model.module.training


def test_random_weights_differ_between_calls() -> None:
    assert not same_weights(load_model(SMALL, weights=None).module, load_model(SMALL, weights=None).module)


def test_segmentation_models_build_without_a_backbone_download() -> None:
    model = load_model("lraspp_mobilenet_v3_large", weights=None)
    assert model.module(torch.zeros(1, 3, 32, 32))["out"].shape == (1, 21, 32, 32)


def test_unknown_name_says_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"no model 'resnet500'.*'resnet50'.*timm:NAME.*module:function"):
        load_model("resnet500")


# ---------------------------------------------------------------- weights from files


def saved(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


FORMATS: dict[str, tuple[str, Callable[[dict[str, Tensor], Path], None]]] = {
    "safetensors": ("w.safetensors", save_file),
    "torch.save": ("w.pt", torch.save),
    "torch.save, old format": ("w.pth", functools.partial(torch.save, _use_new_zipfile_serialization=False)),
    "checkpoint": ("w.ckpt", lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path)),
    "no suffix": ("weights", torch.save),
}


@pytest.mark.parametrize(("file", "save"), FORMATS.values(), ids=FORMATS.keys())
def test_weights_come_from_a_file(
    trained: nn.Module, tmp_path: Path, file: str, save: Callable[[dict[str, Tensor], Path], None]
) -> None:
    save(trained.state_dict(), tmp_path / file)
    model = load_model(SMALL, weights=tmp_path / file)
    assert same_weights(model.module, trained)
    assert str(tmp_path / file) in model.source
    assert same_weights(load_model(SMALL, weights=str(tmp_path / file)).module, trained)


def test_half_precision_becomes_single(trained: nn.Module, tmp_path: Path) -> None:
    half = {key: t.half() if t.is_floating_point() else t for key, t in trained.state_dict().items()}
    save_file(half, tmp_path / "half.safetensors")
    module = load_model(SMALL, weights=tmp_path / "half.safetensors").module
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert torch.equal(module.fc.weight, trained.fc.weight.half().float())


def test_batch_counters_may_be_missing(trained: nn.Module, tmp_path: Path) -> None:
    state = {key: t for key, t in trained.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    assert same_weights(load_model(SMALL, weights=tmp_path / "w.safetensors").module, trained)


def test_missing_file_is_told_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing.safetensors' does not exist.*'DEFAULT'.*None"):
        load_model("resnet18", weights=tmp_path / "nothing.safetensors")


def test_folder_is_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist; give a file"):
        load_model(SMALL, weights=tmp_path)


def test_weights_of_another_architecture_are_refused(trained: nn.Module, tmp_path: Path) -> None:
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"does not fit 'squeezenet1_1'.*missing.*unexpected.*this architecture"):
        load_model("squeezenet1_1", weights=tmp_path / "w.safetensors")


def test_weights_of_another_width_are_refused(trained: nn.Module, tmp_path: Path) -> None:
    state = {**trained.state_dict(), "fc.weight": torch.zeros(10, 1024), "fc.bias": torch.zeros(10)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"2 of another shape \(fc.bias, fc.weight"):
        load_model(SMALL, weights=tmp_path / "w.safetensors")


def test_file_that_lacks_a_weight_is_refused(trained: nn.Module, tmp_path: Path) -> None:
    state = {key: t for key, t in trained.state_dict().items() if key != "fc.bias"}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"1 missing \(fc.bias"):
        load_model(SMALL, weights=tmp_path / "w.safetensors")


def test_dictionary_that_is_no_state_dict_is_refused(trained: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": trained.state_dict(), "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="holds dict, expected a state dict"):
        load_model(SMALL, weights=tmp_path / "w.pt")


def test_dictionary_with_numbers_for_names_is_refused(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="state dict"):
        load_model(SMALL, weights=tmp_path / "w.pt")


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "cut in the middle": lambda raw: raw[: len(raw) // 2],
    "last byte missing": lambda raw: raw[:-1],
    "a few bytes": lambda raw: raw[:5],
    "text": lambda raw: b"hello",
    "an error page": lambda raw: b"<html><body>404</body></html>",
    "a Git LFS pointer": lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n",
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("file", ["w.safetensors", "w.pt"])
def test_damaged_file_is_refused(
    trained: nn.Module, tmp_path: Path, file: str, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / file
    (save_file if path.suffix == ".safetensors" else torch.save)(trained.state_dict(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=rf"(?s){file}' is no weights file that can be read.*expected .safetensors"):
        load_model(SMALL, weights=path)


def test_any_damage_ends_in_the_same_error(tmp_path: Path) -> None:
    raw, draw, path = saved({"weight": torch.zeros(3, 2)}), random.Random(0), tmp_path / "w.pt"
    for _ in range(300):
        broken = bytearray(raw)
        for _ in range(3):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        path.write_bytes(broken)
        with pytest.raises(ModelError):  # what is intact does not fit the architecture
            load_model("squeezenet1_1", weights=path)


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", ["w.pt", "w.bin", "w.pkl", "w.safetensors"])
@pytest.mark.parametrize("save", [torch.save, lambda evil, path: path.write_bytes(pickle.dumps(evil, protocol=2))])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, file: str, save: Callable[[Any, Path], None]) -> None:
    trace = tmp_path / "was-run"
    save({"weight": Runs(trace)}, tmp_path / file)
    with pytest.raises(ModelError, match="read safely"):
        load_model(SMALL, weights=tmp_path / file)
    assert not trace.exists()


def test_code_in_a_pickle_would_run_elsewhere(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Runs(tmp_path / "was-run")))
    assert (tmp_path / "was-run").exists()


def test_whole_modules_are_not_unpickled(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(3, 4, 1), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"expected \.safetensors, or a state dict"):
        load_model(SMALL, weights=tmp_path / "w.pt")


def test_refusal_does_not_advise_to_unpickle(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(3, 4, 1), tmp_path / "w.pt")
    with pytest.raises(ModelError) as caught:
        load_model(SMALL, weights=tmp_path / "w.pt")
    assert "weights_only" not in str(caught.value)


# ---------------------------------------------------------------- weights from the network


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and an empty cache at the path returned."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.usefixtures("offline")
def test_embedded_model_needs_no_network() -> None:
    assert load_model().labels is not None


def test_weights_that_cannot_be_downloaded_say_what_to_do(offline: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(SMALL)
    told = str(caught.value)
    for words in ("no route to host", "weights='file.safetensors'", "weights=None", "load_model()", str(offline)):
        assert words in told


def test_following_the_advice_helps(offline: Path, trained: nn.Module) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(SMALL)
    file, folder = re.search(r"put the file (\S+) into (.+?),", str(caught.value)).groups()
    Path(folder).mkdir(parents=True, exist_ok=True)
    torch.save(trained.state_dict(), Path(folder) / file)
    model = load_model(SMALL)
    assert same_weights(model.module, trained)
    assert model.labels[281] == "tabby"


# ---------------------------------------------------------------- timm


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm", reason="needs the extra 'timm'")


def test_timm_model_with_random_weights(timm: Any) -> None:
    model = load_model("timm:resnet10t", weights=None)
    assert model.name == "timm:resnet10t"
    assert type(model.module) is timm.models.ResNet
    assert model.labels is None
    assert "timm" in model.source
    assert "random weights" in model.source
    assert not model.module.training


SQUASHING = pytest.param(
    "convnextv2_nano.fcmae_ft_in22k_in1k_384",
)


@pytest.mark.parametrize(
    "name", ["resnet10t", "mobilenetv3_small_050", "tf_efficientnet_lite0", "vit_tiny_patch16_224", SQUASHING]
)
def test_timm_preprocessing_is_timms_own(timm: Any, name: str, photograph: Image.Image) -> None:
    model = load_model(f"timm:{name}", weights=None)
    own = timm.data.create_transform(**timm.data.resolve_model_data_config(model.module))
    assert torch.equal(model.preprocess(photograph), own(photograph))


def test_timm_weights_from_a_file_bring_labels(timm: Any, tmp_path: Path) -> None:
    net = timm.create_model("resnet10t", pretrained=False)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    model = load_model("timm:resnet10t", weights=tmp_path / "w.safetensors")
    assert same_weights(model.module, net)
    assert len(model.labels) == 1000
    assert model.labels[285] == "Egyptian cat"


@pytest.mark.usefixtures("timm")
def test_unknown_timm_model_says_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"no model 'resnet10x' in timm.*'resnet10t'"):
        load_model("timm:resnet10x", weights=None)


def test_timm_weights_that_cannot_be_had_say_what_to_do(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ModelError, match=r"no route to host.*weights='file.safetensors', or weights=None"):
        load_model("timm:resnet10t")


def test_timm_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'cnnviz\[timm\]'"):
        load_model("timm:resnet10t", weights=None)


# ---------------------------------------------------------------- module:function

OWN = """
import torch, cnnviz
def build():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Flatten())
def described():
    return cnnviz.Model(build(), name="mine", labels=("a", "b"))
def number():
    return 3
constant = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_architecture.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_architecture", raising=False)


@pytest.mark.usefixtures("own")
def test_own_function_is_called() -> None:
    model = load_model("own_architecture:build", weights=None, labels=["x", "y"])
    assert isinstance(model.module, nn.Sequential)
    assert model.name == "own_architecture:build"
    assert model.labels == ("x", "y")
    assert model.preprocess is None
    assert not model.module.training


@pytest.mark.usefixtures("own")
def test_own_function_may_describe_its_model() -> None:
    model = load_model("own_architecture:described")
    assert (model.name, model.labels) == ("mine", ("a", "b"))


@pytest.mark.usefixtures("own")
def test_own_function_takes_weights_from_a_file(tmp_path: Path) -> None:
    state = {"0.weight": torch.rand(4, 3, 1, 1), "0.bias": torch.rand(4)}
    save_file(state, tmp_path / "w.safetensors")
    model = load_model("own_architecture:build", weights=tmp_path / "w.safetensors")
    assert torch.equal(model.module[0].weight, state["0.weight"])


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_architecture:missing", "cannot be imported.*missing.*package.module:function"),
        ("no_such_package:build", "cannot be imported.*no_such_package.*package.module:function"),
        ("own_architecture:number", "returned int, expected an nn.Module or a cnnviz.Model"),
    ],
)
def test_own_function_that_gives_no_model_says_why(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load_model(name, weights=None)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("name", [":build", "own_architecture:constant", 3])
def test_what_is_no_function_says_what_is_expected(name: Any) -> None:
    with pytest.raises(ModelError):
        load_model(name, weights=None)


# ---------------------------------------------------------------- modules and models


def test_module_is_wrapped_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1)).double()
    model = load_model(net, labels=["a", "b"])
    assert model.module is net
    assert net.training
    assert model.name == "Sequential"
    assert model.labels == ("a", "b")
    assert (model.dtype, model.channels, str(model.device)) == (torch.float64, 1, "cpu")


def test_wrapped_module_is_named_after_what_it_wraps() -> None:
    assert Model(nn.DataParallel(nn.Conv2d(3, 4, 1))).name == "Conv2d"


def test_model_is_returned_as_it_is(embedded: Model) -> None:
    assert load_model(embedded) is embedded


def test_labels_and_preprocessing_can_be_replaced() -> None:
    own = Preprocess(resize=40, crop=(32, 48), mean=(0.5, 0.5, 0.5))
    model = load_model(SMALL, weights=None, preprocess=own, labels=["a"])
    assert model.preprocess == own
    assert model.input_size == (32, 48)
    assert model.labels == ("a",)


def test_digest_follows_the_weights() -> None:
    net = nn.Conv2d(3, 4, 1)
    model = Model(net)
    before = model.digest
    assert re.fullmatch(r"[0-9a-f]{64}", before)
    with torch.no_grad():
        net.bias[0] += 1
    assert model.digest != before


def test_blank_example_fits_the_model(embedded: Model) -> None:
    assert embedded.example().shape == (1, 3, 224, 224)
    assert Model(nn.Conv2d(1, 2, 1).double()).example((5, 6)).shape == (1, 1, 5, 6)
    assert Model(nn.Conv2d(1, 2, 1).double()).example().dtype == torch.float64


def test_channels_are_those_of_the_first_convolution() -> None:
    assert Model(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))).channels == 3  # 192 are channels times pixels
    assert Model(nn.Sequential(nn.Linear(8, 8), nn.Conv2d(5, 2, 1))).channels == 5


@pytest.mark.parametrize(("labels", "told"), [(("cat",), "cat"), (None, "class 0"), ((), "class 0")])
def test_class_is_named_where_names_are_known(labels: tuple[str, ...] | None, told: str) -> None:
    assert Model(nn.Flatten(), labels=labels).label(0) == told


@pytest.mark.parametrize(
    "labels",
    [{0: "cat", 1: "dog"}, {1: "dog", 0: "cat"}, {"1": "dog", "0": "cat"}, ["cat", "dog"], iter(["cat", "dog"])],
)
def test_labels_are_names_in_order_or_by_number(labels: Any) -> None:
    assert load_model(nn.Flatten(), labels=labels).labels == ("cat", "dog")


def test_labels_of_a_model_may_be_numbered() -> None:
    numbered: Any = {1: "dog", 0: "cat"}
    assert Model(nn.Flatten(), labels=numbered).label(1) == "dog"


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ("cats", "got 'cats'"),
        ({1: "cat", 2: "dog"}, r"got a dictionary with the keys \[1, 2\]"),
        ({"cat": 0, "dog": 1}, r"got a dictionary with the keys \['cat', 'dog'\]"),
        # Named by hand: a set has an order of its own in each process.
        pytest.param({"cat", "dog"}, "got {", id="a set"),
        ([0, 1], "got 0 among them"),
        (5, "got 5"),
    ],
    ids=repr,
)
def test_labels_that_name_no_classes_are_refused(labels: Any, got: str) -> None:
    for make in (lambda: Model(nn.Flatten(), labels=labels), lambda: load_model(nn.Flatten(), labels=labels)):
        with pytest.raises(OptionError, match=f"labels: {got}.*expected the names of the classes in order"):
            make()


@pytest.mark.parametrize("size", [32, (32,), (32, 0), (32, 32.0), "32"], ids=repr)
def test_input_size_is_a_pair(size: Any) -> None:
    with pytest.raises(OptionError, match=r"input_size: got .*expected \(height, width\) in pixels"):
        Model(nn.Flatten(), input_size=size)


def test_input_size_may_be_a_list() -> None:
    size: Any = [5, 6]
    assert Model(nn.Flatten(), input_size=size).example().shape == (1, 3, 5, 6)


def test_crop_may_be_one_number_as_resize(photograph: Image.Image) -> None:
    one, two = Preprocess(resize=40, crop=16), Preprocess(resize=40, crop=(16, 16))
    assert one == two
    assert torch.equal(one(photograph), two(photograph))
    assert Model(nn.Flatten(), preprocess=one).input_size == (16, 16)
    pairs: Any = {"resize": [20, 30], "mean": [0.5] * 3, "std": numpy.full(3, 0.25, numpy.float32)}
    assert Preprocess(**pairs) == Preprocess(resize=(20, 30), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"resize": 0}, "got resize 0, expected pixels"),
        ({"resize": "224"}, "got resize '224', expected pixels"),
        ({"crop": (16, 16, 3)}, r"got crop \(16, 16, 3\), expected pixels"),
        ({"crop": 16.5}, "got crop 16.5, expected pixels"),
        ({"crop": True}, "got crop True, expected pixels"),
        ({"mean": 0.5}, "got mean 0.5, expected a tuple with a number for each channel"),
        ({"mean": ()}, r"got mean \(\), expected a tuple"),
        ({"std": ("a",)}, r"got std \('a',\), expected a tuple"),
        ({"mean": (0.5, float("nan"), 0.5)}, "got mean .*nan.*, expected a tuple"),
        ({"mean": (0.5,)}, "got a mean of 1 channels and a std of 3, expected one number of each"),
        ({"std": (0.0, 1.0, 1.0)}, r"got std \(0.0, 1.0, 1.0\), which is divided by; expected numbers above 0"),
        ({"interpolation": "cubic"}, "got interpolation 'cubic', expected one of 'nearest', 'bilinear', 'bicubic'"),
    ],
    ids=str,
)
def test_preprocessing_that_cannot_be_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=f"preprocessing: {words}"):
        Preprocess(**wrong)


def test_pictures_need_a_preprocessing(photograph: Image.Image) -> None:
    with pytest.raises(InputError, match=r"no preprocessing.*tensor \(N, C, H, W\).*preprocess=cnnviz.Preprocess"):
        Model(nn.Flatten()).prepare([photograph])


def test_pictures_of_different_sizes_need_a_crop(photograph: Image.Image) -> None:
    model = Model(nn.Flatten(), preprocess=Preprocess())
    with pytest.raises(InputError, match=r"different sizes.*one by one"):
        model.prepare([photograph, photograph.rotate(90, expand=True)])


def test_pictures_come_in_the_dtype_of_the_weights(photograph: Image.Image) -> None:
    model = Model(nn.Conv2d(3, 4, 1).double(), preprocess=Preprocess(resize=20, crop=(16, 16)))
    batch = model.prepare([photograph, photograph])
    assert (batch.shape, batch.dtype) == ((2, 3, 16, 16), torch.float64)


# ---------------------------------------------------------------- preprocessing

PRESETS = ["resnet18", "efficientnet_b0", "mnasnet1_3", "swin_t"]


@pytest.mark.parametrize("name", PRESETS)
def test_preprocessing_is_torchvisions_own(name: str, photograph: Image.Image) -> None:
    own = models.get_model_weights(name).DEFAULT.transforms()
    assert torch.equal(load_model(name, weights=None).preprocess(photograph), own(photograph))


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (100, 90), (257, 1000)])
def test_embedded_preprocessing_is_torchvisions_own(
    embedded: Model, photograph: Image.Image, size: tuple[int, int]
) -> None:
    own = models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    image = photograph.resize(size)
    assert torch.equal(embedded.preprocess(image), own(image))


def test_presets_drawn_differ_in_what_they_do() -> None:
    used = [models.get_model_weights(name).DEFAULT.transforms() for name in PRESETS]
    assert len({(tuple(preset.resize_size), preset.interpolation) for preset in used}) == 4


def test_inverse_gives_the_picture_back(embedded: Model, photograph: Image.Image) -> None:
    preprocess = embedded.preprocess
    expected = to_tensor(preprocess.picture(photograph))
    again = preprocess.inverse(preprocess(photograph)[None])[0]
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-6)


def test_inverse_stays_within_zero_and_one(embedded: Model) -> None:
    picture = embedded.preprocess.inverse(torch.randn(2, 3, 4, 4) * 9)
    assert picture.min() == 0
    assert picture.max() == 1


def test_inverse_of_other_channels_is_refused(embedded: Model) -> None:
    with pytest.raises(InputError, match="4 channels, the preprocessing 3"):
        embedded.preprocess.inverse(torch.zeros(1, 4, 2, 2))


def test_grey_network_gets_one_channel(photograph: Image.Image) -> None:
    preprocess = Preprocess(resize=20, crop=(16, 16), mean=(0.5,), std=(0.25,))
    got = preprocess(photograph)
    small = preprocess.picture(photograph)
    expected = torch.from_numpy(numpy.asarray(small.convert("L"), dtype=numpy.float32) / 255)
    assert got.shape == (1, 16, 16)
    torch.testing.assert_close(got[0] * 0.25 + 0.5, expected, rtol=0, atol=1 / 255)
    assert preprocess.inverse(got[None]).shape == (1, 3, 16, 16)


def test_sizes_may_be_pairs(photograph: Image.Image) -> None:
    assert Preprocess(resize=(20, 30))(photograph).shape == (3, 20, 30)
    assert Preprocess(resize=40, crop=(10, 12))(photograph).shape == (3, 10, 12)


def test_picture_smaller_than_the_crop_is_padded_as_in_torchvision() -> None:
    image = Image.new("RGB", (10, 10), "white")
    own = torchvision.transforms.functional.center_crop(to_tensor(image), [16, 16])
    assert torch.equal(Preprocess(crop=(16, 16))(image), own)


def test_to_tensor_keeps_every_value() -> None:
    values = numpy.arange(256 * 3, dtype=numpy.uint8).reshape(16, 16, 3)
    tensor = to_tensor(Image.fromarray(values))
    assert tensor.shape == (3, 16, 16)
    assert torch.equal((tensor * 255).round().byte().permute(1, 2, 0), torch.from_numpy(values))
    assert tensor.max() == 1


def test_a_file_in_torchs_cache_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    file = cache / models.get_model_weights(SMALL).DEFAULT.url.rpartition("/")[2]
    torch.save({"fc.weight": Runs(tmp_path / "ran")}, file)
    with pytest.raises(ModelError, match=rf"in .*checkpoints are damaged, or hold more .*delete the file {file.name}"):
        load_model(SMALL, weights="DEFAULT")
    assert not (tmp_path / "ran").exists()
    torch.save({"fc.weight": torch.zeros(3)}, file)
    with pytest.raises(ModelError, match=r"in .*checkpoints do not fit it; delete the file"):
        load_model(SMALL, weights="DEFAULT")
    own = models.get_model(SMALL, weights=None)
    torch.save(own.state_dict(), file)
    assert same_weights(load_model(SMALL, weights="DEFAULT").module, own)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_weights_from_a_file_make_the_network_that_they_are_of(auxiliary: bool, tmp_path: Path) -> None:
    """GoogLeNet's change the units of its input, and some of its heads are in training alone."""
    place = tmp_path / "w.safetensors"
    net = models.googlenet(weights=None, aux_logits=auxiliary, init_weights=False)
    save_file(net.state_dict(), place)
    made = load_model("googlenet", weights=place).module
    assert made.transform_input
    assert same_weights(made, net)
    assert not load_model("googlenet", weights=None).module.transform_input
    segmenter = models.get_model("fcn_resnet50", weights=None, weights_backbone=None, aux_loss=auxiliary)
    save_file(segmenter.state_dict(), place)
    assert same_weights(load_model("fcn_resnet50", weights=place).module, segmenter)
