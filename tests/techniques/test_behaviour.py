"""Techniques over many images: the same from an index as from the images themselves, and what a loop finds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

import cnnviz
from cnnviz import InputError, Model, OptionError, SaveError
from cnnviz.data import open_dataset, open_image
from cnnviz.engines import build_index
from cnnviz.index import Index, Principal, lay_out
from tests.index.conftest import COUNT, fill, small_model

LAYER = "1"


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def index(model: Model, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return build_index(model, images, tmp_path_factory.mktemp("index"), layer=LAYER, workers=0)


@pytest.fixture(scope="module")
def x(model: Model, images: Path) -> Tensor:
    return model.prepare([open_image(item.read()) for item in open_dataset(images).items])


def features(model: Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.module[:2](x).mean((2, 3))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_the_nearest_by_features(model: Model, x: Tensor, metric: str) -> None:
    made = cnnviz.explain(model, x, "neighbours", layer=LAYER, k=4, metric=metric)
    values = features(model, x).double()
    for row, value in enumerate(values):
        away = 1 - torch.cosine_similarity(value[None], values) if metric == "cosine" else (values - value).norm(dim=1)
        away[row] = torch.inf
        assert made.distances[row].tolist() == pytest.approx(sorted(away.tolist())[:4], rel=1e-3, abs=1e-6)
        assert [float(away[i]) for i in made.indices[row]] == pytest.approx(
            made.distances[row].tolist(), rel=1e-3, abs=1e-6
        )
    assert made.found is not None
    assert torch.equal(made.found[0, 0], made.pictures[made.indices[0, 0]])


def test_neighbours_by_pixels_stand_beside_those_by_features(model: Model, x: Tensor, index: Index) -> None:
    both = cnnviz.explain(model, x[:3], "neighbours", layer=LAYER, index=str(index.folder), space="both", k=3)
    assert both.indices.shape == (6, 3)
    for i in range(3):
        assert both.indices[2 * i, 0] == both.indices[2 * i + 1, 0] == i, "an image is its own neighbour in an index"
        colours = {index.labels[row] for row in both.indices[2 * i + 1].tolist()}
        assert colours == {index.labels[i]}, "noise of one colour is alike"
    assert both.captions[1].startswith(f"image 0, at the left, by pixels: {index.ids[0]} (0), ")
    alone = cnnviz.explain(model, x[:3], "neighbours", layer=LAYER, index=str(index.folder), space="pixels", k=3)
    assert torch.equal(alone.indices, both.indices[1::2])


def test_neighbours_want_somebody_to_choose_from(model: Model, x: Tensor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give several, or index=FOLDER"):
        cnnviz.explain(model, x[:1], "neighbours", layer=LAYER)
    with pytest.raises(SaveError, match="holds no index"):
        cnnviz.explain(model, x, "neighbours", layer=LAYER, index=str(tmp_path))
    assert cnnviz.explain(model, x[:3], "neighbours", layer=LAYER, k=9).indices.shape == (3, 2)


def test_an_index_of_another_network_is_refused(x: Tensor, index: Index) -> None:
    with pytest.raises(SaveError, match="made with other weights"):
        cnnviz.explain(small_model(seed=1), x, "neighbours", layer=LAYER, index=str(index.folder))


@pytest.mark.parametrize("projection", ["none", "deconvnet"])
def test_patches_of_an_index_are_those_of_its_images(model: Model, x: Tensor, index: Index, projection: str) -> None:
    given = {"layer": LAYER, "top": 5, "channels": (4, 0), "projection": projection}
    there = cnnviz.explain(model, None, "top-patches", index=str(index.folder), **given)
    here = cnnviz.explain(model, x, "top-patches", **given)
    torch.testing.assert_close(there.values, here.values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(there.images, here.images, rtol=0, atol=2 / 255)
    for technique in ("top-patches", "activation-overlay"):
        with pytest.raises(OptionError, match="option 'top': got 17, but the index keeps 16"):
            cnnviz.explain(model, None, technique, index=str(index.folder), layer=LAYER, top=17)
    with pytest.raises(InputError, match="neither images nor an index"):
        cnnviz.explain(model, None, "top-patches", layer=LAYER)
    with pytest.raises(OptionError, match="give one of the two"):
        cnnviz.explain(model, x, "top-patches", layer=LAYER, index=str(index.folder))


def test_regions_are_above_the_quantile_of_the_data_set(model: Model, x: Tensor, index: Index) -> None:
    made = cnnviz.explain(
        model, x[:4], "activation-overlay", layer=LAYER, channels=(3, 1), index=str(index.folder), quantile=0.9
    )
    with torch.no_grad():
        maps = model.module[:2](x)
    torch.testing.assert_close(made.values, maps[:4, [3, 1]].transpose(0, 1), rtol=1e-5, atol=1e-6)
    limit = index.threshold(0.9, LAYER)
    every = maps.transpose(0, 1).flatten(1)
    off = 1e-6  # by which a value may differ in another batch, that of the limit itself too
    above, from_it_on = (float((every[3] > limit[3] + by).double().mean()) for by in (off, -off))
    assert above <= 0.1 < from_it_on
    assert made.captions[0] == f"channel 3 of 1, above {limit[3]:.3g} (top 10 %)"
    # Without an index the images themselves are the data set.
    alone = cnnviz.explain(model, x, "activation-overlay", layer=LAYER, channels=(3,), quantile=0.9)
    assert alone.captions == (made.captions[0],)
    # Without images those are shown that excite the channel most.
    strongest = cnnviz.explain(
        model, None, "activation-overlay", layer=LAYER, channels=(3,), top=3, index=str(index.folder)
    )
    best = maps[:, 3].flatten(1).amax(1).sort(descending=True).values[:3]
    torch.testing.assert_close(strongest.values[0].flatten(1).amax(1), best, rtol=1e-5, atol=1e-6)


def test_regions_are_lit_and_the_rest_is_dark(model: Model, x: Tensor) -> None:
    made = cnnviz.explain(model, x[:1], "activation-overlay", layer=LAYER, channels=(3,), quantile=0.5)
    dark = float(made.images.mean()) / float(made.pictures[0].mean())
    assert 0.3 < dark < 0.95


def test_principal_components_are_those_of_a_plain_decomposition() -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(300, 40, generator=draws) * torch.linspace(3, 0.1, 40) + 5
    axes = Principal.of(lambda: x.split(37), 4)
    centred = x.double() - x.double().mean(0)
    plain = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(
        (axes.axes * plain.Vh[:4].T).sum(0).abs(), torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(axes.variance, plain.S[:4] ** 2 / 300, rtol=1e-6, atol=0)
    assert float(axes.total) == pytest.approx(float(plain.S.square().sum()) / 300, rel=1e-9)
    assert torch.equal(axes(x), Principal.of(lambda: x.split(37), 4)(x))


def test_a_projection_is_that_of_the_features(model: Model, x: Tensor, index: Index) -> None:
    made = cnnviz.explain(model, x, "projection", layer=LAYER)
    axes = Principal.of(lambda: [features(model, x)], 2)
    torch.testing.assert_close(made.points, axes(features(model, x)), rtol=1e-4, atol=1e-5)
    there = cnnviz.explain(model, None, "projection", layer=LAYER, index=str(index.folder))
    torch.testing.assert_close(there.points, made.points, rtol=1e-4, atol=1e-5)
    assert there.items == index.ids
    assert there.pictures is not None
    assert there.pictures.shape == (COUNT, 3, 32, 32)
    more = cnnviz.explain(model, x[:2], "projection", layer=LAYER, index=str(index.folder))
    torch.testing.assert_close(more.points[COUNT:], there.points[:2], rtol=1e-4, atol=1e-5)
    assert more.items[-2:] == ("image 0", "image 1")
    assert (there.marked, more.marked) == ((), (COUNT, COUNT + 1))
    framed, plain = (numpy.asarray(one.panels()[0][0][0]) for one in (more, dataclasses.replace(more, marked=())))
    red = [((picture == (220, 30, 50)).all(-1)).sum() for picture in (framed, plain)]
    assert red[1] == 0 < red[0]
    dots = dataclasses.replace(more, pictures=None).panels()[0][0][0]
    assert (numpy.asarray(dots) == (220, 30, 50)).all(-1).any()


def test_without_a_layer_named_that_of_the_index_is_taken(model: Model, x: Tensor, index: Index) -> None:
    for technique in ("neighbours", "projection", "top-patches", "activation-overlay"):
        given = None if technique in ("top-patches", "activation-overlay") else x[:2]
        made, named = (
            cnnviz.explain(model, given, technique, index=str(index.folder), layer=layer) for layer in (None, LAYER)
        )
        assert made.equals(named)
        assert made.provenance is not None
        assert made.provenance.layer == LAYER


def test_images_find_their_place_in_a_map_that_stays(model: Model, x: Tensor, images: Path, tmp_path: Path) -> None:
    index = build_index(model, images, tmp_path / "index", layer=LAYER, workers=0)
    points = lay_out(index, "tsne", perplexity=5)
    assert torch.equal(lay_out(index, "tsne", perplexity=5), points)
    made = cnnviz.explain(model, x[:3], "projection", layer=LAYER, index=str(index.folder), method="tsne", perplexity=5)
    assert torch.equal(made.points[:COUNT], points)
    away = torch.cdist(made.points[COUNT:], points)
    spread = float((points.amax(0) - points.amin(0)).max())
    assert float(away[range(3), range(3)].max()) < 0.2 * spread, "an image comes to lie near its own place"
    with pytest.raises(OptionError, match=r"perplexity: got 30, expected 1 to 7\.33"):
        cnnviz.explain(model, x, "projection", layer=LAYER, method="tsne")


def test_components_of_added_images_do_not_move_the_map(model: Model, images: Path, tmp_path: Path) -> None:
    place = fill(tmp_path / "images", 9)
    index = build_index(model, place, tmp_path / "index", layer=LAYER, workers=0)
    points = lay_out(index, "pca")
    for more in (5, 4):
        fill(place, more, first=len(index))
        index = build_index(model, place, index.folder, add=True, workers=0)
        moved = lay_out(index, "pca")
        assert torch.equal(moved[: len(points)], points)
        points = moved
    pictures = model.prepare([open_image(index.entry(17).item.read())])
    made = cnnviz.explain(model, pictures, "projection", layer=LAYER, index=str(index.folder))
    torch.testing.assert_close(made.points[-1], points[17], rtol=1e-4, atol=1e-5)


def test_what_is_gone_is_shown_small_and_not_run(model: Model, tmp_path: Path) -> None:
    place = fill(tmp_path / "images", 6)
    index = build_index(model, place, tmp_path / "index", layer=LAYER, workers=0)
    query = model.prepare([open_image(index.entry(0).item.read())])
    Path(index.entry(1).item.place).unlink()
    made = cnnviz.explain(model, query, "neighbours", layer=LAYER, index=str(index.folder), k=6)
    assert sorted(made.indices[0].tolist()) == list(range(6))
    for technique in ("top-patches", "activation-overlay"):
        with pytest.raises(InputError, match="cannot be read"):
            cnnviz.explain(model, None, technique, layer=LAYER, index=str(index.folder), top=6)


def test_dots_stay_dots_beside_images_that_are_given(
    model: Model, x: Tensor, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnnviz_techniques.behaviour import projection

    monkeypatch.setattr(projection, "_SHOWN", 1)
    made = cnnviz.explain(model, x[:2], "projection", layer=LAYER, index=str(index.folder))
    assert made.pictures is None
    assert made.panels()
