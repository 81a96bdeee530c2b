"""On photographs and a trained network: neighbours agree in label, and the map keeps them together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.manifold import TSNE, trustworthiness

from cnnviz.engines import build_index
from cnnviz.index import Index, tsne
from tests.index.cifar import NAMES, cifar_images, cifar_model

COUNT = 1500


@pytest.fixture(scope="module")
def index(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    images = cifar_images(data, tmp_path_factory.mktemp("cifar"), COUNT)
    return build_index(cifar_model(data), images, tmp_path_factory.mktemp("index"))


def test_the_network_is_right_as_often_as_it_should_be(index: Index) -> None:
    predictions = index.predictions()
    assert predictions is not None
    label = torch.tensor([NAMES.index(str(name)) for name in index.labels])
    assert float((predictions == label).double().mean()) == pytest.approx(0.933, abs=0.015)


def test_neighbours_by_features_agree_in_label_and_those_by_pixels_do_not(index: Index) -> None:
    """Chance is 0.1; among all 10,000 test images it is 0.90 by features and 0.25 by pixels."""
    by_features, by_pixels = index.agreement(5), index.agreement(5, pixels=True)
    assert by_features > 0.85
    assert by_pixels < 0.3


@pytest.mark.parametrize("pixels", [False, True])
def test_exact_search_is_brute_force(index: Index, pixels: bool) -> None:
    every = index.vectors(range(COUNT), pixels=pixels).double()
    away = torch.cdist(every[:50], every, compute_mode="donot_use_mm_for_euclid_dist")
    expected = away.sort(1).values[:, :10]
    found, _ = index.search(every[:50].float(), 10, metric="euclidean", pixels=pixels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_map_keeps_neighbours_as_well_as_scikit_learns(index: Index) -> None:
    features = index.features()
    mine = tsne(features)
    theirs = TSNE(random_state=0, init="pca").fit_transform(features.numpy())
    kept = trustworthiness(features.numpy(), mine.numpy(), n_neighbors=10)
    assert kept >= trustworthiness(features.numpy(), theirs, n_neighbors=10) - 0.005
    assert kept > 0.95
    assert torch.equal(tsne(features), mine)
