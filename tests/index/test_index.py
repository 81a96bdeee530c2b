"""An index holds what the network makes of each image, once, whatever happened while it was written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from cnnviz import CnnvizError, InputError, LayerError, Model, OptionError, Preprocess, SaveError, load_model
from cnnviz.data import Item, open_dataset, open_image
from cnnviz.engines import build_index
from cnnviz.index import Index, exact_quantile, features_of, read_manifest, verify
from tests.index.conftest import COUNT, fill, small_model

LAYERS = ("1", "4")


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make parts of few images, so that there are several."""
    monkeypatch.setattr("cnnviz.engines.build._LARGEST", 4)


@pytest.fixture
def index(model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    small(monkeypatch)
    return build_index(model, images, tmp_path / "index", layer=LAYERS, workers=0, top=3)


def maps_of(model: Model, images: Path, layer: int) -> torch.Tensor:
    """The layer's maps of each image alone."""
    pictures = [open_image(item.read()) for item in open_dataset(images).items]
    with torch.no_grad():
        return torch.cat([model.module[: layer + 1](model.prepare([picture])) for picture in pictures])


def test_features_units_and_thresholds_are_the_networks(index: Index, model: Model, images: Path) -> None:
    assert len(index) == COUNT
    assert index.ids == tuple(item.id for item in open_dataset(images).items)
    assert index.labels == tuple(name.partition("/")[0] for name in index.ids)
    assert len(read_manifest(index.folder)["parts"]) == 6
    for layer in LAYERS:
        maps = maps_of(model, images, int(layer))
        torch.testing.assert_close(index.features(layer), maps.mean((2, 3)), rtol=1e-5, atol=1e-6)
        best = maps.flatten(2).amax(2)
        found = index.strongest(layer)
        torch.testing.assert_close(found.values, best.sort(0, descending=True).values[:3], rtol=1e-5, atol=1e-6)
        for channel in range(maps.shape[1]):
            for value, (image, row, column) in zip(
                found.values[:, channel], found.places[:, channel].tolist(), strict=True
            ):
                assert float(maps[image, channel, row, column]) == pytest.approx(float(value), rel=1e-5, abs=1e-6)
        every = maps.transpose(0, 1).flatten(1)
        torch.testing.assert_close(index.threshold(0.9, layer), exact_quantile(every, 0.9), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        output = torch.cat([model.module(model.prepare([open_image(e.read())])) for e in open_dataset(images).items])
    predictions = index.predictions()
    assert predictions is not None
    assert torch.equal(predictions.long(), output.argmax(1))
    assert index.about["classes"] == ["ant", "bee", "cat", "dog"]


def test_thresholds_of_large_sets_are_within_a_hundredth(
    model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    monkeypatch.setattr("cnnviz.engines.build._EXACT", 100)
    index = build_index(model, images, tmp_path / "index", layer="1", workers=0)
    assert not index.has("values.0")
    every = maps_of(model, images, 1).transpose(0, 1).flatten(1)
    for q in (0.5, 0.9, 0.995):
        torch.testing.assert_close(index.threshold(q), exact_quantile(every, q), rtol=0.01, atol=2**-16)
    with pytest.raises(OptionError, match="between 0 and 1"):
        index.threshold(1.0)


def test_processes_that_decode_change_nothing(index: Index, model: Model, images: Path, tmp_path: Path) -> None:
    other = build_index(model, images, tmp_path / "other", layer=LAYERS, workers=2, top=3)
    assert torch.equal(other.features("4"), index.features("4"))
    assert torch.equal(other.strongest("1").places, index.strongest("1").places)
    assert torch.equal(other.thumbnails(), index.thumbnails())


class Stop(Exception):
    pass


def stopping(after: int) -> Any:
    def step(done: int, total: int) -> None:
        if done >= after:
            raise Stop

    return step


def test_what_was_interrupted_goes_on_where_it_was(
    index: Index, model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "again"
    seen: list[int] = []
    for after in (5, 9, 14, 18):
        with pytest.raises(Stop):
            build_index(
                model, images, folder, layer=LAYERS, workers=0, top=3, progress=lambda d, t, a=after: stopping(a)(d, t)
            )
        with pytest.raises(SaveError, match="not finished"):
            Index(folder)
    made = build_index(
        model, images, folder, layer=LAYERS, workers=0, top=3, progress=lambda done, total: seen.append(done)
    )
    assert seen[0] == 20
    assert made.ids == index.ids
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in index.folder.iterdir())
    for path in index.folder.glob("*.safetensors"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert build_index(model, images, folder, layer=LAYERS, workers=0, top=3).ids == index.ids  # nothing left to do


def test_images_are_added_once(index: Index, model: Model, images: Path, tmp_path: Path) -> None:
    fill(images, 7, first=COUNT)
    with pytest.raises(SaveError, match="holds an index of other images; add to it"):
        build_index(model, images, index.folder, layer=LAYERS, workers=0, top=3)
    with pytest.raises(Stop):
        build_index(model, images, index.folder, add=True, workers=0, progress=stopping(5))
    assert len(Index(index.folder)) == COUNT  # as it was, until all are there
    more = build_index(model, images, index.folder, add=True, workers=0)
    assert len(more) == COUNT + 7
    assert more.ids[:COUNT] == index.ids
    assert set(more.ids) == {item.id for item in open_dataset(images).items}
    assert len(build_index(model, images, index.folder, add=True, workers=0)) == COUNT + 7
    whole = build_index(model, images, tmp_path / "whole", layer=LAYERS, workers=0, top=3)
    for layer in LAYERS:
        torch.testing.assert_close(more.strongest(layer).values, whole.strongest(layer).values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(more.threshold(0.95, layer), whole.threshold(0.95, layer), rtol=1e-5, atol=1e-6)
    assert verify(index.folder) == []
    assert len(list(index.folder.glob("*-summary.safetensors"))) == 1


def test_images_that_cannot_be_read_are_told_and_left_out(model: Model, images: Path, tmp_path: Path) -> None:
    whole = build_index(model, images, tmp_path / "whole", workers=0)
    (images / "green" / "004.png").write_bytes(b"no picture")
    index = build_index(model, images, tmp_path / "index", workers=0)
    assert list(index.left_out) == ["green/004.png"]
    assert "no image" in index.left_out["green/004.png"]
    assert index.ids == tuple(name for name in whole.ids if name != "green/004.png")
    kept = [whole.row(name) for name in index.ids]
    torch.testing.assert_close(index.features(), whole.features()[kept], rtol=1e-5, atol=1e-6)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="none of 1 images can be read"):
        build_index(model, empty, tmp_path / "nothing", workers=0)
    # What was mended since is read, there and where it is added.
    for place in (images / "green" / "004.png", empty / "a.png"):
        Image.new("RGB", (20, 20)).save(place)
    assert build_index(model, empty, tmp_path / "nothing", workers=0).ids == ("a.png",)
    more = build_index(model, images, index.folder, add=True, workers=0)
    assert set(more.ids) == set(whole.ids)
    assert more.left_out == {}


def test_what_cannot_be_read_for_now_is_tried_again(
    model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    read, reads = Item.read, []

    def failing(item: Item) -> bytes:
        reads.append(item.id)
        if len(reads) == 10:
            raise CnnvizError("the disk is gone")
        return read(item)

    monkeypatch.setattr(Item, "read", failing)
    with pytest.raises(CnnvizError, match="the disk is gone"):
        build_index(model, images, tmp_path / "index", workers=0)
    index = build_index(model, images, tmp_path / "index", workers=0)
    assert len(index) == COUNT
    assert index.left_out == {}


def test_damage_is_found_refused_and_mended(index: Index, model: Model, images: Path) -> None:
    assert verify(index.folder) == []
    before = {path.name: path.read_bytes() for path in index.folder.glob("*.safetensors")}
    part = index.folder / next(name for name in sorted(before) if name.endswith("-000002.safetensors"))
    (summary,) = index.folder.glob("*-summary.safetensors")
    flipped = before[part.name][:-1] + bytes([before[part.name][-1] ^ 1])
    cut = {path: before[path.name][:100] for path in (part, summary)}
    for damage in ({part: flipped}, {part: cut[part]}, {summary: cut[summary]}, cut):
        for path, content in damage.items():
            path.write_bytes(content)
        assert verify(index.folder) == [f"{path.name} is not what was written" for path in damage]
        if flipped not in damage.values():
            with pytest.raises(SaveError, match=r"damaged: .* not of the size that was written; build it again"):
                Index(index.folder)
        build_index(model, images, index.folder, layer=LAYERS, workers=0, top=3)
        after = {path.name: path.read_bytes() for path in index.folder.glob("*.safetensors")}
        assert after == before


def test_parts_that_are_gone_are_made_anew_by_the_run_that_made_them(
    index: Index, model: Model, images: Path, tmp_path: Path
) -> None:
    more = fill(tmp_path / "more", 9, first=100)
    index = build_index(model, more, index.folder, add=True, workers=0)
    parts = [told["file"] for told in read_manifest(index.folder)["parts"]]
    expected = index.threshold(0.9, "1")
    for lost in (parts[2], parts[-2]):
        (index.folder / lost).unlink()
        assert verify(index.folder) == [f"{lost} is missing"]
        wrong, right = (more, images) if lost == parts[2] else (images, more)
        with pytest.raises(SaveError, match=f"{lost} is missing .* add again the images that it was made of"):
            build_index(model, wrong, index.folder, add=True, workers=0)
        mended = build_index(model, right, index.folder, add=True, workers=0)
        assert mended.ids == index.ids
        assert torch.equal(mended.threshold(0.9, "1"), expected)
        assert verify(index.folder) == []


def test_what_is_no_index_of_this_model_is_refused(index: Index, images: Path, tmp_path: Path, model: Model) -> None:
    with pytest.raises(SaveError, match="holds no index"):
        Index(tmp_path / "none")
    with pytest.raises(SaveError, match="made with other weights"):
        index.check(small_model(seed=1))
    with pytest.raises(SaveError, match="holds something else"):
        build_index(model, images, images, workers=0)
    other = tmp_path / "foreign"
    other.mkdir()
    (other / "weights.safetensors").write_bytes(b"")
    with pytest.raises(SaveError, match=r"holds weights\.safetensors but no index\.json"):
        build_index(model, images, other, workers=0)
    with pytest.raises(SaveError, match="other layers"):
        build_index(model, images, index.folder, layer="3", workers=0)
    with pytest.raises(SaveError, match="other weights"):
        build_index(small_model(seed=1), images, index.folder, layer=LAYERS, top=3, workers=0)
    with pytest.raises(SaveError, match="holds no index"):
        build_index(model, images, tmp_path / "new", add=True, workers=0)
    with pytest.raises(LayerError, match="the index has the layers 1, 4, got '3'"):
        index.features("3")
    manifest = json.loads((index.folder / "index.json").read_text())
    (index.folder / "index.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(SaveError, match="another version"):
        Index(index.folder)


def test_an_interrupted_build_does_not_go_on_with_other_images(
    model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    with pytest.raises(Stop):
        build_index(model, images, tmp_path / "index", workers=0, progress=stopping(9))
    (images / "red" / "002.png").unlink()
    with pytest.raises(SaveError, match="waits for the rest of 23 images"):
        build_index(model, images, tmp_path / "index", workers=0)
    made = build_index(model, images, tmp_path / "index", workers=0, restart=True)
    assert len(made) == COUNT - 1
    assert len(list(made.folder.glob("*.safetensors"))) == 7  # six parts and the summary


def test_nothing_is_drawn_from_the_global_generator(model: Model, images: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    build_index(model, images, tmp_path / "index", workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_writes_at_a_time(model: Model, images: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)

    def meanwhile(done: int, total: int) -> None:
        for place in (tmp_path / "index", tmp_path / "link" / "index"):
            with pytest.raises(SaveError, match="somebody else is writing"):
                build_index(model, images, place, workers=0)

    build_index(model, images, tmp_path / "index", workers=0, progress=meanwhile)


@pytest.mark.parametrize("given", [{"top": 0}, {"thumbnail": 2}, {"workers": -1}, {"engine": "spark"}])
def test_bad_arguments_are_named(model: Model, images: Path, tmp_path: Path, given: Any) -> None:
    with pytest.raises(OptionError, match=next(iter(given))):
        build_index(model, images, tmp_path / "index", **given)
    assert not (tmp_path / "index").exists()


def test_layers_must_return_maps(model: Model, images: Path, tmp_path: Path) -> None:
    assert build_index(model, images, tmp_path / "values", layer="7", workers=0).features().shape == (COUNT, 4)
    with pytest.raises(CnnvizError, match="name each once"):
        build_index(model, images, tmp_path / "index", layer=("1", "1"), workers=0)


def test_labels_agree_by_pixels_of_coloured_noise(index: Index) -> None:
    """Three colours are told apart by their pixels; chance would be about a third."""
    assert index.agreement(5, pixels=True) == 1.0
    assert 0 <= index.agreement(5) <= 1


def test_queries_are_found_as_the_index_has_them(index: Index, model: Model, images: Path) -> None:
    pictures = [model.preprocess.picture(open_image(item.read())) for item in open_dataset(images).items[:5]]
    queries = features_of(model, index.recipe, pictures, index.number("4"))
    distances, rows = index.search(queries, 3, layer="4", metric="euclidean")
    assert rows[:, 0].tolist() == list(range(5))
    assert float(distances[:, 0].max()) < 1e-5
    _, others = index.search(queries, 3, layer="4", metric="euclidean", skip=range(5))
    assert not (others == torch.arange(5)[:, None]).any()


def test_pictures_are_what_the_network_saw_or_refused(index: Index, model: Model, images: Path) -> None:
    shown = index.picture(3, model)
    assert shown.size == (16, 16)
    assert index.thumbnail(3).size == (32, 32)
    path = Path(index.entry(3).item.place)
    Image.new("RGB", (20, 20)).save(path)
    with pytest.raises(InputError, match="has changed since the index was made"):
        index.picture(3, model)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        index.picture(3, model)


def test_bad_searches_are_named(index: Index) -> None:
    queries = index.features("4")[:2]
    with pytest.raises(OptionError, match="metric: got 'l2', expected 'cosine' or 'euclidean'"):
        index.search(queries, 3, metric="l2")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="k: got -2"):
        index.search(queries, -2)
    with pytest.raises(InputError, match=r"got \(2, 4\), expected \(Q, 5\)"):
        index.search(queries[:, :4], 2)


def test_a_network_of_one_size_asks_for_a_crop(images: Path, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 18, 10)).eval()
    model = load_model(net, preprocess=Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3))
    with pytest.raises(InputError, match=r"cannot run on inputs of shape \(1, 3, 224, 224\).*preprocessing that crops"):
        build_index(model, images, tmp_path / "index", layer="1", workers=0)


def test_an_image_that_overflows_is_left_out_and_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", 3)
    files = sorted(folder.rglob("*.png"), key=lambda file: file.stem)
    files[0].write_bytes(b"no picture")
    Image.new("RGB", (20, 18), "white").save(files[2])
    names = [item.id for item in open_dataset(folder).items]
    model = small_model()
    first = model.module[0]
    assert isinstance(first, nn.Conv2d)
    with torch.no_grad():  # what is white alone overflows
        first.weight.fill_(1e37)
        first.bias.zero_()
    broken, white = (next(name for name in names if file.stem in name) for file in (files[0], files[2]))
    index = build_index(model, folder, tmp_path / "index", layer="0", workers=0)
    assert list(index.ids) == [name for name in names if name not in (broken, white)]
    assert set(index.left_out) == {broken, white}
    assert "layer '0' returns values that are not finite" in index.left_out[white]
    files[2].unlink()
    alone = build_index(model, folder, tmp_path / "alone", layer="0", workers=0)
    for name in ("features", "thumbnails"):
        assert torch.equal(getattr(alone, name)(), getattr(index, name)())
    first.weight.data.fill_(math.nan)
    with pytest.raises(InputError, match=r"none of 2 images can be read; .*"):
        build_index(model, folder, tmp_path / "none", layer="0", workers=0)


def test_images_left_out_are_tried_again_each_time(model: Model, images: Path, tmp_path: Path) -> None:
    broken = images / "green" / "004.png"
    broken.write_bytes(b"no picture")
    index = build_index(model, images, tmp_path / "index", workers=0)
    for why in ("no image", "is empty"):
        broken.write_bytes(b"no picture" if why == "no image" else b"")
        index = build_index(model, images, index.folder, add=True, workers=0)
        assert why in index.left_out["green/004.png"]
    Image.new("RGB", (20, 20)).save(broken)
    index = build_index(model, images, index.folder, add=True, workers=0)
    assert index.left_out == {}
    assert index.ids[-1] == "green/004.png"
    assert len(index) == COUNT


def test_images_that_are_there_already_do_not_count_against_exact_quantiles(
    model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnviz.engines.build._EXACT", (COUNT + 1) * 6 * 16 * 16)
    index = build_index(model, images, tmp_path / "index", layer="1", workers=0)
    fill(images, 1, first=COUNT)
    index = build_index(model, images, index.folder, add=True, workers=0)
    assert index.has("values.0")
    every = maps_of(model, images, 1).transpose(0, 1).flatten(1)
    torch.testing.assert_close(index.threshold(0.9), exact_quantile(every, 0.9), rtol=1e-5, atol=1e-6)
    fill(images, 1, first=COUNT + 1)
    assert not build_index(model, images, index.folder, add=True, workers=0).has("values.0")


def test_how_many_images_there_are_is_no_other_recipe(
    model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values are kept of 23 images and not of 24."""
    monkeypatch.setattr("cnnviz.engines.build._EXACT", COUNT * 6 * 16 * 16)
    small(monkeypatch)
    index = build_index(model, images, tmp_path / "index", layer="1", workers=0)
    with pytest.raises(Stop):
        build_index(model, images, tmp_path / "cut", layer="1", workers=0, progress=stopping(9))
    fill(images, 1, first=COUNT)
    with pytest.raises(SaveError, match="holds an index of other images; add to it"):
        build_index(model, images, index.folder, layer="1", workers=0)
    with pytest.raises(SaveError, match="waits for the rest of 23 images"):
        build_index(model, images, tmp_path / "cut", layer="1", workers=0)
    made = build_index(model, images, tmp_path / "cut", layer="1", workers=0, restart=True)
    assert (len(made), made.recipe.exact) == (COUNT + 1, ())


def test_nothing_done_is_in_nobodys_way(model: Model, images: Path, tmp_path: Path) -> None:
    """Where no image could be read, or a run is forgotten, others begin anew."""
    empty = fill(tmp_path / "empty", 1)
    next(empty.rglob("*.png")).write_bytes(b"no picture")
    with pytest.raises(InputError, match="none of 1 images can be read"):
        build_index(model, empty, tmp_path / "index", layer="1", workers=0)
    with pytest.raises(Stop):
        build_index(model, images, tmp_path / "index", layer="4", workers=0, progress=stopping(0))
    with pytest.raises(SaveError, match=r"other layers.*; give another folder, or forget what was done .*--restart"):
        build_index(model, images, tmp_path / "index", layer="1", workers=0)
    made = build_index(model, images, tmp_path / "index", layer="1", workers=0, restart=True)
    assert (len(made), made.layers) == (COUNT, ("1",))


class Sequences(nn.Module):
    """Its layers return values of places, and no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.flat, self.both = nn.Conv2d(3, 4, 3), nn.Flatten(2), Twice()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.both(self.flat(self.maps(x)))[0].mean(2)


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


def test_layers_without_maps_are_told_before_anything_is_written(images: Path, tmp_path: Path) -> None:
    model = load_model(Sequences().eval(), preprocess=Preprocess(resize=16, crop=(16, 16)))
    for layer, told in (("flat", r"\(N, 4, 196\)"), ("both", "no tensor")):
        with pytest.raises(LayerError, match=f"layer '{layer}' returns {told}, expected maps"):
            build_index(model, images, tmp_path / "index", layer=layer, workers=0)
        assert not (tmp_path / "index").exists()
    assert build_index(model, images, tmp_path / "index", layer="maps", workers=0).layers == ("maps",)


def test_only_its_own_files_are_removed(index: Index, model: Model, images: Path) -> None:
    others = [index.folder / name for name in ("my-weights.safetensors", "0123456789ab-notes.safetensors")]
    left = [index.folder / name for name in ("0123456789ab-000000.safetensors", ".index.json-a1b2c3d4")]
    for path in (*others, *left):
        path.write_bytes(b"some bytes")
    (index.folder / ".cnnviz-abc").mkdir()
    (index.folder / ".index.json-abcdefgh").mkdir()
    build_index(model, images, index.folder, layer=LAYERS, workers=0, top=3)
    assert [path.exists() for path in (*others, *left)] == [True, True, False, False]
    assert (index.folder / ".cnnviz-abc").is_dir()


def test_an_index_that_was_opened_before_asks_to_be_opened_again(index: Index, model: Model, images: Path) -> None:
    before = Index(index.folder)
    strongest = before.strongest("1").values
    for number in (COUNT, COUNT + 1):
        fill(images, 1, first=number)
        more = build_index(model, images, index.folder, add=True, workers=0)
    with pytest.raises(SaveError, match="has changed since it was opened; open it again"):
        before.strongest("1")
    assert before.features("1").shape[0] == COUNT
    assert bool((more.strongest("1").values >= strongest).all())


def test_rows_and_queries_that_make_no_sense_are_told(index: Index) -> None:
    for row in (-1, COUNT):
        for ask in (index.entry, index.thumbnail, lambda row: index.vectors([0, row])):
            with pytest.raises(InputError, match=f"no row {row}; its 23 images are rows 0 to 22"):
                ask(row)
    with pytest.raises(InputError, match="rows: got none"):
        index.vectors([])
    with pytest.raises(InputError, match="queries: got values that are not finite"):
        index.search(torch.full((1, 5), math.nan), 2)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_precision_and_modes_change_nothing(
    index: Index, model: Model, images: Path, tmp_path: Path, threads: int
) -> None:
    pictures = [model.preprocess.picture(open_image(item.read())) for item in open_dataset(images).items[:5]]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            cast = build_index(model, images, tmp_path / "cast", layer=LAYERS, workers=0, top=3)
            queries = features_of(model, index.recipe, pictures, index.number("4"))
        with torch.inference_mode():
            inside = build_index(model, images, tmp_path / "inside", layer=LAYERS, workers=0, top=3)
        with torch.device("meta"):
            elsewhere = build_index(model, images, tmp_path / "elsewhere", layer=LAYERS, workers=1, top=3)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(queries, index.features("4")[:5], rtol=1e-5, atol=1e-6)
    for made in (cast, inside, elsewhere):
        assert made.recipe == index.recipe
        torch.testing.assert_close(made.features("4"), index.features("4"), rtol=1e-5, atol=1e-6)
        assert torch.equal(made.predictions(), index.predictions())
