"""Dreams excite what they are of, at any size, in pieces or whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cnnviz
from cnnviz.synthesis import features
from cnnviz.testing import SmallNet


@pytest.fixture(scope="module")
def net() -> SmallNet:
    return SmallNet().eval()


def picture(*size: int) -> Tensor:
    return 0.3 + 0.4 * torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(4))


def dream(net: Any, x: Any, **options: Any) -> cnnviz.Gallery:
    made = cnnviz.explain(net, x, "deep-dream", **{"steps": 5, "jitter": 4, **options})
    assert isinstance(made, cnnviz.Gallery)
    return made


def excitement(net: SmallNet, x: Tensor, layer: str) -> float:
    with torch.no_grad():
        return float(features(net, [layer], x)[0].square().mean())


@pytest.mark.parametrize("octaves", [1, 3])
@pytest.mark.parametrize("tile", [64, 512])
def test_layers_are_excited(net: SmallNet, octaves: int, tile: int) -> None:
    x = picture(150, 170)
    made = dream(net, x, layer="conv2", octaves=octaves, tile=tile)
    assert made.images.shape == x.shape
    assert made.history is not None
    assert made.history.shape == (1, 5 * (1 if octaves == 1 else 3))
    assert excitement(net, made.images, "conv2") > 1.3 * excitement(net, x, "conv2")
    assert not torch.equal(made.images, x)


def test_several_layers_and_a_target(net: SmallNet) -> None:
    x = picture(70, 80)
    both = dream(net, x, layer=["conv2", "conv3"])
    for layer in ("conv2", "conv3"):
        assert excitement(net, both.images, layer) > excitement(net, x, layer)
    of_class = cnnviz.explain(net, x, "deep-dream", target=2, steps=5)
    assert isinstance(of_class, cnnviz.Gallery)
    with torch.no_grad():
        assert net(of_class.images)[0, 2] > net(x)[0, 2]


def test_a_guide_is_dreamt_of(net: SmallNet) -> None:
    x, guide = picture(70, 70), torch.zeros(3, 64, 64)
    guide[0, ::4] = 1
    guided = dream(net, x, layer="conv2", guide=guide, octaves=1, jitter=0, steps=10)
    with torch.no_grad():
        (wanted,) = features(net, ["conv2"], guide[None])
        before, after = (features(net, ["conv2"], y)[0] for y in (x, guided.images))
    best = [float((maps.flatten(2).mT @ wanted.flatten(2)).amax(2).mean()) for maps in (before, after)]
    assert best[1] > 1.2 * best[0]
    assert guided.history is not None
    assert float(guided.history[0, 0]) == pytest.approx(best[0] / 12, rel=1e-4)


def test_frames_zoom_and_are_written(net: SmallNet, tmp_path: Path) -> None:
    x = picture(64, 64)
    made = dream(net, x, layer="conv2", frames=4, zoom=1.2, steps=2, octaves=1)
    assert made.images.shape == (4, 3, 64, 64)
    assert made.frame_rate == 15
    still = dream(net, x, layer="conv2", frames=2, zoom=1.2, steps=1, step_size=1e-6, octaves=1, jitter=0)
    middle = torch.nn.functional.interpolate(x[..., 5:58, 5:58], (64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(still.images[1], middle[0], atol=1e-3, rtol=0)
    folder = made.save(tmp_path / "frames")
    assert len(list(folder.glob("image-*.png"))) == 4
    assert len(list(folder.glob("figure-*.png"))) == 1
    assert cnnviz.load(folder).equals(made)


def test_animations_become_videos_where_ffmpeg_is(
    net: SmallNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import imageio_ffmpeg

    made = dream(net, picture(65, 70), layer="conv2", frames=3, steps=1, octaves=1)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not (made.save(tmp_path / "without") / "animation.mp4").exists()
    (tmp_path / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    film = made.save(tmp_path / "with") / "animation.mp4"
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(film))
    assert frames == 3
    made.save(tmp_path / "with")  # in its own place
    (tmp_path / "ffmpeg").unlink()
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\necho no codec >&2\nexit 1\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    told = "ffmpeg could not make a video of the pictures, which are saved without it: no codec"
    with pytest.warns(UserWarning, match=told):
        made.save(tmp_path / "broken")
    assert cnnviz.load(tmp_path / "broken").equals(made)
    assert not (tmp_path / "broken" / "animation.mp4").exists()


def test_pieces_follow_the_memory_budget(net: SmallNet) -> None:
    x = picture(512, 512)
    seen: list[tuple[int, ...]] = []

    def watch(_: Any, given: tuple[Tensor, ...]) -> None:
        seen.append(tuple(given[0].shape))

    kind = type("Watched", (SmallNet,), {"forward": lambda self, y: (watch(self, (y,)), SmallNet.forward(self, y))[1]})
    watched = kind().eval()
    dream(watched, x, layer="conv2", octaves=1, steps=1, memory="4MiB")
    assert max(shape[2] for shape in seen if shape[2] != 512 or shape[0] != 1) <= 256
    with pytest.raises(cnnviz.InputError, match=r"a piece of 64 x 64 pixels does not fit the memory budget"):
        dream(cnnviz.load_model().module, picture(512, 512), memory="1MiB")


def test_units_must_be_known(net: SmallNet) -> None:
    with pytest.raises(cnnviz.InputError, match="no preprocessing that tells what they show"):
        dream(net, picture(64, 64) * 3 - 1, layer="conv2")


def test_the_top_class_may_be_named(net: SmallNet) -> None:
    x = picture(40, 40)
    (best,) = net(x).argmax(1).tolist()
    given = {"octaves": 1, "steps": 2}
    named, top, free = (
        cnnviz.explain(net, x, "deep-dream", target=target, **given).images for target in (best, cnnviz.top(1), None)
    )
    assert torch.equal(named, top)
    assert not torch.equal(named, free)


def test_an_animation_is_one_whatever_the_budget(net: SmallNet) -> None:
    x = torch.cat([picture(40, 40)] * 3)
    made = [dream(net, x, layer="conv2", frames=2, octaves=1, steps=1, memory=memory) for memory in (None, "1MiB")]
    assert [one.frame_rate for one in made] == [15.0, 15.0]


def test_long_pictures_keep_a_pixel() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, padding=1), torch.nn.ReLU())
    assert dream(net, picture(12, 2000), layer="0", size=40, steps=1, octaves=1).images.shape[2:] == (1, 40)
