"""One pass over a data set beside what its two halves take alone, and search beside a plain sort."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageOps

import cnnviz
from cnnviz.data import demo_picture, open_dataset, open_image
from cnnviz.data.decoding import decoded
from cnnviz.engines import build_index
from cnnviz.index import nearest

WEIGHTS = {"mobilenet_v2": "DEFAULT", "resnet50": None}
COUNTS = {"mobilenet_v2": 1024, "resnet50": 256}
CASES = {f"{count:,} photographs of 500 x 375 by {name}": name for name, count in COUNTS.items()}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("photographs")
    picture = demo_picture().resize((500, 375))
    for number in range(max(COUNTS.values())):
        turned = ImageOps.autocontrast(picture.rotate(number / 32), cutoff=number % 5)
        turned.save(place / f"{number:04}.jpg", quality=90)
    return place


@pytest.mark.parametrize("case", CASES)
def test_build(case: str, race: Any, device: str, photographs: Path, tmp_path: Path) -> None:
    name = CASES[case]
    model = cnnviz.load_model(None if WEIGHTS[name] else name, weights=WEIGHTS[name], device=device)
    everything = open_dataset(photographs)
    count = COUNTS[name] // (32 if race.quick else 1)
    dataset = replace(everything, items=everything.items[:count])
    assert model.preprocess is not None
    prepare = model.preprocess.picture
    made = build_index(model, dataset, tmp_path / "first")
    size = made.recipe.batch
    parts = range(made.recipe.parts(len(dataset)))
    batches = [batch for part in parts for batch in made.recipe.batches(len(dataset), part)]
    x = model.prepare([open_image(item.read()) for item in dataset.items[:size]])

    def build() -> None:
        shutil.rmtree(tmp_path / "index", ignore_errors=True)
        build_index(model, dataset, tmp_path / "index")

    def passes() -> None:
        with torch.no_grad():
            for batch in batches:
                model.module(x[: len(batch)])

    def decoding() -> None:
        for _ in decoded(dataset.items, batches, prepare, workers=1):
            pass

    race.rounds, race.warm, race.prepared = min(race.rounds, 5), 1, False
    race(build, {"forward passes alone": passes, "decoding alone, one process": decoding})


@pytest.mark.parametrize("case", ["10 nearest of 10,000 x 1280", "10 nearest of 100,000 x 1280"])
def test_search(case: str, race: Any) -> None:
    count = int(case.split()[3].replace(",", ""))
    vectors = torch.randn(count, 1280)
    pieces, query = vectors.split(256), torch.randn(1, 1280)
    race.rounds, race.prepared = min(race.rounds, 9), False
    race(
        lambda: nearest(query, lambda: pieces, 10, "cosine"),
        {"matrix product, sort": lambda: (vectors @ query[0] / vectors.norm(dim=1)).sort(descending=True)},
    )
