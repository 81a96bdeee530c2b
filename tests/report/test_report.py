"""The report, in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import cnnviz
from cnnviz.data import demo_picture, open_image
from cnnviz.report import Report, make_report


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run the demo as a user does; returns the page and what was told as JSON."""
    place = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "cnnviz", "demo", "--json"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert Path(told["report"]) == place / "cnnviz-report" / "index.html"
    return Path(told["report"]), told


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_is_whole_and_fits(demo: Any, browser: Any, width: int, scheme: str, tmp_path: Path) -> None:
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or complaints.append(asked.url))
    page.goto(demo[0].as_uri())
    assert complaints == []
    assert page.evaluate("document.images.length") >= 15
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0 && image.alt)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
    assert page.locator("article").count() == len(demo[1]["sections"][0]["techniques"])
    for name in demo[1]["sections"][0]["techniques"]:
        assert page.locator(f'[id="{name}"] img').first.bounding_box()["width"] > 100
    assert _contrast(page) >= 4.5
    ratio = page.evaluate("(i => i.clientWidth / i.clientHeight)(document.querySelector('.hero img'))")
    assert ratio == pytest.approx(1, abs=0.02), "the photograph is not stretched"
    assert page.screenshot(path=tmp_path / "page.png", full_page=True)
    page.close()


def _contrast(page: Any) -> float:
    """Return the contrast ratio of body text, as WCAG 2 defines it."""
    colours = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    light = sorted(_luminance([int(part) for part in re.findall(r"\d+", colour)[:3]]) for colour in colours)
    return (light[1] + 0.05) / (light[0] + 0.05)


def _luminance(rgb: list[int]) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_demo_is_right_about_the_cat(demo: Any) -> None:
    (section,) = demo[1]["sections"]
    assert section["predictions"][0]["label"] == "Egyptian cat"
    assert section["predictions"][0]["probability"] > 0.5
    assert section["failures"] == {}
    assert {"saliency", "grad-cam", "occlusion", "guided-backprop", "deconvnet", "activations", "filters"} <= set(
        section["techniques"]
    )


def test_page_shows_options_target_layer_time_and_provenance(demo: Any) -> None:
    text = demo[0].read_text(encoding="utf-8")
    for expected in ("window=[32, 32]", "<code>features</code>", "top class", " s</dd>", "SHA-256", torch.__version__):
        assert expected in text
    assert "Egyptian cat" in text
    assert "http" not in text.replace("http-equiv", ""), "nothing is fetched"


def test_grad_cam_peak_lies_on_the_face() -> None:
    """The face fills x 30 to 370 and y 0 to 300 of the 451 x 300 photograph; the crop is the middle of 385 x 256."""
    model = cnnviz.load_model()
    photo = demo_picture()
    heat = cnnviz.explain(model, photo, "grad-cam")
    assert isinstance(heat, cnnviz.Heatmap)
    scale = 256 / photo.height
    left, top = (round(photo.width * scale) - 224) / 2, (256 - 224) / 2
    y, x = divmod(int(heat.values[0, 0].argmax()), 224)
    assert 30 <= (x + left) / scale <= 370
    assert 0 <= (y + top) / scale <= 300


def test_grad_cam_peak_lies_on_the_object_when_it_fills_little_of_the_picture() -> None:
    """The cat, shrunk into the lower right quarter of a grey picture, is where the peak is."""
    from PIL import Image

    canvas = Image.new("RGB", (256, 256), (124, 116, 104))
    canvas.paste(demo_picture().resize((120, 80)), (120, 150))
    heat = cnnviz.explain(cnnviz.load_model(), canvas, "grad-cam", target="Egyptian cat")
    assert isinstance(heat, cnnviz.Heatmap)
    y, x = divmod(int(heat.values[0, 0].argmax()), 224)
    assert 120 - 16 - 16 <= x <= 240 - 16 + 16  # the crop takes 16 off each side; a cell of the map is 32 wide
    assert 150 - 16 - 16 <= y <= 230 - 16 + 16


def test_a_technique_that_cannot_run_is_reported_on_the_page(tmp_path: Path) -> None:
    from torch import nn

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    model = cnnviz.Model(net.eval(), "no-relu", cnnviz.Preprocess(resize=64, crop=(64, 64)))
    photo = tmp_path / "cat <b>.png"
    demo_picture().save(photo)
    made = make_report(model, [photo], names=["guided-backprop", "saliency", "filters"])
    assert [failure.technique for failure in made.sections[0].failures] == ["guided-backprop"]
    text = made.html()
    assert "met no ReLU" in text
    assert "cat &lt;b&gt;.png" in text
    assert "<b>.png" not in text


def test_one_photograph_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [tmp_path / f"{number}.png" for number in range(4)]
    for place in places:
        demo_picture().resize((64, 64)).save(place)
    opened: list[weakref.ref[Any]] = []
    held: list[int] = []

    def opens(path: Path) -> Any:
        held.append(sum(one() is not None for one in opened))
        image = open_image(path)
        opened.append(weakref.ref(image))
        return image

    monkeypatch.setattr("cnnviz.report.page.open_image", opens)
    made = make_report(cnnviz.load_model(), places, names=[])
    assert [section.name for section in made.sections] == ["0.png", "1.png", "2.png", "3.png"]
    assert max(held) <= 1
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(cnnviz.InputError, match=r"3\.png' is no image"):
        make_report(
            cnnviz.load_model(), places, names=["saliency"], started=lambda *_: pytest.fail("the work was begun")
        )


def test_a_result_that_cannot_be_drawn_takes_no_other_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panels = cnnviz.Heatmap.panels

    def fails(self: cnnviz.Heatmap, count: int | None = None) -> Any:
        if self.provenance is not None and self.provenance.technique == "grad-cam":
            raise RuntimeError("no colours left")
        return panels(self, count)

    monkeypatch.setattr(cnnviz.Heatmap, "panels", fails)
    photo = tmp_path / "cat.png"
    demo_picture().save(photo)
    made = make_report(cnnviz.load_model(), [photo], names=["grad-cam", "saliency"])
    assert list(made.sections[0].explanations) == ["saliency"]
    (failure,) = made.sections[0].failures
    assert failure.technique == "grad-cam"
    assert "no colours left" in failure.reason
    assert "no colours left" in made.html()


def test_writing_to_a_read_only_place_is_a_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(cnnviz.SaveError, match="cannot be written"):
        Report(cnnviz.load_model(), ()).write(blocked / "page.html")
    assert list(tmp_path.iterdir()) == [blocked]
