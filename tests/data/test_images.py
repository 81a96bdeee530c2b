"""Any image file becomes an upright RGB picture, or an error that says why not."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from cnnviz import InputError
from cnnviz.data import MAX_PIXELS, demo_picture, find_images, open_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
HEIGHT, WIDTH = 6, 9


@pytest.fixture
def picture() -> Image.Image:
    """A picture whose corners tell how it was turned."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90))
    image.putpixel((0, 0), RED)
    image.putpixel((WIDTH - 1, 0), GREEN)
    image.putpixel((0, HEIGHT - 1), BLUE)
    return image


def coded(image: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def values(image: Image.Image) -> NDArray[numpy.uint8]:
    return numpy.asarray(image)


def same(mine: Image.Image, theirs: Image.Image) -> bool:
    return mine.mode == theirs.mode and numpy.array_equal(values(mine), values(theirs))


# ---------------------------------------------------------------- where it may come from


def test_path_text_bytes_and_image_give_the_same(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture.save(path)
    for source in (path, str(path), path.read_bytes(), picture):
        assert same(open_image(source), picture)


def test_home_folder_is_expanded(picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    picture.save(tmp_path / "picture.png")
    assert same(open_image("~/picture.png"), picture)


def test_wrong_suffix_does_not_matter(picture: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "picture.txt").write_bytes(coded(picture, "PNG"))
    assert same(open_image(tmp_path / "picture.txt"), picture)


def test_file_is_closed_afterwards(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "picture.png")
    opened = open_image(tmp_path / "picture.png")
    (tmp_path / "picture.png").unlink()
    assert same(opened.copy(), picture)


def test_image_given_is_not_changed(picture: Image.Image) -> None:
    turned = Image.open(io.BytesIO(coded(picture.convert("L"), "JPEG", exif=orientation(6))))
    before = turned.copy(), turned.getexif().get(0x0112)
    open_image(turned)
    assert same(turned, before[0])
    assert turned.getexif().get(0x0112) == before[1]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "PPM", "WEBP"])
def test_lossless_formats_keep_every_pixel(picture: Image.Image, kind: str) -> None:
    how = {"lossless": True} if kind == "WEBP" else {}
    assert same(open_image(coded(picture, kind, **how)), picture)


def test_demo_picture_is_the_cat() -> None:
    assert open_image(demo_picture()).size == (451, 300)


# ---------------------------------------------------------------- what is no image


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing.png' does not exist; give the path"):
        open_image(tmp_path / "nothing.png")


def test_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a file; give the path"):
        open_image(tmp_path)


def test_empty_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match=r"empty.png' is empty \(0 bytes\)"):
        open_image(tmp_path / "empty.png")


def test_empty_bytes_are_told() -> None:
    with pytest.raises(InputError, match=r"0 bytes"):
        open_image(b"")


@pytest.mark.parametrize("raw", [b"hello", b"<html></html>", b"\x00" * 100, b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_told(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "file.png").write_bytes(raw)
    with pytest.raises(InputError, match=r"file.png' is no image that Pillow can read.*PNG or JPEG"):
        open_image(tmp_path / "file.png")


def test_endless_name_is_told() -> None:
    with pytest.raises(InputError):
        open_image("iVBORw0KGgo" * 1000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_truncated_file_is_told(tmp_path: Path, kind: str) -> None:
    noise = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=numpy.uint8)
    raw = coded(Image.fromarray(noise), kind)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match=r"half\..*(damaged or truncated|no image that Pillow can read)"):
        open_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_photograph_is_damaged_wherever_it_ends(share: float, kind: str) -> None:
    noise = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=numpy.uint8)
    raw = coded(Image.fromarray(noise), kind)
    with pytest.raises(InputError, match=r"damaged or truncated.*copy or download it again"):
        open_image(raw[: int(len(raw) * share)])


def test_flipped_bit_in_a_png_is_told(picture: Image.Image) -> None:
    raw = bytearray(coded(picture, "PNG"))
    raw[raw.index(b"IDAT") + 10] ^= 0xFF
    with pytest.raises(InputError, match="damaged"):
        open_image(bytes(raw))


def test_closed_image_is_told(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "picture.png")
    image = Image.open(tmp_path / "picture.png")
    image.close()
    with pytest.raises(InputError, match="the PIL image is damaged"):
        open_image(image)


def test_image_without_pixels_is_told() -> None:
    with pytest.raises(InputError, match=r"no pixels \(0 x 3\)"):
        open_image(Image.new("RGB", (0, 3)))


# ---------------------------------------------------------------- decompression bombs


def tiny_png(width: int, height: int) -> bytes:
    """A valid PNG of a few bytes that unfolds to width x height pixels of black."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    lines = zlib.compress(b"\x00" * min((1 + (width + 7) // 8) * height, 1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def tiny_gif(width: int, height: int) -> bytes:
    """A GIF of one pixel on a screen of width x height."""
    raw = coded(Image.new("P", (1, 1)), "GIF")
    return raw[:6] + struct.pack("<HH", width, height) + raw[10:]


@pytest.fixture
def _pixels_stay_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("the pixels were decoded"))


# Pillow warns from 89 million pixels on, and refuses from 179 million on.
HUGE = [(8001, 8000), (10_000, 10_000), (60_000, 60_000), (1, 64_000_001)]


@pytest.mark.usefixtures("_pixels_stay_unread")
@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize("size", HUGE)
def test_huge_dimensions_are_refused_before_decoding(size: tuple[int, int], action: str) -> None:
    raw = tiny_png(*size)
    assert len(raw) < 2000
    with warnings.catch_warnings():
        warnings.simplefilter(action, Image.DecompressionBombWarning)
        with pytest.raises(InputError, match=r"(too large|at most 64,000,000).*scale it down"):
            open_image(raw)


@pytest.mark.usefixtures("_pixels_stay_unread")
def test_huge_animation_is_refused_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "bomb.gif").write_bytes(tiny_gif(65_535, 65_535))
    with pytest.raises(InputError, match=r"bomb.gif' is too large.*scale it down"):
        open_image(tmp_path / "bomb.gif")


@pytest.mark.usefixtures("_pixels_stay_unread")
def test_huge_image_given_unloaded_is_refused() -> None:
    image = Image.open(io.BytesIO(tiny_png(8001, 8000)))
    with pytest.raises(InputError, match="the PIL image has 8001 x 8000 pixels"):
        open_image(image)


def test_tiny_files_of_ordinary_size_are_opened() -> None:
    assert open_image(tiny_png(70, 50)).size == (70, 50)
    assert open_image(tiny_gif(3, 2)).size == (3, 2)


def test_limit_is_what_the_message_says() -> None:
    assert MAX_PIXELS == 64_000_000


# ---------------------------------------------------------------- modes


def test_grey_becomes_rgb(picture: Image.Image) -> None:
    grey = picture.convert("L")
    assert same(open_image(coded(grey, "PNG")), grey.convert("RGB"))


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    deep = numpy.array([[0, 257, 32_768, 65_535]], dtype=numpy.uint16)
    for kind in ("PNG", "TIFF"):
        opened = values(open_image(coded(Image.fromarray(deep), kind)))
        assert opened[0, :, 0].tolist() == [0, 1, 128, 255]
        assert (opened == opened[..., :1]).all()


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    # Pillow writes no 16-bit colour: one pixel by hand.
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    line = zlib.compress(b"\x00" + struct.pack(">HHH", 0xFFFF, 0x8000, 0x0000))
    raw = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", line) + chunk(b"IEND", b"")
    assert values(open_image(raw))[0, 0].tolist() == [255, 128, 0]


def test_one_bit_becomes_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert values(open_image(coded(image, "PNG")))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_float_file_is_taken_from_zero_to_one() -> None:
    image = Image.fromarray(numpy.array([[0.0, 0.25, 1.0]], dtype=numpy.float32))
    assert values(open_image(coded(image, "TIFF")))[0, :, 1].tolist() == [0, 64, 255]


@pytest.mark.parametrize(
    ("content", "told"),
    [([0.0, 2.0], "from 0 to 2, expected 0 to 1"), ([-1.0, 1.0], "from -1 to 1"), ([0.0, float("nan")], "nan")],
)
def test_float_file_of_another_range_is_told(content: list[float], told: str) -> None:
    image = Image.fromarray(numpy.array([content], dtype=numpy.float32))
    with pytest.raises(InputError, match=rf"{told}.*rescale it first"):
        open_image(coded(image, "TIFF"))


def test_integer_file_beyond_sixteen_bits_is_told() -> None:
    image = Image.fromarray(numpy.array([[0, 70_000]], dtype=numpy.int32))
    with pytest.raises(InputError, match="from 0 to 70000, expected 0 to 65535"):
        open_image(coded(image, "TIFF"))


def test_cmyk_photograph_has_its_colours() -> None:
    image = Image.new("RGB", (16, 16), (200, 60, 30))
    raw = coded(image.convert("CMYK"), "JPEG", quality=100)
    opened = open_image(raw)
    assert opened.mode == "RGB"
    assert numpy.abs(values(opened).astype(int) - [200, 60, 30]).max() <= 4


def test_transparent_pixels_become_white() -> None:
    image = Image.new("RGBA", (3, 1), (*RED, 255))
    image.putpixel((1, 0), (*RED, 0))
    image.putpixel((2, 0), (*RED, 128))
    opened = values(open_image(coded(image, "PNG")))[0]
    assert opened[:2].tolist() == [list(RED), list(WHITE)]
    assert opened[2].tolist() == pytest.approx([255, 127, 127], abs=1)


def test_transparent_grey_becomes_white() -> None:
    image = Image.new("LA", (2, 1), (0, 255))
    image.putpixel((1, 0), (0, 0))
    assert values(open_image(coded(image, "PNG")))[0].tolist() == [[0, 0, 0], list(WHITE)]


def test_palette_has_its_colours_and_its_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    for x in range(3):
        image.putpixel((x, 0), x)
    assert values(open_image(coded(image, "PNG")))[0].tolist() == [list(RED), list(GREEN), list(BLUE)]
    see_through = open_image(coded(image, "PNG", transparency=1))
    assert values(see_through)[0].tolist() == [list(RED), list(WHITE), list(BLUE)]


def test_colour_key_of_a_png_is_transparent() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    opened = open_image(coded(image, "PNG", transparency=BLUE))
    assert values(opened)[0].tolist() == [list(RED), list(WHITE)]


@pytest.mark.parametrize(("kind", "how"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_animation_gives_its_first_frame(kind: str, how: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in (RED, GREEN, BLUE)]
    opened = open_image(coded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **how))
    assert same(opened, frames[0])


def test_many_paged_file_gives_its_first_page() -> None:
    pages = [Image.new("RGB", (4, 3), colour) for colour in (RED, GREEN)]
    assert same(open_image(coded(pages[0], "TIFF", save_all=True, append_images=pages[1:])), pages[0])


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_every_mode_of_an_image_becomes_rgb(mode: str) -> None:
    opened = open_image(Image.new(mode, (5, 4)))
    assert (opened.mode, opened.size) == ("RGB", (5, 4))


# ---------------------------------------------------------------- orientation


def orientation(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif.tobytes()


TURNED: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


@pytest.mark.parametrize("number", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_picture_is_turned_upright(picture: Image.Image, number: int, kind: str) -> None:
    how = {"lossless": True} if kind == "WEBP" else {}
    opened = open_image(coded(picture, kind, exif=orientation(number), **how))
    assert same(opened, TURNED[number](picture))


def test_photograph_from_a_telephone_is_turned_upright() -> None:
    lying = Image.new("RGB", (64, 32), RED)
    lying.paste(BLUE, (0, 0, 32, 32))
    opened = open_image(coded(lying, "JPEG", quality=95, exif=orientation(6)))
    assert opened.size == (32, 64)
    assert values(opened)[8, 16].tolist() == pytest.approx(BLUE, abs=8)
    assert values(opened)[56, 16].tolist() == pytest.approx(RED, abs=8)


def test_a_home_folder_is_found(tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    picture.save(tmp_path / "one.png")
    assert find_images(["~"]) == find_images(["~/one.png"]) == [tmp_path / "one.png"]
