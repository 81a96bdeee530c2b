"""The map of an index, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cnnviz.engines import build_index
from cnnviz.index import lay_out
from cnnviz.report import save_map
from tests.index.conftest import COUNT, fill, small_model


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("map")
    index = build_index(small_model(), fill(place / "images"), place / "index", layer="1", workers=0)
    return save_map(index, lay_out(index, "pca"), place / "map.html", method="principal components")


COLOURED = """() => {
    const map = document.getElementById("map");
    const data = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
    let count = 0;
    for (let i = 0; i < data.length; i += 4) {
        const [low, , high] = [...data.slice(i, i + 3)].sort((a, b) => a - b);
        count += high - low > 60 && data[i + 3] > 200;
    }
    return count;
}"""


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_images_are_looked_at_found_and_chosen(page_of: Path, browser: Any, width: int, scheme: str) -> None:
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or complaints.append(asked.url))
    page.goto(page_of.as_uri())
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert f"{COUNT} images, as Sequential sees them" in page.inner_text("h1")
    assert page.locator("#legend button").all_inner_texts() == ["blue\n8", "green\n8", "red\n7"]
    assert page.evaluate(COLOURED) > 100
    # Under the pointer: the image, what it is, and what is near it.
    x, y = page.evaluate("screen(3)")
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.wait_for_timeout(100)
    assert page.inner_text("#card .name") == "blue/009.png"
    assert "label: blue · prediction: " in page.inner_text("#card .what")
    assert page.locator("#card .near canvas").count() == 8
    # One class alone, then one image by its name.
    page.locator("#legend button", has_text="red").click()
    page.wait_for_timeout(100)
    assert page.evaluate("[...Array(count).keys()].filter(lit).length") == 7
    page.locator("#legend button", has_text="red").click()
    page.fill("#find", "012")
    page.wait_for_timeout(100)
    assert page.evaluate("[...Array(count).keys()].filter(lit).map(i => data.ids[i])") == ["blue/012.png"]
    page.fill("#find", "")
    # Zooming stops before nothing is left to see, and the whole map comes back.
    before = page.evaluate("view.scale")
    page.mouse.move(box["x"] + x, box["y"] + y)
    for _ in range(12):
        page.mouse.wheel(0, -500)
    page.wait_for_timeout(100)
    assert before < page.evaluate("view.scale") <= page.evaluate("most") * 1.0001
    page.click("#whole")
    page.wait_for_timeout(100)
    assert page.evaluate("view.scale") == pytest.approx(before)
    page.select_option("#colour", "prediction")
    assert complaints == []


@pytest.mark.parametrize(("width", "height"), [(667, 240), (300, 150), (120, 80)])
def test_the_map_fits_short_screens(page_of: Path, browser: Any, width: int, height: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(page_of.as_uri())
    page.wait_for_timeout(200)
    assert page.evaluate("view.scale") > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide, high = page.evaluate("[map.clientWidth, map.clientHeight]")
    assert high >= 100, "there is room for it, if need be below the controls"
    places = page.evaluate("[...Array(count).keys()].map(i => [points[2 * i], points[2 * i + 1], ...screen(i)])")
    assert all(0 < x < wide and 0 < y < high for _, _, x, y in places)
    by_x, by_y = sorted(places), sorted(places, key=lambda place: place[1])
    assert by_x[0][2] < by_x[-1][2], "it is not mirrored"
    assert by_y[0][3] > by_y[-1][3], "nor upside down"
    page.close()


def test_the_keyboard_shows_images_too(page_of: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 900, "height": 700})
    page.goto(page_of.as_uri())
    page.wait_for_timeout(200)
    assert page.get_attribute("#map", "role") == "application"
    assert "N and P show the next and the previous image" in page.get_attribute("#map", "aria-label")
    assert page.locator("[aria-live=polite] #card").count() == 1
    page.focus("#map")
    page.keyboard.press("n")
    page.keyboard.press("n")
    assert page.inner_text("#card .name") == page.evaluate("data.ids[1]")
    page.keyboard.press("p")
    page.keyboard.press("p")
    assert page.inner_text("#card .name") == page.evaluate("data.ids[count - 1]")
    page.fill("#find", "012")
    page.focus("#map")
    for key in ("+",) * 9 + ("ArrowLeft",) * 9 + ("n",):
        page.keyboard.press(key)
    assert page.inner_text("#card .name") == "blue/012.png", "only what was found is gone through"
    x, y = page.evaluate("screen(picked)")
    assert 0 < x < page.evaluate("map.clientWidth"), "and the map moves there"
    assert 0 < y < page.evaluate("map.clientHeight")
    page.keyboard.press("Escape")
    assert page.locator("#card").is_hidden()
    page.locator("#legend button").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true", "the focus stays"
    page.close()


def test_small_classes_can_be_chosen_too(tmp_path: Path, browser: Any) -> None:
    images = fill(tmp_path / "images", 45)
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        (images / f"kind-{number:02}").mkdir()
        path.rename(images / f"kind-{number:02}" / path.name)
    index = build_index(small_model(), images, tmp_path / "index", layer="1", workers=0)
    page = browser.new_page()
    page.goto(save_map(index, lay_out(index, "pca"), tmp_path / "map.html", method="components").as_uri())
    assert page.locator("#legend button").count() == 41
    page.locator("#legend button", has_text="5 smaller ones").click()
    texts = page.locator("#legend button").all_inner_texts()
    assert sorted(texts) == [f"kind-{number:02}\n1" for number in range(45)]
    assert page.evaluate("document.activeElement === legend.children[40]")
    page.locator("#legend button").last.click()
    assert page.evaluate("[...Array(count).keys()].filter(lit).length") == 1
    page.close()


def test_images_without_a_label_are_counted_too(tmp_path: Path, browser: Any) -> None:
    images = fill(tmp_path / "images", 5)
    (images / "red" / "002.png").rename(images / "002.png")
    index = build_index(small_model(), images, tmp_path / "index", layer="1", workers=0)
    page = browser.new_page()
    page.goto(save_map(index, lay_out(index, "pca"), tmp_path / "map.html", method="components").as_uri())
    assert page.locator("#legend button").all_inner_texts() == ["blue\n2", "green\n2", "no label\n1"]
    page.locator("#legend button", has_text="no label").click()
    assert page.evaluate("[...Array(count).keys()].filter(lit).map(i => data.ids[i])") == ["002.png"]


def test_names_cannot_break_the_page(tmp_path: Path, browser: Any) -> None:
    images = fill(tmp_path / "images", 5)
    (images / "red" / "002.png").rename(images / "red" / "<img src=x onerror=alert(1)><!--<script>.png")
    index = build_index(small_model(), images, tmp_path / "index", layer="1", workers=0)
    made = save_map(index, lay_out(index, "pca"), tmp_path / "map.html", method="principal components")
    complaints: list[str] = []
    page = browser.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.goto(made.as_uri())
    assert json.loads(page.inner_text("#data") or page.evaluate("JSON.stringify(data)"))["ids"] == list(index.ids)
    x, y = page.evaluate("screen(4)")
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.wait_for_timeout(200)
    assert complaints == []


def test_a_single_image_has_no_neighbours(tmp_path: Path, browser: Any) -> None:
    index = build_index(small_model(), fill(tmp_path / "images", 1), tmp_path / "index", layer="1", workers=0)
    complaints: list[str] = []
    page = browser.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(save_map(index, lay_out(index, "pca"), tmp_path / "map.html", method="components").as_uri())
    x, y = page.evaluate("screen(0)")
    box = page.locator("#map").bounding_box()
    page.mouse.click(box["x"] + x, box["y"] + y)
    page.wait_for_timeout(200)
    assert page.locator("#card .name").inner_text() == index.ids[0]
    assert page.locator("#card .near canvas").count() == 0
    assert complaints == []
