"""``cnnviz index build|add|query|verify``: what a network makes of a whole data set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import torch
import typer

from ..data import find_images, open_dataset, open_image
from ..engines import build_index
from ..errors import InputError, OptionError, SaveError
from ..index import Database, Index, features_of, lay_out
from ..index import verify as check_files
from ..models import Model
from ..report import save_map
from ..writing import check_file
from .common import (
    DeviceOption,
    JsonOption,
    MemoryOption,
    ModelOption,
    SeedOption,
    WeightsOption,
    keeping,
    load,
    progress,
    readable,
    show_json,
    show_table,
    tell_left_out,
)

app = typer.Typer(
    help="Run a network over a whole data set, keep what it makes of it, and search it.", no_args_is_help=True
)

FolderArgument: TypeAlias = Annotated[
    Path, typer.Argument(metavar="INDEX", help="Folder of the index.", show_default=False)
]
SetArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGES", help="Folder, .parquet manifest, .tar file or folder of them.", show_default=False
    ),
]
LabelsOption: TypeAlias = Annotated[Path | None, typer.Option("--labels", help="CSV file of ids and labels.")]
RestartOption: TypeAlias = Annotated[
    bool, typer.Option("--restart", help="Forget what an interrupted run left whose images were others.")
]
EngineOption: TypeAlias = Annotated[
    str, typer.Option("--engine", help="local, or ray for a Ray cluster.", metavar="local|ray")
]
NeighboursOption: TypeAlias = Annotated[int, typer.Option("-k", min=1, help="How many neighbours.")]
MetricOption: TypeAlias = Annotated[
    Literal["cosine", "euclidean"], typer.Option("--metric", help="Distance of features; pixels are euclidean.")
]
TableOption: TypeAlias = Annotated[str, typer.Option("--table", help="Name of the table.")]
LayerOption: TypeAlias = Annotated[
    str | None, typer.Option("--layer", help="One of the index's layers; its last by default.")
]
WorkersOption: TypeAlias = Annotated[
    int, typer.Option("--workers", help="Processes that decode; with Ray, actors that run the network.")
]


@app.command()
def build(
    folder: FolderArgument,
    images: SetArgument,
    labels: LabelsOption = None,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Whose features are kept; repeatable; the last maps by default.")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="Strongest units kept for each channel.")] = 16,
    thumbnail: Annotated[int, typer.Option("--thumbnail", help="Side in pixels of the small pictures kept.")] = 32,
    restart: RestartOption = False,
    engine: EngineOption = "local",
    workers: WorkersOption = 1,
    model: ModelOption = None,
    weights: WeightsOption = "DEFAULT",
    memory: MemoryOption = "1GiB",
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Run a network over a data set; run it again after an interruption, and it goes on where it was."""
    _build(
        folder,
        images,
        labels,
        load(model, weights, device),
        json=json,
        layer=layer or None,
        top=top,
        thumbnail=thumbnail,
        restart=restart,
        engine=engine,
        workers=workers,
        memory=memory,
    )


@app.command()
def add(
    folder: FolderArgument,
    images: SetArgument,
    labels: LabelsOption = None,
    restart: RestartOption = False,
    engine: EngineOption = "local",
    workers: WorkersOption = 1,
    model: ModelOption = None,
    weights: WeightsOption = "DEFAULT",
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Add the images of a data set that the index does not have, by their ids."""
    loaded = load(model, weights, device)
    _build(folder, images, labels, loaded, json=json, add=True, restart=restart, engine=engine, workers=workers)


def _build(folder: Path, images: Path, labels: Path | None, loaded: Model, *, json: bool, **given: Any) -> None:
    dataset = open_dataset(images, labels)

    def kept() -> str:
        finished = any(folder.glob("*.safetensors"))
        return f"what was done is in {folder}; the same command goes on" if finished else "nothing was finished yet"

    with progress("index") as bar, keeping(kept):
        index = build_index(loaded, dataset, folder, progress=bar.step, **given)
    if json:
        show_json({**_told(index), "left_out": index.left_out})
        return
    tell_left_out(index.left_out)
    typer.echo(f"{index.folder}: {len(index)} images, layers {', '.join(index.layers)}")


@app.command()
def query(
    folder: FolderArgument,
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGE", help="Image files, or folders of them.", show_default=False),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--id", help="Search with an image of the index; repeatable.")
    ] = None,
    k: NeighboursOption = 5,
    metric: Annotated[
        Literal["cosine", "euclidean"] | None,
        typer.Option("--metric", help="Distance of features, cosine by default; pixels are euclidean."),
    ] = None,
    layer: LayerOption = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="Compare small pictures in place of features.")] = False,
    database: Annotated[
        str | None, typer.Option("--database", help="Search a LanceDB database that export wrote of this index.")
    ] = None,
    table: TableOption = "images",
    where: Annotated[
        str | None, typer.Option("--where", help="With --database: a condition, such as \"label = 'cat'\".")
    ] = None,
    model: ModelOption = None,
    weights: WeightsOption = "DEFAULT",
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Find the images nearest to others, by what the network makes of them."""
    if database is None and where is not None:
        raise OptionError("--where: only a database takes conditions; give --database too (cnnviz index export)")
    if database is not None and pixels:
        raise OptionError("--pixels: a database has features alone; leave one of the two out")
    if pixels and (layer is not None or metric is not None):
        raise OptionError(
            "--pixels: small pictures are of no layer, and compared by euclidean distance; leave those out"
        )
    metric = metric or "cosine"
    index = Index(folder)
    (paths, left_out), names = readable(find_images(images or []), images or []), name or []
    rows = [index.row(one) for one in names]
    if not paths and not rows:
        raise InputError("nothing to search for; give image files, or --id")
    queries = [index.vectors(rows, layer, pixels=pixels)] if rows else []
    if paths:
        loaded = load(model, weights, device)
        index.check(loaded)
        assert loaded.preprocess is not None  # the index's has one
        pictures = [loaded.preprocess.picture(open_image(path)) for path in paths]
        queries.append(features_of(loaded, index.recipe, pictures, index.number(layer), pixels=pixels))
    wanted = torch.cat(queries)
    if database is not None:
        searched = Database(database, table)
        searched.check(index, layer)
        own = [*names, *[None] * len(paths)]
        found = searched.search(wanted, k, metric=metric, where=where, skip=own)
    else:
        found = index.find(wanted, k, metric=metric, layer=layer, pixels=pixels, skip=[*rows, *[-1] * len(paths)])
    told = [
        {"query": query, "rank": rank, **asdict(one), "distance": round(one.distance, 6)}
        for query, near in zip([*names, *map(str, paths)], found, strict=True)
        for rank, one in enumerate(near, start=1)
    ]
    tell_left_out(left_out)
    if json:
        show_json(told)
    elif told:
        show_table(list(told[0]), [list(row.values()) for row in told])


@app.command()
def agreement(
    folder: FolderArgument,
    k: NeighboursOption = 5,
    metric: MetricOption = "cosine",
    layer: LayerOption = None,
    json: JsonOption = False,
) -> None:
    """Tell how many of each image's neighbours have its label, by features and by pixels, of all images."""
    index = Index(folder)
    shares = {
        "features": index.agreement(k, metric=metric, layer=layer),
        "pixels": index.agreement(k, pixels=True),
    }
    if json:
        show_json({"k": k, **shares})
    else:
        show_table(
            ["neighbours by", f"same label, of {k}"], [[name, f"{100 * share:.1f} %"] for name, share in shares.items()]
        )


@app.command()
def export(
    folder: FolderArgument,
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="Folder of a LanceDB database, or s3://…", show_default=False)
    ],
    table: TableOption = "images",
    layer: LayerOption = None,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Build an index for searches that may miss a few; for large sets.")
    ] = False,
    json: JsonOption = False,
) -> None:
    r"""Write the features of one layer to a LanceDB database (pip install 'cnnviz\[index]'), which query can search."""
    with keeping(lambda: f"the same command goes on with the images that are not in {uri}"):
        database = Database.fill(Index(folder), uri, table, layer=layer)
        if approximate:
            database.accelerate()
    if json:
        show_json({"uri": uri, "table": table, "images": len(database), **database.about})
    else:
        typer.echo(f"{uri}, table {table}: {len(database)} images")


@app.command("map")
def map_(
    folder: FolderArgument,
    out: Annotated[Path, typer.Option("--out", help="Page to write.")] = Path("cnnviz-out/map.html"),
    method: Annotated[
        Literal["tsne", "pca"],
        typer.Option("--method", help=r"t-SNE (pip install 'cnnviz\[maps]'), or two components."),
    ] = "tsne",
    perplexity: Annotated[float, typer.Option("--perplexity", help="About how many neighbours count.")] = 30.0,
    layer: LayerOption = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Lay all images out so that near means alike, and write a page to look at them; added ones find their place."""
    index = Index(folder)
    check_file(out)
    with progress("map") as bar:
        points = lay_out(index, method, layer=layer, perplexity=perplexity, seed=seed, progress=bar.step)
        page = save_map(index, points, out, method="t-SNE" if method == "tsne" else "principal components", layer=layer)
    if json:
        show_json({**_told(index), "page": str(page)})
    else:
        typer.echo(page)


@app.command()
def verify(folder: FolderArgument, json: JsonOption = False) -> None:
    """Read every file of an index, and tell which are not what was written."""
    wrong = check_files(folder)
    if json:
        show_json({"index": str(folder.absolute()), "wrong": wrong})
    if wrong:
        raise SaveError(f"the index in '{folder}' is damaged: {'; '.join(wrong)}; build it again with the same images")
    if not json:
        typer.echo(f"{folder.absolute()}: {len(Index(folder))} images, every file is what was written")


def _told(index: Index) -> dict[str, Any]:
    return {
        "index": str(index.folder),
        "images": len(index),
        "layers": list(index.layers),
        "model": index.about["name"],
    }
