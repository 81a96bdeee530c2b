"""The report, in a real browser."""

from __future__ import annotations

import io
import itertools
import json
import re
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

import cnnviz
from cnnviz.data import demo_picture, open_image
from cnnviz.report import Report, Section, make_report


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
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as shot:
        dark = numpy.asarray(shot.convert("L"))[:, : width // 100].mean() < 128
        assert (shot.width, dark) == (width, scheme == "dark")
        assert shot.height > 3000
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


HEADINGS = "[...document.querySelectorAll('h1, h2, h3, h4')].map(h => [Number(h.tagName[1]), h.textContent])"


def nested(headings: list[list[Any]]) -> bool:
    """Whether a page has one main heading, and no level is left out below it."""
    levels = [level for level, _ in headings]
    return levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_every_target_is_shown(tmp_path: Path, browser: Any) -> None:
    demo_picture().save(tmp_path / "cat.png")
    made = make_report(cnnviz.load_model(), [tmp_path / "cat.png"], names=["grad-cam"], target=cnnviz.top(3))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(made.write(tmp_path / "page.html").as_uri())
    captions = page.locator("#grad-cam .caption").all_inner_texts()
    assert [caption.partition(": ")[2].partition(",")[0] for caption in captions] == [
        "Egyptian cat",
        "tiger cat",
        "tabby",
    ]
    assert page.locator("#grad-cam .panels img").count() == 6
    assert page.locator("#grad-cam .bar").count() == 3
    assert page.locator("#grad-cam .reading").all_inner_texts() == ["The brighter, the more."]
    ends = page.locator("#grad-cam .ticks span:last-child").all_inner_texts()
    assert len(set(ends)) == 3, "each has its own scale"
    first, second, _ = page.locator("#grad-cam .rows > div").all()
    assert first.bounding_box()["y"] == second.bounding_box()["y"], "side by side"
    assert page.evaluate("document.querySelectorAll('main').length") == 1
    assert nested(page.evaluate(HEADINGS))
    page.set_viewport_size({"width": 390, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


@pytest.mark.parametrize("count", [12, 13])
def test_of_very_many_targets_the_first_are_shown(count: int) -> None:
    made = cnnviz.Heatmap(values=torch.rand(count, 1, 4, 4), provenance=cnnviz.Provenance("grad-cam"))
    section = Section("cat.png", demo_picture(), (), {"grad-cam": made}, ())
    page = Report(cnnviz.load_model(), (section,)).html()
    assert page.count('class="bar"') == 12
    assert ("The first 12; cnnviz explain grad-cam writes all." in page) == (count > 12)


def test_several_photographs_are_parts_of_one_page(tmp_path: Path, browser: Any) -> None:
    for name in ("a.png", "b.png"):
        demo_picture().resize((64, 64)).save(tmp_path / name)
    made = make_report(cnnviz.load_model(), [tmp_path / "a.png", tmp_path / "b.png"], names=["grad-cam", "filters"])
    page = browser.new_page()
    page.goto(made.write(tmp_path / "page.html").as_uri())
    headings = page.evaluate(HEADINGS)
    assert nested(headings)
    assert headings[0] == [1, "What mobilenet_v2 sees in 2 photographs"]
    part = [[3, "What it predicts"], [3, "attribution"], [4, "grad-cam"], [3, "inspection"], [4, "filters"]]
    assert headings[1:] == [[2, "a.png"], *part, [2, "b.png"], *part, [2, "Provenance"]]
    assert page.evaluate("document.querySelectorAll('main, body > header').length") == 2
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(set(ids)) == len(ids)
    page.close()


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
