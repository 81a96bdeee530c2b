"""Style networks are trained, kept, continued to the bit after an interruption, and refused what makes no sense."""

from __future__ import annotations

import copy
import csv
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import cnnviz
from cnnviz import CnnvizError, InputError, LayerError, ModelError, OptionError, SaveError
from cnnviz.memory import Batches
from cnnviz.options import ImageOption
from cnnviz.synthesis import StyleNetwork, train_style
from cnnviz.synthesis.training import Training, _names
from cnnviz.testing.snapshot import changed, snapshot

QUICK: dict[str, Any] = {
    "size": 32, "style_size": 48, "batch": 2, "steps": 6, "width": 3, "blocks": 1, "log_every": 2, "style_weight": 20.0,
}  # fmt: skip


class InterruptionError(Exception):
    pass


def features(channels: int = 3) -> nn.Module:
    draws = torch.Generator().manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 10, 3, padding=1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 2),
    )  # fmt: skip
    for parameter in made.parameters():
        nn.init.normal_(parameter, 0, 0.3, generator=draws)
    return made.eval()


@pytest.fixture
def model() -> nn.Module:
    return features()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        ramp = Image.linear_gradient("L").rotate(40 * number).resize((50 + number, 44))
        Image.merge("RGB", [ramp, Image.radial_gradient("L").resize(ramp.size), ramp.rotate(90)]).save(
            folder / f"{number}.png"
        )
    return folder


@pytest.fixture
def style(tmp_path: Path) -> Path:
    path = tmp_path / "stripes.png"
    made = Image.new("RGB", (60, 40), (200, 30, 10))
    for x in range(0, 60, 6):
        made.paste((20, 40, 220), (x, 0, x + 3, 40))
    made.save(path)
    return path


def trained(model: nn.Module, images: Path, style: Any, out: Path, **given: Any) -> Any:
    return train_style(model, images, out, styles=style, **{**QUICK, **given})


def lines(out: Path) -> list[dict[str, float]]:
    with (out / "log.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_the_loss_falls_and_all_files_are_there(model: nn.Module, images: Path, style: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = trained(
        model, images, style, tmp_path / "out", steps=60, sample_every=25, step_size=5e-3,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(k + 1, 60) for k in range(60)]
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "checkpoint.safetensors", "log.csv", "samples", "style.safetensors", "training.lock",
    ]  # fmt: skip
    told = lines(made.folder)
    assert [row["step"] for row in told] == list(range(2, 61, 2))
    assert told[-1]["style"] < 0.7 * told[0]["style"]
    assert told[0]["loss"] == pytest.approx(20 * told[0]["style"] + told[0]["content"], rel=1e-4)
    assert sorted(path.name for path in (made.folder / "samples").iterdir()) == [
        "step-0000025.png", "step-0000050.png", "step-0000060.png",
    ]  # fmt: skip
    with Image.open(made.folder / "samples" / "step-0000060.png") as sample:
        assert sample.width < sample.height, "a column for the pictures, one for the style; a row for each of three"
    read = StyleNetwork.load(made.folder / "style.safetensors")
    assert read.styles == ("stripes",)
    assert read.about["steps"] == 60
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(read(x), made.network(x))


def test_a_network_paints_towards_its_own_style(model: nn.Module, images: Path, style: Path, tmp_path: Path) -> None:
    """Of two styles in one network each is nearer to its own picture."""
    Image.new("RGB", (48, 48), (240, 240, 60)).save(tmp_path / "sun.png")
    made = trained(
        model, images, [style, tmp_path / "sun.png"], tmp_path / "out", steps=80, step_size=1e-2, content_weight=0.1
    )
    assert made.network.styles == ("stripes", "sun")
    with torch.no_grad():
        stripes, sun = (made.network(torch.full((1, 3, 32, 32), 0.5), mix).mean((0, 2, 3)) for mix in torch.eye(2))
    assert sun[2] < sun[0], "yellow has little blue"
    assert sun[1] > stripes[1] + 0.1


def test_what_a_killed_training_left_is_no_obstacle(
    model: nn.Module, images: Path, style: Path, tmp_path: Path
) -> None:
    """A file half written, and lines of the log beyond the checkpoint, the last one cut off."""
    whole = trained(model, images, style, tmp_path / "whole", log_every=1)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        trained(model, images, style, tmp_path / "parts", log_every=1, progress=stop)
    (tmp_path / "parts" / ".checkpoint.safetensors-x7_q").write_bytes(b"half")
    with (tmp_path / "parts" / "log.csv").open("a") as file:
        file.write("4,1.0,1.0,1.0,1.0,9.0\n5,1.0,1.")
    continued = trained(model, images, style, tmp_path / "parts", log_every=1)
    assert all(map(torch.equal, whole.network.state_dict().values(), continued.network.state_dict().values()))
    plain = [[{**row, "seconds": 0} for row in lines(tmp_path / which)] for which in ("whole", "parts")]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("stopped", [1, 3, 4])
def test_an_interrupted_training_ends_with_the_same_bits(
    stopped: int, model: nn.Module, images: Path, style: Path, tmp_path: Path
) -> None:
    whole = trained(model, images, style, tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        if done == stopped:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        trained(model, images, style, tmp_path / "parts", progress=stop)
    continued = trained(model, images, style, tmp_path / "parts")
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, continued.network.state_dict()[name]), name
    plain = [[{**row, "seconds": 0} for row in lines(tmp_path / which)] for which in ("whole", "parts")]
    assert [row["step"] for row in plain[1]] == [2, 4, 6]
    if stopped == 4:  # between two lines of the log, the first of them is of fewer steps
        assert plain[0] == plain[1]


def test_more_steps_go_on_and_no_steps_change_nothing(
    model: nn.Module, images: Path, style: Path, tmp_path: Path
) -> None:
    longer = trained(model, images, style, tmp_path / "whole", steps=8)
    first = trained(model, images, style, tmp_path / "parts")
    kept = (tmp_path / "parts" / "style.safetensors").read_bytes()
    trained(model, images, style, tmp_path / "parts")
    assert (tmp_path / "parts" / "style.safetensors").read_bytes() == kept
    more = trained(model, images, style, tmp_path / "parts", steps=8)
    assert more.network.about["steps"] == 8 > first.network.about["steps"]
    assert all(map(torch.equal, longer.network.state_dict().values(), more.network.state_dict().values()))


def test_a_batch_in_parts_is_the_whole_batch(
    model: nn.Module, images: Path, style: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slopes: dict[str, list[torch.Tensor]] = {}
    parts: list[int] = []

    class Noting(torch.optim.Adam):
        def step(self, *given: Any) -> None:
            slopes[memory] = [parameter.grad.clone() for group in self.param_groups for parameter in group["params"]]
            super().step(*given)

    class Counting(Batches):
        def run(self, *given: Any) -> list[Any]:
            made = super().run(*given)
            parts.append(len(made))
            return made

    monkeypatch.setattr(torch.optim, "Adam", Noting)
    monkeypatch.setattr(cnnviz.synthesis.training, "Batches", Counting)
    for memory in ("1GiB", "8MiB"):
        trained(model, images, style, tmp_path / memory, memory=memory, batch=4, steps=1, size=96, width=8)
    assert parts == [1, 4]
    largest = max(float(slope.abs().max()) for slope in slopes["1GiB"])
    for whole, added in zip(*slopes.values(), strict=True):
        torch.testing.assert_close(added, whole, rtol=1e-3, atol=1e-5 * largest)


def test_model_and_random_state_are_as_they_were(model: nn.Module, images: Path, style: Path, tmp_path: Path) -> None:
    model.train()
    before, state = snapshot(model), torch.get_rng_state()
    trained(model, images, style, tmp_path / "out")
    assert changed(before, snapshot(model)) == []
    assert torch.equal(torch.get_rng_state(), state)


def test_no_grad_callers_may_train(model: nn.Module, images: Path, style: Path, tmp_path: Path) -> None:
    with torch.inference_mode():
        inside = trained(model, images, style, tmp_path / "inside")
    outside = trained(model, images, style, tmp_path / "outside")
    assert all(map(torch.equal, inside.network.state_dict().values(), outside.network.state_dict().values()))


@pytest.mark.filterwarnings("ignore:option 'precision'")  # not every processor has them
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_too(precision: str, model: nn.Module, images: Path, style: Path, tmp_path: Path) -> None:
    made = trained(model, images, style, tmp_path / "out", steps=60, precision=precision, step_size=5e-3)
    told = lines(made.folder)
    assert told[-1]["style"] < 0.7 * told[0]["style"]
    assert {parameter.dtype for parameter in made.network.parameters()} == {torch.float32}


@pytest.mark.parametrize(("precision", "asked"), [("bfloat16", "bf16"), ("float16", "fp16")])
def test_a_precision_that_the_processor_lacks_is_told(
    precision: str, asked: str, model: nn.Module, images: Path, style: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{asked}_supported", lambda: False)
    with pytest.warns(UserWarning, match=f"no instructions for {precision}.*take 'auto'"):
        trained(model, images, style, tmp_path / "lacks", steps=1, precision=precision)
    monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{asked}_supported", lambda: True)
    trained(model, images, style, tmp_path / "has", steps=1, precision=precision)
    trained(model, images, style, tmp_path / "auto", steps=1)


def test_images_that_cannot_be_read_are_left_out(model: nn.Module, images: Path, style: Path, tmp_path: Path) -> None:
    (images / "a-broken.jpg").write_bytes(b"no image")
    made = trained(model, images, style, tmp_path / "out")
    assert list(made.left_out) == [str(images / "a-broken.jpg")]
    assert "no image" in made.left_out[str(images / "a-broken.jpg")]
    shutil.rmtree(images)
    images.mkdir()
    (images / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="none of 1 images"):
        trained(model, images, style, tmp_path / "none")


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"pace": 3}, OptionError, "unknown option 'pace' of 'train-style'"),
        ({"steps": 0}, OptionError, "'steps' of 'train-style': got 0, expected a whole number from 1"),
        ({"styles": ()}, OptionError, "option 'styles'"),
        ({"content_weight": 0.0, "style_weight": 0.0}, OptionError, "both 0"),
        ({"style_layer_weights": (0.0, 0.0, 0.0)}, OptionError, "a sum above 0"),
        ({"style_layers": ("4", "nowhere")}, LayerError, "no layer 'nowhere'"),
        ({"style_layers": ("4", "4")}, LayerError, "'4' is named twice"),
        (
            {"samples": torch.rand(1, 40, 40)},
            InputError,
            r"'samples': got a picture \(1, 40, 40\), expected \(3, h, w\)",
        ),
        ({"samples": torch.rand(3, 600, 9)}, InputError, "at most 8 times as long as wide"),
        ({"styles": torch.rand(1, 40, 40)}, InputError, r"'styles': got a picture \(1, 40, 40\)"),
        ({"seed": -1}, OptionError, "seed: got -1, expected a whole number"),
        ({"content_layers": ("nowhere",)}, LayerError, "no layer 'nowhere'"),
        ({"content_layers": ("8",)}, LayerError, "before the global pooling"),
        ({"style_size": 32, "style_layers": ("10",)}, LayerError, "sees the whole picture"),
        ({"styles": torch.full((3, 40, 40), -1.0)}, InputError, "'styles': got a tensor with values from -1 to -1"),
        ({"samples": torch.full((3, 40, 40), torch.nan)}, InputError, "'samples': got a tensor with values from nan"),
        ({"style_weight": 1e300}, InputError, "the loss is inf at step 1; what was trained"),
    ],
)
def test_what_makes_no_sense_is_told(
    given: dict[str, Any],
    error: type[Exception],
    told: str,
    model: nn.Module,
    images: Path,
    style: Path,
    tmp_path: Path,
) -> None:
    before = snapshot(model)
    with pytest.raises(error, match=told):
        train_style(model, images, tmp_path / "out", **{**QUICK, "styles": style, **given})
    assert changed(before, snapshot(model)) == []


def test_a_style_image_must_be_as_large_as_what_a_layer_sees(model: nn.Module, images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (60, 20)).save(tmp_path / "strip.png")
    with pytest.raises(LayerError, match=r"layer '7' sees 18 x 18 pixels, more than the style image of 16 x 48"):
        trained(model, images, tmp_path / "strip.png", tmp_path / "out", style_layers=("7",))


@pytest.mark.parametrize(
    ("other", "error", "told"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), LayerError, "returns maps"),
        (features(1), ModelError, "takes 1 channels, expected 3"),
    ],
)
def test_models_without_maps_or_colours_are_refused(
    other: nn.Module, error: type[Exception], told: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=told):
        trained(other, images, torch.rand(3, 32, 32), tmp_path / "out", style_size=32)


def test_another_training_and_other_files_are_left_alone(
    model: nn.Module, images: Path, style: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    trained(model, images, style, out)
    kept = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(SaveError, match="belongs to another run: it differs in width"):
        trained(model, images, style, out, width=4)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(2)
    with pytest.raises(SaveError, match="belongs to another run: it differs in model"):
        trained(other, images, style, out)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == kept
    (out / "checkpoint.safetensors").unlink()
    with pytest.raises(SaveError, match="a trained network and no checkpoint"):
        trained(model, images, style, out)
    assert (out / "style.safetensors").read_bytes() == kept["style.safetensors"]
    with pytest.raises(SaveError, match="holds something else than a training"):
        trained(model, images, style, images)


def test_what_was_trained_is_a_technique(model: nn.Module, images: Path, style: Path, tmp_path: Path) -> None:
    made = trained(model, images, style, tmp_path / "out")
    painted = cnnviz.explain(cnnviz.load_model(str(made.folder / "style.safetensors")), images / "0.png", "fast-style")
    assert painted.tensors()["images"].shape == (1, 3, 44, 50)
    assert painted.captions == ("stripes",)
    assert load_file(made.folder / "style.safetensors").keys() == made.network.state_dict().keys()


TINY: dict[str, Any] = {"style_size": 32, "blocks": 0, "width": 2, "batch": 1, "log_every": 1}


def stopping(after: int) -> Any:
    def stop(done: int, total: int) -> None:
        if done == after:
            raise InterruptionError

    return stop


def weights(out: Path) -> list[torch.Tensor]:
    return list(StyleNetwork.load(out / "style.safetensors").state_dict().values())


def test_a_network_that_was_not_written_is_written_by_the_same_call(
    model: nn.Module, images: Path, style: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between the last checkpoint and the network, which is that of an earlier step then."""
    out, show = tmp_path / "out", Training._show

    def interrupted(training: Training, samples: Any) -> None:
        if training.done == 3:
            raise KeyboardInterrupt
        show(training, samples)

    monkeypatch.setattr(Training, "_show", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(model, images, style, out, **TINY, steps=3, sample_every=2)
    assert StyleNetwork.load(out / "style.safetensors").about["steps"] == 2
    monkeypatch.setattr(Training, "_show", show)
    made = trained(model, images, style, out, **TINY, steps=3, sample_every=2)
    assert StyleNetwork.load(out / "style.safetensors").about["steps"] == 3
    assert (out / "samples" / "step-0000003.png").is_file()
    (out / "style.safetensors").unlink()
    trained(model, images, style, out, **TINY, steps=3, sample_every=2)
    assert all(map(torch.equal, weights(out), made.network.state_dict().values()))


def test_fewer_steps_than_were_taken_are_refused(model: nn.Module, images: Path, style: Path, tmp_path: Path) -> None:
    trained(model, images, style, tmp_path / "out", **TINY, steps=3)
    with pytest.raises(SaveError, match="is 3 steps on, expected at most the 2 asked for; ask for as many"):
        trained(model, images, style, tmp_path / "out", **TINY, steps=2)


def test_the_log_of_an_interrupted_training_is_that_of_the_whole(
    model: nn.Module, images: Path, style: Path, tmp_path: Path
) -> None:
    given = {**TINY, "log_every": 4}
    trained(model, images, style, tmp_path / "whole", **given)
    for stopped in (2, 5):
        with pytest.raises(InterruptionError):
            trained(model, images, style, tmp_path / "parts", **given, progress=stopping(stopped))
    trained(model, images, style, tmp_path / "parts", **given)
    plain = [[{**row, "seconds": 0} for row in lines(tmp_path / which)] for which in ("whole", "parts")]
    assert [row["step"] for row in plain[0]] == [4, 6]
    assert plain[0] == plain[1]


def test_checkpoints_without_losses_are_read(model: nn.Module, images: Path, style: Path, tmp_path: Path) -> None:
    """As they were written before the log's were kept."""
    whole = trained(model, images, style, tmp_path / "whole", **TINY)
    with pytest.raises(InterruptionError):
        trained(model, images, style, tmp_path / "out", **TINY, progress=stopping(2))
    path = tmp_path / "out" / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as file:
        told, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    states = json.loads(told["states"])
    del states["training"]["since"]
    save_file(tensors, path, {**told, "states": json.dumps(states)})
    made = trained(model, images, style, tmp_path / "out", **TINY)
    assert all(map(torch.equal, made.network.state_dict().values(), whole.network.state_dict().values()))


def test_a_damaged_log_is_no_obstacle(model: nn.Module, images: Path, style: Path, tmp_path: Path) -> None:
    trained(model, images, style, tmp_path / "out", **TINY, steps=2)
    log = tmp_path / "out" / "log.csv"
    log.write_bytes(b"\xff\xfe\nx,1,1,1,1,1\n" + log.read_bytes() + b"2,1,y,1,1,1\n")
    trained(model, images, style, tmp_path / "out", **TINY, steps=3)
    assert [row["step"] for row in lines(tmp_path / "out")] == [1, 2, 3]
    log.unlink()
    log.mkdir()
    with pytest.raises(SaveError, match=r"log\.csv' cannot be read \(Is a directory\); move it away"):
        trained(model, images, style, tmp_path / "out", **TINY, steps=4)


@pytest.mark.parametrize("failing", ["loss", "disk"])
def test_what_was_trained_is_kept_where_it_cannot_go_on(
    failing: str, model: nn.Module, images: Path, style: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(model, images, style, tmp_path / "whole", **TINY)
    losses = Training._losses

    def variation(painted: torch.Tensor) -> torch.Tensor:
        return painted.mean((1, 2, 3)) * torch.nan

    def failed(training: Training, crops: torch.Tensor) -> torch.Tensor:
        if training.done == 3:
            if failing == "disk":
                raise CnnvizError("an image cannot be read for now")
            monkeypatch.setattr("cnnviz.synthesis.training.total_variation", variation)
        return losses(training, crops)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_losses", failed)
        told = "loss is nan at step 4; what was trained until then is in '" if failing == "loss" else "read for now"
        with pytest.raises(CnnvizError, match=told):
            trained(model, images, style, tmp_path / "out", **TINY)
    monkeypatch.undo()
    seen: list[int] = []
    made = trained(model, images, style, tmp_path / "out", **TINY, progress=lambda done, total: seen.append(done))
    assert seen == [4, 5, 6]
    assert all(map(torch.equal, made.network.state_dict().values(), whole.network.state_dict().values()))


def test_a_disk_that_fails_for_the_moment_stops_the_training(
    model: nn.Module, images: Path, style: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def failing(path: Path, *given: Any, **named: Any) -> Any:
        if path == images / "3.png":
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *given, **named)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(CnnvizError, match=r"3\.png' cannot be read for now: .*start again when it can"):
        trained(model, images, style, tmp_path / "out", **TINY)


def test_one_trains_in_a_folder_at_a_time(model: nn.Module, images: Path, style: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)

    def meanwhile(done: int, total: int) -> None:
        for place in (tmp_path / "out", tmp_path / "link" / "out"):
            with pytest.raises(SaveError, match="somebody else is writing to the training in '"):
                trained(model, images, style, place, **TINY, steps=1)

    trained(model, images, style, tmp_path / "out", **TINY, steps=1, progress=meanwhile)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_callers_default_type_and_precision_change_nothing(
    dtype: torch.dtype, model: nn.Module, images: Path, style: Path, tmp_path: Path
) -> None:
    made = trained(model, images, style, tmp_path / "out", **TINY, steps=2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        other = trained(model, images, style, tmp_path / "other", **TINY, steps=2)
    finally:
        torch.set_default_dtype(before)
    with torch.autocast("cpu", torch.bfloat16):
        cast = trained(model, images, style, tmp_path / "cast", **TINY, steps=2)
    for network in (other.network, cast.network):
        assert all(map(torch.equal, network.state_dict().values(), made.network.state_dict().values()))


def test_no_two_styles_get_one_name() -> None:
    images = [ImageOption(torch.rand(3, 8, 8)) for _ in range(6)]
    for image, name in zip(images, ("a-2", "a", "a", "", "style-3", "a"), strict=True):
        image.name = name
    assert _names(images) == ["a-2", "a", "a-3", "style-3", "style-3-4", "a-5"]
