"""Make the pictures of docs/gallery.md and the page itself: ``python docs/gallery.py FOLDER [NAME…]``.

FOLDER holds the trained features of VGG-16 as torchvision has them (``weights/vgg16_features.safetensors``) and the
photographs (``images/``, and ``images/imagenet`` for the training of a style network). Everything else is in the
package. The same seeds give the same pictures. NAMEs are of exhibits that are to be made anew; by default all, which
takes half an hour on two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image, ImageOps
from safetensors.torch import load_file

import cnnviz
from cnnviz import render
from cnnviz.data import demo_picture, open_image
from cnnviz.synthesis import StyleNetwork, train_style

HERE = Path(__file__).parent
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GAP = 8


class Studio:
    """What pictures are made of and with; each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cat = demo_picture()

    @cached_property
    def model(self) -> cnnviz.Model:
        """The embedded MobileNetV2."""
        return cnnviz.load_model()

    @cached_property
    def vgg(self) -> cnnviz.Model:
        """VGG-16's features with trained weights."""
        return vgg16(self.folder)

    @cached_property
    def dreams(self) -> list[Image.Image]:
        """What VGG-16 dreams of an astronaut, and of galaxies."""
        return [
            render.to_pil(images(self.vgg, self.photograph(name), "deep-dream", size=480, steps=15)[0])
            for name in ("astronaut.png", "hubble_deep_field.jpg")
        ]

    @cached_property
    def painter(self) -> StyleNetwork:
        """A network that learnt to paint in the styles of a wall and of a dream."""
        return train_style(
            self.vgg, self.folder / "images" / "imagenet", HERE.parent / "cnnviz-out" / "gallery-style",
            styles=[self.folder / "images" / "brick.png", self.dreams[0]], size=160, style_size=256, batch=2,
            steps=1600, step_size=3e-3, style_weight=2, width=16, blocks=4, precision="bfloat16", sample_every=400,
        ).network  # fmt: skip

    def photograph(self, name: str) -> Image.Image:
        """Return one of the folder's images."""
        return open_image(self.folder / "images" / name)


@dataclass(frozen=True)
class Exhibit:
    """A picture: what there is to see, and how it is made."""

    title: str
    told: str
    made: str
    draw: Callable[[Studio], Image.Image]


def vgg16(folder: Path) -> cnnviz.Model:
    """Return VGG-16's features with trained weights."""
    with torch.device("meta"):
        features = torchvision.models.vgg16().features
    weights = load_file(folder / "weights" / "vgg16_features.safetensors")
    features.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return cnnviz.load_model(features.eval(), preprocess=cnnviz.Preprocess(resize=256, crop=(224, 224), **IMAGENET))


def images(model: Any, inputs: Any, technique: str, **given: Any) -> torch.Tensor:
    """Return the pictures that a technique makes, (M, 3, h, w)."""
    return cnnviz.explain(model, inputs, technique, **given).tensors()["images"]


def row(*pictures: Any, columns: int | None = None, tile: int = 224) -> Image.Image:
    """Lay tensors, (3, H, W), and images out side by side."""
    shown = [render.to_pil(p) if isinstance(p, torch.Tensor) else p for p in pictures]
    return render.grid(shown, columns=columns or len(shown), tile=tile, gap=GAP)


def square(picture: Any, side: int) -> Image.Image:
    """Return the middle of a tensor, (3, H, W), or of an image."""
    image = render.to_pil(picture) if isinstance(picture, torch.Tensor) else picture
    return ImageOps.fit(image, (side, side))


CLASSES = ["zebra", "espresso", "flamingo", "pineapple", "jellyfish", "lakeside", "volcano", "Egyptian cat"]
CHANNELS = ["features.3", "features.7", "features.11", "features.14"]
INVERTED = ["features.1.conv.0", "features.3", "features.6", "features.10", "features.14"]


def _classes(studio: Studio) -> Image.Image:
    return row(*images(studio.model, None, "class-visualization", target=CLASSES, seed=3), columns=4)


def _channels(studio: Studio) -> Image.Image:
    shown = [
        picture
        for layer in CHANNELS
        for picture in images(
            studio.model, None, "class-visualization", target=[cnnviz.channel(layer, c) for c in range(4)],
            steps=128, size=128,
        )
    ]  # fmt: skip
    return row(*shown, columns=4, tile=160)


def _inversion(studio: Studio) -> Image.Image:
    inverted = cnnviz.explain(studio.model, [studio.cat], "feature-inversion", layer=INVERTED)
    return row(inverted.pictures[0], *inverted.tensors()["images"], tile=180)


def _textures(studio: Studio) -> Image.Image:
    gravel = studio.photograph("gravel.png").crop((0, 0, 256, 256)).resize((128, 128))
    return row(gravel, *images(studio.vgg, gravel, "texture-gram", by_layer=True, steps=150), tile=180)


def _patches(studio: Studio) -> Image.Image:
    names = ("brick", "gravel", "grass")
    samples = [studio.photograph(f"{name}.png").crop((0, 0, 192, 192)).resize((80, 80)) for name in names]
    grown = [images(None, sample, "texture-patch", size=192)[0] for sample in samples]
    return row(*samples, *grown, columns=3, tile=240)


def _styles(studio: Studio) -> Image.Image:
    styles = [studio.photograph("ducreux.jpg"), studio.photograph("hubble_deep_field.jpg"), studio.dreams[1]]
    given: dict[str, Any] = {"size": 320, "steps": 80, "style_weight": 60}
    painted = [images(studio.vgg, studio.cat, "style-transfer", styles=style, **given)[0] for style in styles]
    return row(*[square(style, 240) for style in styles], *[square(one, 240) for one in painted], columns=3, tile=240)


def _painter(studio: Studio) -> Image.Image:
    styles = [studio.photograph("brick.png"), studio.dreams[0]]
    shown: list[Any] = [Image.new("RGB", (1, 1), "white"), styles[0], Image.new("RGB", (1, 1), "white"), styles[1]]
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        photograph = studio.photograph(name)
        mixed = [images(studio.painter, render.to_tensor(photograph)[None], "fast-style", size=400, style_weights=share)
                 for share in ((1, 0), (1, 1), (0, 1))]  # fmt: skip
        shown += [photograph, *(picture[0] for picture in mixed)]
    return row(*[square(one, 240) for one in shown], columns=4, tile=240)


EXHIBITS = {
    "classes": Exhibit(
        "What classes look like",
        f"Pictures that the embedded MobileNetV2 is certain of: {', '.join(CLASSES)}. Each began as noise.",
        'cnnviz.explain(model, None, "class-visualization", target=labels, seed=3)',
        _classes,
    ),
    "channels": Exhibit(
        "What channels look for",
        f"Four channels of {', '.join(CHANNELS)}, a row for each: edges and colours, then textures, then parts.",
        'cnnviz.explain(model, None, "class-visualization", target=channels, steps=128, size=128)',
        _channels,
    ),
    "inversion": Exhibit(
        "What layers remember",
        f"A photograph, and pictures whose features are the same at {', '.join(INVERTED)}: what was lost shows.",
        'cnnviz.explain(model, cat, "feature-inversion", layer=layers)',
        _inversion,
    ),
    "dream": Exhibit(
        "Dreams",
        "VGG-16 sees animals nearly everywhere, once a late layer is asked to see more of what it sees.",
        'cnnviz.explain(vgg, "astronaut.png", "deep-dream", size=480, steps=15)',
        lambda studio: row(*studio.dreams, tile=480),
    ),
    "textures": Exhibit(
        "Textures by layer",
        "A sample, and noise that was given its Gram matrices at one layer of VGG-16, at two, and so on.",
        'gravel = open_image("gravel.png").crop((0, 0, 256, 256)).resize((128, 128))\n'
        'cnnviz.explain(vgg, gravel, "texture-gram", by_layer=True, steps=150)',
        _textures,
    ),
    "patches": Exhibit(
        "Textures grown pixel by pixel",
        "Each pixel is copied from where the sample, above, looks most like what is there already; no network.",
        'sample = open_image("brick.png").crop((0, 0, 192, 192)).resize((80, 80))  # so too gravel.png and grass.png\n'
        'cnnviz.explain(None, sample, "texture-patch", size=192)',
        _patches,
    ),
    "styles": Exhibit(
        "A cat in three styles",
        "The portrait that Ducreux painted of himself, the Hubble deep field, and the dream of it above.",
        'cnnviz.explain(vgg, cat, "style-transfer", styles="ducreux.jpg", size=320, steps=80, style_weight=60)',
        _styles,
    ),
    "painter": Exhibit(
        "Two styles and their mixture, in one pass",
        "A small network that was trained on 20 photographs for 1,600 steps, ten minutes on two cores, paints others: "
        "in the style of a wall, of the dream above, and halfway between.",
        'network = train_style(vgg, "photographs/", "out", styles=["brick.png", dream], size=160, style_size=256, '
        "batch=2,\n                      steps=1600, step_size=3e-3, style_weight=2, width=16, blocks=4, "
        'precision="bfloat16",\n                      sample_every=400).network\n'
        'cnnviz.explain(network, photograph, "fast-style", size=400, style_weights=(1, 1))  # or (1, 0), (0, 1)',
        _painter,
    ),
}


def page() -> str:
    """Return the page, as Markdown."""
    lines = [
        "# Gallery",
        "",
        "Made by `make gallery` from trained weights, each by the line of Python that stands below it; `model` is the",
        "embedded MobileNetV2, `vgg` VGG-16 without its head, `open_image` is of `cnnviz.data`. Seeds are 0 where none",
        "is named.",
    ]
    for name, exhibit in EXHIBITS.items():
        lines += ["", f"## {exhibit.title}", "", f"![{exhibit.title}](pictures/gallery-{name}.jpg)", ""]
        lines += [exhibit.told, "", "```python", exhibit.made, "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page and its pictures."""
    folder, *names = sys.argv[1:]
    studio = Studio(Path(folder))
    for name in names or EXHIBITS:
        EXHIBITS[name].draw(studio).save(HERE / "pictures" / f"gallery-{name}.jpg", quality=85)
    (HERE / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
