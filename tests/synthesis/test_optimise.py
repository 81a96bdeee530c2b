"""The engine: each picture by itself, the same bits under a seed, also after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cnnviz import InputError, Preprocess, SaveError
from cnnviz.synthesis import Checkpoint, Fourier, Pixels, blur, jitter, optimise, total_variation

PLAIN = Preprocess()
OPTIMISERS: dict[str, dict[str, Any]] = {
    "adam": {"optimiser": "adam", "step_size": 0.05},
    "ascent": {"optimiser": "ascent", "step_size": 0.02},
    "lbfgs": {"optimiser": "lbfgs", "step_size": 1.0},
}
WANTED = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(9))


def ignore(done: int, total: int) -> None:
    pass


def start(count: int = 1, seed: int = 0) -> Tensor:
    return 0.3 + 0.4 * torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def loss(x: Tensor) -> Tensor:
    """Something curved: distance from a picture, of smoothed differences."""
    return ((x - WANTED) ** 2 + 0.1 * (x - WANTED).abs() ** 3).mean((1, 2, 3))


def run(canvas: Any, *, steps: int = 20, seed: int = 5, **given: Any) -> Tensor:
    given = {"progress": ignore, **given}
    return optimise(canvas, loss, steps=steps, generator=torch.Generator().manual_seed(seed), **given)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("kind", [Pixels, Fourier])
def test_loss_falls_and_is_told_for_every_step(name: str, kind: Any) -> None:
    canvas = kind(start(), PLAIN)
    first = float(loss(canvas.image().detach()))
    history = run(canvas, steps=150, **OPTIMISERS[name])
    assert history.shape == (1, 150)
    assert float(history[0, 0]) == pytest.approx(first)
    assert float(loss(canvas.image().detach())) < 0.3 * first


def test_lbfgs_is_torchs_own() -> None:
    """One step of ours is one iteration of a run of torch's that is not cut into calls."""
    canvas = Pixels(start(), PLAIN)
    history = run(canvas, steps=12, **OPTIMISERS["lbfgs"])
    x = start().requires_grad_()
    other = torch.optim.LBFGS([x], max_iter=12, max_eval=100, tolerance_grad=0, tolerance_change=0, history_size=20)
    seen = []

    def closure() -> Tensor:
        other.zero_grad()
        total = loss(x).sum() * x[0].numel()
        total.backward()
        seen.append(float(loss(x.detach())))
        return total

    other.step(closure)  # type: ignore[arg-type]
    assert len(seen) >= 6, "it ends where the gradient does"
    assert history[0, :5].tolist() == pytest.approx(seen[:5], rel=1e-4)


@pytest.mark.parametrize("name", ["adam", "ascent"])
def test_a_batch_is_its_pictures_alone(name: str) -> None:
    given = {**OPTIMISERS[name], "transforms": [jitter(2)], "penalties": [(0.1, total_variation)]}
    together = Pixels(start(3), PLAIN)
    history = run(together, **given)
    for i, row in enumerate(start(3)):
        alone = Pixels(row[None], PLAIN)
        torch.testing.assert_close(run(alone, **given)[0], history[i])
        torch.testing.assert_close(alone.image()[0], together.image()[i])


def test_plain_ascent_moves_pixels_by_the_step_size() -> None:
    canvas = Pixels(start(2), PLAIN)
    before = canvas.image().detach().clone()
    run(canvas, steps=1, **OPTIMISERS["ascent"])
    moved = (canvas.image().detach() - before).abs().mean((1, 2, 3))
    torch.testing.assert_close(moved, torch.full((2,), 0.02), rtol=1e-4, atol=0)


def test_a_step_that_goes_wrong_is_taken_back() -> None:
    """A loss that curves the other way far out: a step by the curvature near by overshoots."""

    def steep(x: Tensor) -> Tensor:
        return ((x - 0.5) ** 2 + 1e4 * (x - 0.5).abs() ** 5).mean((1, 2, 3))

    canvas = Pixels(start(), PLAIN)
    first = float(steep(canvas.image().detach()))
    draws = torch.Generator().manual_seed(0)
    history = optimise(canvas, steep, steps=40, step_size=1.0, optimiser="lbfgs", generator=draws, progress=ignore)
    assert float(history.max()) <= 2 * first
    assert float(steep(canvas.image().detach())) == pytest.approx(float(history.min())), "the best that was seen"
    assert float(steep(canvas.image().detach())) < 0.01 * first


def test_edits_are_made_at_their_steps() -> None:
    made: list[int] = []

    def note(x: Tensor, slope: Tensor) -> Tensor:
        made.append(len(made))
        assert slope.shape == x.shape
        return x

    run(Pixels(start(), PLAIN), steps=10, edits=[(3, note)], **OPTIMISERS["adam"])
    assert len(made) == 3
    smooth, rough = Pixels(start(), PLAIN), Pixels(start(), PLAIN)
    run(smooth, steps=8, edits=[(1, blur(1.0))], **OPTIMISERS["adam"])
    run(rough, steps=8, **OPTIMISERS["adam"])
    with torch.no_grad():
        assert float(total_variation(smooth.centred())) < 0.5 * float(total_variation(rough.centred()))


def test_a_loss_that_is_not_finite_is_told() -> None:
    def bad(x: Tensor) -> Tensor:
        return loss(x) * float("nan")

    with pytest.raises(InputError, match="not finite after 0 steps; give a smaller step size"):
        optimise(Pixels(start(), PLAIN), bad, steps=3, step_size=1, generator=torch.Generator(), progress=ignore)


class Stopped(Exception):
    pass


def stop_at(step: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Stopped

    return progress


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("kind", [Pixels, Fourier])
def test_an_interrupted_run_goes_on_to_the_same_bits(name: str, kind: Any, tmp_path: Path) -> None:
    given = {**OPTIMISERS[name], "transforms": [jitter(2)]}
    whole = kind(start(), PLAIN)
    history = run(whole, steps=15, **given)
    path = tmp_path / "run.safetensors"
    for stop in (4, 11):
        with pytest.raises(Stopped):
            run(kind(start(), PLAIN), steps=15, progress=stop_at(stop), checkpoint=(Checkpoint(path, {}), "a"), **given)
    rest = kind(start(), PLAIN)
    steps: list[int] = []
    again = run(
        rest, steps=15, checkpoint=(Checkpoint(path, {}), "a"), progress=lambda done, _: steps.append(done), **given
    )
    assert steps == [12, 13, 14, 15]
    assert torch.equal(again, history)
    assert torch.equal(rest.image(), whole.image())
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    canvas = Pixels(start(), PLAIN)
    history = run(canvas, checkpoint=(Checkpoint(path, {}), "a"), **OPTIMISERS["adam"])
    again = Pixels(start(), PLAIN)
    assert torch.equal(
        run(again, checkpoint=(Checkpoint(path, {}), "a"), progress=stop_at(20), **OPTIMISERS["adam"]), history
    )
    assert torch.equal(again.image(), canvas.image())
    assert run(again, steps=25, checkpoint=(Checkpoint(path, {}), "a"), **OPTIMISERS["adam"]).shape == (1, 25)


def test_a_run_that_begins_elsewhere_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(Pixels(start(), PLAIN), steps=5, checkpoint=(Checkpoint(path, {}), "a"), **OPTIMISERS["adam"])
    elsewhere = 0.5 * start()
    again, alone = Pixels(elsewhere.clone(), PLAIN), Pixels(elsewhere.clone(), PLAIN)
    history = run(again, steps=5, checkpoint=(Checkpoint(path, {}), "a"), **OPTIMISERS["adam"])
    assert torch.equal(history, run(alone, steps=5, **OPTIMISERS["adam"]))
    assert torch.equal(again.image(), alone.image())


def test_a_checkpoint_that_takes_long_to_write_is_written_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing that is done is lost: it is in the next file, which is written in any case when it is cancelled."""
    clock = [0.0]
    written: list[float] = []

    def slow(path: Path, content: bytes) -> Path:
        clock[0] += 2.0
        written.append(clock[0])
        path.write_bytes(content)
        return path

    monkeypatch.setattr("cnnviz.synthesis.checkpoint.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("cnnviz.synthesis.checkpoint.write_file", slow)
    path = tmp_path / "run.safetensors"
    checkpoint = Checkpoint(path, {})
    for part in range(30):  # of a second each
        clock[0] += 1.0
        checkpoint.keep(str(part), lambda part=part: {"x": torch.full((2,), float(part))}, done=True)
    assert written == [3.0, 25.0]
    assert Checkpoint(path, {}).state("25") is None
    checkpoint.keep("30", lambda: {"x": torch.zeros(2)}, now=True)
    again = Checkpoint(path, {})
    assert [float(again.state(str(part))["x"][0]) for part in range(30)] == list(range(30))


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    Checkpoint(path, {"seed": 1, "target": "cat"}).keep("a", lambda: {"x": torch.ones(2)}, now=True)
    assert torch.equal(Checkpoint(path, {"seed": 1, "target": "cat"}).state("a")["x"], torch.ones(2))
    with pytest.raises(SaveError, match=r"belongs to another run: it differs in seed; give another file"):
        Checkpoint(path, {"seed": 2, "target": "cat"})
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(SaveError, match=r"cannot be read .* delete it to begin anew"):
        Checkpoint(path, {"seed": 1, "target": "cat"})
    with pytest.raises(SaveError, match=r"ends in \.safetensors"):
        Checkpoint(tmp_path / "run.pt", {})
    torch.save({}, tmp_path / "x.safetensors")
    with pytest.raises(SaveError, match="cannot be read"):
        Checkpoint(tmp_path / "x.safetensors", {})


def test_a_foreign_safetensors_file_is_no_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(SaveError, match="is no checkpoint of cnnviz"):
        Checkpoint(tmp_path / "weights.safetensors", {})
