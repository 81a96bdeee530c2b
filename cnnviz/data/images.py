"""Open any image file as upright 8-bit RGB, or say why it cannot be opened."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

import numpy
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO", "DDS")
"""What is decoded: formats that Pillow reads by itself. PostScript, which would start another program, is not."""

MAX_PIXELS: Final = 64_000_000
"""Largest picture that is decoded; a larger one is refused before its pixels are read."""


def open_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Return `source` as an upright RGB picture.

    Rotated by its EXIF tag, converted from CMYK, palette, grey or 16 bits, laid over white where it is transparent;
    of an animation the first frame.

    Args:
        source: path of a file, the bytes of one, or a PIL image.

    Raises:
        InputError: the file is missing, empty, truncated, no image, or has more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, Image.Image):
        return _rgb(source, "the PIL image")
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), f"the image of {len(source)} bytes", empty=not source)
    path = Path(source).expanduser()
    name = f"image '{source}'"
    try:
        if not path.exists():
            raise InputError(f"{name} does not exist; give the path of an image file")
        if not path.is_file():
            raise InputError(f"{name} is not a file; give the path of an image file")
        with path.open("rb") as file:
            return _decode(file, name, empty=path.stat().st_size == 0)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from error


@cache
def image_endings() -> frozenset[str]:
    """Return how names of image files end: ``.png``, ``.jpg`` and so on."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in FORMATS)


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """Return image files: those named, and those in the folders named and below them, in the order of their names.

    A file in a folder is an image where its name ends as one of `FORMATS` does, also a link to one that is gone; hidden
    ones are left out.

    Raises:
        InputError: a place does not exist, or a folder has no images.
    """
    endings = image_endings()
    found: list[Path] = []
    for place in (Path(place).expanduser() for place in places):
        if not place.is_dir():
            if not place.exists():
                raise InputError(f"image '{place}' does not exist; give the path of an image file")
            found.append(place)
            continue
        inside = sorted(
            path
            for path in place.rglob("*")
            if path.suffix.lower() in endings
            and (path.is_file() or (path.is_symlink() and not path.exists()))
            and not any(part.startswith(".") for part in path.relative_to(place).parts)
        )
        if not inside:
            raise InputError(f"folder '{place}' has no images; their names end in {', '.join(sorted(endings)[:6])}, …")
        found += inside
    return found


def demo_picture() -> Image.Image:
    """Return the photograph of a cat that the demo explains (NOTICE names its source)."""
    return open_image((files("cnnviz.data") / "pictures" / "chelsea.png").read_bytes())


def _decode(file: io.IOBase, name: str, *, empty: bool) -> Image.Image:
    if empty:
        raise InputError(f"{name} is empty (0 bytes); copy or download it again")
    try:
        image = Image.open(file, formats=FORMATS)  # type: ignore[arg-type]  # any readable binary file will do
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # the latter under -W error
        raise InputError(f"{name} is too large: {error}; scale it down first") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is no image that Pillow can read; convert it to PNG or JPEG") from error
    except Exception as error:  # decoders raise whatever their format's parser meets
        raise InputError(f"{name} is no image that Pillow can read ({error}); convert it to PNG or JPEG") from error
    return _rgb(image, name)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} has {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded, so scale it down first"
        )
    if width * height == 0:
        raise InputError(f"{name} has no pixels ({width} x {height})")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        return _eight_bits(image, name)
    except InputError:
        raise
    except Exception as error:  # as above; truncated files end here
        raise InputError(f"{name} is damaged or truncated ({error}); copy or download it again") from error


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = numpy.asarray(image).astype(numpy.float64)
        top = 1.0 if image.mode == "F" else 65535.0  # a float file; a 16-bit one, which comes as "I;16…" or as "I"
        if not (values.min() >= 0 and values.max() <= top):
            raise InputError(
                f"{name} has values from {values.min():g} to {values.max():g}, expected 0 to {top:g}; rescale it first"
            )
        return Image.fromarray((values * (255.0 / top)).round().astype(numpy.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
