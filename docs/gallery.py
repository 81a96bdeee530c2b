"""Make the pictures of docs/gallery.md and the page itself: ``python docs/gallery.py FOLDER``, some minutes.

FOLDER holds the trained features of VGG-16 as torchvision has them (``weights/vgg16_features.safetensors``) and the
photographs (``images/``). Everything else is in the package. The same seeds give the same pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

import cnnviz
from cnnviz import render
from cnnviz.data import demo_picture, open_image

HERE = Path(__file__).parent
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GAP = 8


@dataclass(frozen=True)
class Exhibit:
    """A picture, how it was made, and what there is to see."""

    name: str
    title: str
    told: str
    made: str
    picture: Image.Image


def vgg16(folder: Path) -> cnnviz.Model:
    """Return VGG-16's features with trained weights."""
    with torch.device("meta"):
        features = torchvision.models.vgg16().features
    weights = load_file(folder / "weights" / "vgg16_features.safetensors")
    features.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return cnnviz.load_model(features.eval(), preprocess=cnnviz.Preprocess(resize=256, crop=(224, 224), **IMAGENET))


def row(*pictures: Any, columns: int | None = None, tile: int = 224) -> Image.Image:
    """Lay tensors, (3, H, W), and images out side by side."""
    images = [render.to_pil(p) if isinstance(p, torch.Tensor) else p for p in pictures]
    return render.grid(images, columns=columns or len(images), tile=tile, gap=GAP)


def exhibits(folder: Path) -> Iterator[Exhibit]:
    """Yield every picture, from what a network learnt to what can be painted with it."""
    model, vgg = cnnviz.load_model(), vgg16(folder)
    cat = demo_picture()
    photographs = {path.stem: open_image(path) for path in sorted((folder / "images").glob("*.*"))}

    labels = ["zebra", "espresso", "flamingo", "pineapple", "jellyfish", "lakeside", "volcano", "Egyptian cat"]
    classes = cnnviz.explain(model, None, "class-visualization", target=labels, seed=3)
    yield Exhibit(
        "classes",
        "What classes look like",
        f"Pictures that the embedded MobileNetV2 is certain of: {', '.join(labels)}. Each began as noise.",
        'cnnviz.explain(model, None, "class-visualization", target=labels, seed=3)',
        row(*classes.tensors()["images"], columns=4),
    )
    layers = ["features.3", "features.7", "features.11", "features.14"]
    shown = []
    for layer in layers:
        channels = [cnnviz.channel(layer, c) for c in range(4)]
        shown += cnnviz.explain(model, None, "class-visualization", target=channels, steps=128, size=128).tensors()[
            "images"
        ]
    yield Exhibit(
        "channels",
        "What channels look for",
        f"Four channels of {', '.join(layers)}, a row for each: edges and colours, then textures, then parts.",
        'cnnviz.explain(model, None, "class-visualization", target=channels, steps=128, size=128)',
        row(*shown, columns=4, tile=160),
    )
    layers = ["features.1.conv.0", "features.3", "features.6", "features.10", "features.18"]
    inverted = cnnviz.explain(model, [cat], "feature-inversion", layer=layers)
    yield Exhibit(
        "inversion",
        "What layers remember",
        f"A photograph, and pictures whose features are the same at {', '.join(layers)}: what was lost shows.",
        'cnnviz.explain(model, cat, "feature-inversion", layer=layers)',
        row(inverted.pictures[0], *inverted.tensors()["images"], tile=180),
    )
    dreams = [
        cnnviz.explain(vgg, photographs[name], "deep-dream", size=480, steps=15).tensors()["images"][0]
        for name in ("astronaut", "hubble_deep_field")
    ]
    yield Exhibit(
        "dream",
        "Dreams",
        "VGG-16 sees animals nearly everywhere, once a late layer is asked to see more of what it sees.",
        'cnnviz.explain(vgg, "astronaut.png", "deep-dream", size=480, steps=15)',
        row(*dreams, tile=480),
    )
    gravel = photographs["gravel"].crop((0, 0, 256, 256)).resize((128, 128))
    textures = cnnviz.explain(vgg, gravel, "texture-gram", by_layer=True, steps=150)
    yield Exhibit(
        "textures",
        "Textures by layer",
        "A sample, and noise that was given its Gram matrices at one layer of VGG-16, at two, and so on.",
        'cnnviz.explain(vgg, gravel, "texture-gram", by_layer=True, steps=150)',
        row(gravel, *textures.tensors()["images"], tile=180),
    )
    samples = [photographs[name].crop((0, 0, 192, 192)).resize((80, 80)) for name in ("brick", "gravel", "grass")]
    grown = [cnnviz.explain(None, sample, "texture-patch", size=192).tensors()["images"][0] for sample in samples]
    yield Exhibit(
        "patches",
        "Textures grown pixel by pixel",
        "Each pixel is copied from where the sample, above, looks most like what is there already; no network.",
        'cnnviz.explain(None, sample, "texture-patch", size=192)',
        row(*samples, *grown, columns=3, tile=240),
    )
    dream = render.to_pil(dreams[1])
    styles = [photographs["ducreux"], photographs["hubble_deep_field"], dream]
    given: dict[str, Any] = {"size": 320, "steps": 80, "style_weight": 60}
    painted = [
        cnnviz.explain(vgg, cat, "style-transfer", styles=style, **given).tensors()["images"] for style in styles
    ]
    yield Exhibit(
        "styles",
        "A cat in three styles",
        "The portrait that Ducreux painted of himself, the Hubble deep field, and the dream of it above.",
        'cnnviz.explain(vgg, cat, "style-transfer", styles="ducreux.jpg", size=320, steps=80, style_weight=60)',
        row(*[style.resize((240, 240)) for style in styles], *torch.cat(painted), columns=3, tile=320),
    )


def main() -> None:
    """Write the page and its pictures."""
    pictures = HERE / "pictures"
    lines = [
        "# Gallery",
        "",
        "Made by `make gallery` from trained weights, each by the line of Python that stands below it; `model` is the",
        "embedded MobileNetV2, `vgg` VGG-16 without its head. Seeds are 0 where none is named.",
    ]
    for exhibit in exhibits(Path(sys.argv[1])):
        exhibit.picture.save(pictures / f"gallery-{exhibit.name}.jpg", quality=85)
        lines += ["", f"## {exhibit.title}", "", f"![{exhibit.title}](pictures/gallery-{exhibit.name}.jpg)", ""]
        lines += [exhibit.told, "", "```python", exhibit.made, "```"]
    (HERE / "gallery.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
