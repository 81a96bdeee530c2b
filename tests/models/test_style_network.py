"""A network that paints: its formula, its styles and their mixtures, its file, and its ONNX twin."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import cnnviz
from cnnviz import InputError, ModelError, OptionError, SaveError
from cnnviz.synthesis import StyleNetwork
from tests.reference import style_network as twin


def network(styles: int = 2, dtype: torch.dtype = torch.float64) -> StyleNetwork:
    made = StyleNetwork([f"style {k}" for k in range(styles)], width=3, blocks=2)
    draws = torch.Generator().manual_seed(4)
    made.initialise(draws)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(("scale", "shift", "bias")):
                parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.3)
    return made.to(dtype).eval().requires_grad_(False)


def picture(height: int, width: int, count: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(
        dtype
    )


@pytest.mark.parametrize("size", [(8, 8), (12, 16), (9, 13), (14, 11)])
def test_it_computes_its_formula(size: tuple[int, int]) -> None:
    net, x = network(), picture(*size)
    made = net(x, torch.tensor([0.25, 0.75]))
    assert made.shape == x.shape
    torch.testing.assert_close(made[0], twin.painted(net, x[0], [0.25, 0.75]), rtol=1e-9, atol=1e-12)


def test_each_picture_is_painted_by_itself_in_its_own_mixture() -> None:
    net, x, mixes = network(), picture(16, 12, 3), torch.tensor([[1.0, 0], [0, 1], [0.5, 0.5]])
    together = net(x, mixes)
    for row, mix, painted in zip(x, mixes, together, strict=True):
        torch.testing.assert_close(net(row[None], mix)[0], painted)
    assert not torch.allclose(net(x[:1], mixes[0]), net(x[:1], mixes[1]))


def test_the_first_style_is_taken_where_none_is_named() -> None:
    net, x = network(), picture(16, 16)
    assert torch.equal(net(x), net(x, torch.tensor([1.0, 0.0])))


@pytest.mark.parametrize("shape", [(3,), (4,), (2, 3), (3, 2), (1, 1, 2), ()])
def test_a_mixture_of_other_styles_or_pictures_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \(2,\), or \(N, 2\) for N pictures"):
        network()(picture(16, 16, 2), torch.zeros(shape))


@pytest.mark.parametrize(
    ("x", "mix", "told"),
    [
        (torch.rand(1, 1, 40, 40), None, r"got \(1, 1, 40, 40\) float32, expected float \(N, 3, H, W\), of 8 x 8"),
        (torch.rand(3, 40, 40), None, r"got \(3, 40, 40\) float32"),
        (torch.zeros(1, 3, 40, 40, dtype=torch.uint8), None, r"got \(1, 3, 40, 40\) uint8"),
        (torch.rand(1, 3, 7, 40), None, r"got \(1, 3, 7, 40\) float32"),
        (torch.rand(1, 3, 40, 40), [0.5, 0.5], r"mix: got list, expected a tensor"),
    ],
)
def test_what_is_no_picture_is_refused(x: Tensor, mix: object, told: str) -> None:
    with pytest.raises(InputError, match=told):
        network(dtype=torch.float32)(x, mix)


def test_what_is_even_stays_even() -> None:
    """Enlarging leaves no checkerboard: a picture of one colour is painted in one colour."""
    made = network()(picture(1, 1).expand(1, 3, 32, 24))
    assert float(made.amax((2, 3)).sub(made.amin((2, 3))).max()) <= 1e-9


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    net = network(dtype=torch.float32)
    net.about = {"steps": 7, "model": {"name": "vgg16"}}
    before = torch.get_rng_state()
    read = StyleNetwork.load(net.save(tmp_path / "waves.safetensors"))
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(read, nn.Module)
    assert (read.styles, read.about, read.training) == (net.styles, net.about, False)
    x = picture(16, 20, dtype=torch.float32)
    assert torch.equal(read(x), net(x))
    with safe_open(tmp_path / "waves.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["about"]) == net.about


def test_a_file_is_a_model_for_techniques(tmp_path: Path) -> None:
    net = network(dtype=torch.float32)
    model = cnnviz.load_model(net.save(tmp_path / "waves.safetensors"))
    assert (model.name, model.input_size) == ("waves", None)
    x = picture(16, 20, dtype=torch.float32)
    assert torch.equal(model.module(x), net(x))
    with pytest.raises(ModelError, match="has its own"):
        cnnviz.load_model(str(tmp_path / "waves.safetensors"), weights=tmp_path / "waves.safetensors")


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _weights(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def _other_shape(path: Path) -> None:
    narrow = StyleNetwork(["a"], width=2, blocks=1).state_dict()
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
    save_file(narrow, path, told)


def _no_architecture(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        told = file.metadata() | {"built": "{}"}
    save_file({"weight": torch.zeros(3)}, path, told)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (Path.unlink, "does not exist"),
        (_truncated, "damaged"),
        (_weights, "holds no style network"),
        (_other_shape, "damaged style network"),
        (_no_architecture, "damaged style network"),
    ],
)
def test_other_files_are_refused(spoil: object, told: str, tmp_path: Path) -> None:
    path = network().save(tmp_path / "waves.safetensors")
    spoil(path)  # type: ignore[operator]
    with pytest.raises(ModelError, match=told):
        StyleNetwork.load(path)


def test_file_names_tell_what_is_in_them(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=r"ends in \.safetensors"):
        network().save(tmp_path / "waves.pt")
    with pytest.raises(SaveError, match=r"ends in \.onnx"):
        network().export_onnx(tmp_path / "waves.pt")
    assert not list(tmp_path.iterdir())


def test_onnx_gives_the_same_pictures_of_any_size(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net = network(dtype=torch.float32)
    session = onnxruntime.InferenceSession(net.export_onnx(tmp_path / "waves.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["cnnviz"])["styles"] == list(net.styles)
    mix = torch.tensor([[0.3, 0.7]])
    for count, height, width in ((1, 64, 48), (2, 61, 50), (3, 33, 100)):
        x = picture(height, width, count, torch.float32)
        (made,) = session.run(None, {"picture": x.numpy(), "mix": mix.numpy()})
        exact = network()(x.double(), mix.double()).numpy()
        mine = numpy.abs(net(x, mix).numpy() - exact).max()
        assert numpy.abs(made - exact).max() <= 3 * mine, "as close as PyTorch is itself, but for the order of sums"


def test_onnx_without_its_packages_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnviz.models.style_network.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"cnnviz\[onnx\]"):
        network().export_onnx(tmp_path / "waves.onnx")


def test_no_pictures_are_painted_as_none() -> None:
    net, none = network(), picture(16, 16, 2)[:0]
    for mix in (None, torch.rand(2), torch.rand(1, 2), torch.rand(0, 2)):
        assert net(none, mix).shape == (0, 3, 16, 16)


def test_a_network_without_styles_is_refused() -> None:
    with pytest.raises(OptionError, match="styles: got none, expected the name of one style or more"):
        StyleNetwork([])


def test_pictures_are_of_the_weights_type() -> None:
    net = network()
    with pytest.raises(InputError, match=r"got float32 pictures, expected float64 .*; give x\.to\(torch\.float64\)"):
        net(picture(16, 16).float())
    with torch.autocast("cpu", torch.bfloat16):
        assert net.float()(picture(16, 16).bfloat16()).shape == (1, 3, 16, 16)
