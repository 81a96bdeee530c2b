"""A technique of one's own, in the few lines that CONTRIBUTING shows."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import cnnviz
from cnnviz.synthesis import Optimised, Pixels, synthesise
from cnnviz.testing import SmallNet, check_technique

CONTRIBUTING = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def shown_technique() -> cnnviz.Technique:
    (code,) = re.findall(r"       def brightest.*?inputs=\"none\"\)\n", CONTRIBUTING, flags=re.DOTALL)
    scope: dict[str, Any] = {"cnnviz": cnnviz, "Optimised": Optimised, "Pixels": Pixels, "synthesise": synthesise}
    body, _, last = textwrap.dedent(code).strip().rpartition("\n")
    exec(f"{body}\nmade = {last}", scope)
    made: cnnviz.Technique = scope["made"]
    return made


def test_the_example_conforms_and_works() -> None:
    technique = shown_technique()
    assert "threads" in check_technique(technique, steps=2)
    net = SmallNet().eval()
    made = cnnviz.explain(net, None, technique, target=[1, 2], steps=20)
    assert isinstance(made, cnnviz.Gallery)
    with torch.no_grad():
        before, after = net(torch.zeros(1, 3, 224, 224))[0], net(made.images)
    assert after[0, 1] > before[1]
    assert after[1, 2] > before[2]


def test_batches_follow_the_memory_budget() -> None:
    net = SmallNet().eval()
    given: dict[str, Any] = {"target": [0, 1, 2, 3, 4], "steps": 3, "size": 64, "jitter": 2}
    wide = cnnviz.explain(net, None, "class-visualization", **given)
    narrow = cnnviz.explain(net, None, "class-visualization", memory="3MiB", **given)
    assert wide.provenance is not None
    assert narrow.provenance is not None
    assert wide.provenance.batch_sizes == [5]
    assert min(narrow.provenance.batch_sizes) < 5
    torch.testing.assert_close(wide.tensors()["images"], narrow.tensors()["images"], atol=1e-3, rtol=0)


def test_progress_goes_from_nothing_to_all() -> None:
    seen: list[float] = []
    cnnviz.explain(
        SmallNet().eval(), None, "class-visualization", target=[0, 1, 2], steps=5, size=64, memory="2MiB",
        progress=lambda done, total: seen.append(done / total),
    )  # fmt: skip
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert len(set(seen)) >= 5


class StoppedError(Exception):
    pass


CHECKPOINTED: dict[str, dict[str, Any]] = {
    "deep-dream": {"steps": 4, "octaves": 2, "jitter": 3, "layer": "conv2", "frames": 2},
    "feature-inversion": {"steps": 6, "layer": ["conv1", "conv2"]},
    "style-transfer": {"steps": 5, "styles": torch.rand(3, 40, 40), "levels": 2, "start": "noise"},
    "texture-gram": {"steps": 5, "by_layer": True},
}


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_several_pictures_share_a_checkpoint(name: str, tmp_path: Path) -> None:
    """Interrupted at any place, a call goes on to the same bits, whatever batches its pictures come in."""
    net, x = SmallNet().eval(), torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(3))
    given = {**CHECKPOINTED[name], "memory": "4MiB"}
    whole = cnnviz.explain(net, x, name, **given)
    path = tmp_path / "run.safetensors"
    for share in (0.15, 0.5, 0.85):

        def stop(done: int, total: int, share: float = share) -> None:
            if done > share * total:
                raise StoppedError

        with pytest.raises(StoppedError):
            cnnviz.explain(net, x, name, **given, checkpoint=str(path), progress=stop)
    again = cnnviz.explain(net, x, name, **given, checkpoint=str(path))
    for key, tensor in whole.tensors().items():
        assert torch.equal(again.tensors()[key], tensor), key
    with pytest.raises(cnnviz.SaveError, match="it differs in inputs"):
        cnnviz.explain(net, x + 1e-3 * (x < 0.5), name, **given, checkpoint=str(path))


@pytest.mark.parametrize("name", ["deep-dream", "style-transfer"])
def test_more_steps_go_on_from_a_checkpoint_as_if_there_were_none(name: str, tmp_path: Path) -> None:
    """A later part begins with what an earlier one made, which is another after more steps."""
    net, x = SmallNet().eval(), torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(3))
    path, given = tmp_path / "run.safetensors", CHECKPOINTED[name]
    cnnviz.explain(net, x, name, **{**given, "steps": 2}, checkpoint=str(path))
    again = cnnviz.explain(net, x, name, **{**given, "steps": 4}, checkpoint=str(path))
    alone = cnnviz.explain(net, x, name, **{**given, "steps": 4})
    for key, tensor in alone.tensors().items():
        assert torch.equal(again.tensors()[key], tensor), key
    with pytest.raises(cnnviz.SaveError, match=r"is 4 steps on, expected at most the 3 asked for; ask for as many"):
        cnnviz.explain(net, x, name, **{**given, "steps": 3}, checkpoint=str(path))


def test_a_checkpoint_is_of_one_preprocessing(tmp_path: Path) -> None:
    given: dict[str, Any] = {"target": 1, "steps": 2, "size": 32, "checkpoint": str(tmp_path / "run.safetensors")}
    bright, dark = (
        cnnviz.load_model(SmallNet().eval(), preprocess=cnnviz.Preprocess(mean=(mean,) * 3, std=(std,) * 3))
        for mean, std in ((0.0, 1.0), (0.9, 0.05))
    )
    cnnviz.explain(bright, None, "class-visualization", **given)
    with pytest.raises(cnnviz.SaveError, match="it differs in preprocessing"):
        cnnviz.explain(dark, None, "class-visualization", **given)
