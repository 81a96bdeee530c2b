"""Options are declared once and checked at the edge; every refusal names option, bounds and value."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from typing_extensions import TypeAliasType

from cnnviz import Field, ImageOption, OptionError, Options, Pair, Technique
from cnnviz.options import RESERVED, ImagesOption, expectation, make_options


class Many(Options):
    power: float = Field(2.0, ge=0.5, le=4, description="exponent")
    rate: float = Field(0.5, gt=0, lt=1, description="share")
    steps: int = Field(3, ge=1, description="how many")
    keep: bool = Field(True, description="keep it")
    mode: Literal["fast", "slow"] = Field("fast", description="how")
    window: Pair = Field(32, description="size")
    resize: Literal["bilinear"] | None = Field("bilinear", description="resize or not")
    channels: tuple[float, ...] = Field((), description="one per channel")


class Pictured(Options):
    picture: ImageOption | None = Field(None, description="a picture")


class Either(Options):
    baseline: float | ImageOption = Field(0.0, description="a number or a picture")


def given(**options: Any) -> Options:
    return make_options("test", Many, options)


def refused(options: type[Options] = Many, **values: Any) -> str:
    with pytest.raises(OptionError) as caught:
        make_options("test", options, values)
    return str(caught.value)


# ---------------------------------------------------------------- validation


def test_defaults_are_filled_in() -> None:
    made = given()
    assert (made.power, made.steps, made.mode, made.window) == (2.0, 3, "fast", (32, 32))


def test_values_are_taken() -> None:
    made = given(power=3, rate=0.25, steps=7, keep=False, mode="slow", resize=None, channels=[1, 2])
    assert (made.power, made.rate, made.steps, made.keep, made.mode, made.resize) == (3.0, 0.25, 7, False, "slow", None)
    assert made.channels == (1.0, 2.0)


def test_options_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        given().power = 3


def test_unknown_option_names_the_nearest_and_all() -> None:
    told = refused(powr=3)
    assert "unknown option 'powr' of 'test'" in told
    assert "nearest: 'power'" in told
    assert "'steps'" in told


def test_unknown_option_where_there_are_none() -> None:
    assert "unknown option 'x' of 'test'; it has none" in refused(Options, x=1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"power": 5}, ["'power' of 'test'", "got 5", "a number", "0.5", "4"]),
        ({"power": 0.4}, ["got 0.4", "a number", "0.5", "4"]),
        ({"power": float("nan")}, ["got nan", "0.5", "4"]),
        ({"power": float("inf")}, ["got inf", "0.5", "4"]),
        ({"power": "much"}, ["got 'much'", "a number", "0.5", "4"]),
        ({"power": None}, ["got None", "a number"]),
        ({"rate": 0}, ["got 0", "a number", "> 0", "< 1"]),
        ({"rate": 1.0}, ["got 1.0", "< 1"]),
        ({"steps": 0}, ["'steps'", "got 0", "a whole number", "≥ 1"]),
        ({"steps": 1.5}, ["got 1.5", "a whole number"]),
        ({"steps": [1]}, ["got [1]", "a whole number"]),
        ({"keep": "perhaps"}, ["'keep'", "got 'perhaps'", "true or false"]),
        ({"mode": "medium"}, ["'mode'", "got 'medium'", "'fast', 'slow'"]),
        ({"resize": "nearest"}, ["got 'nearest'", "'bilinear'", "none"]),
        ({"channels": [1, "x"]}, ["'channels'", "got 'x'", "numbers"]),
        ({"power": torch.zeros(2, 3)}, ["got a tensor (2, 3)", "a number"]),
    ],
    ids=str,
)
def test_refusal_names_option_value_and_bounds(values: dict[str, Any], words: list[str]) -> None:
    told = refused(**values)
    assert all(word in told for word in words), told


def test_several_faults_are_told_at_once() -> None:
    told = refused(power=9, steps=0, typo=1)
    assert all(word in told for word in ("'power'", "'steps'", "'typo'"))


def test_long_values_are_cut_in_the_message() -> None:
    assert len(refused(mode="x" * 10_000)) < 300


def test_missing_option_is_told() -> None:
    class Needed(Options):
        style: int = Field(description="needed")

    assert "option 'style' of 'test': got nothing, expected a whole number" in refused(Needed)


def test_wrong_default_is_noticed() -> None:
    class Wrong(Options):
        power: float = Field(9.0, le=4, description="exponent")

    assert "got 9.0, expected a number ≤ 4" in refused(Wrong)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("power", r"a number.*0\.5.*4"),
        ("rate", r"a number.*> 0.*< 1"),
        ("steps", r"a whole number.*≥ 1"),
        ("keep", r"true or false"),
        ("mode", r"one of 'fast', 'slow'"),
        ("resize", r"'bilinear'.*none"),
        ("channels", r"numbers"),
        ("window", r"a whole number.*2.*whole numbers"),
        ("nothing", r"$"),
    ],
)
def test_expectation_in_words(name: str, told: str) -> None:
    assert re.match(told, expectation(Many, name)), expectation(Many, name)


Switch = TypeAliasType("Switch", bool)


class Flags(Options):
    literal: Literal[True, False, "auto"] = Field("auto", description="of several types")
    annotated: Annotated[bool, Field()] | None = Field(None, description="or none")
    anything: Any = Field(None, description="whatever")
    several: list[bool] = Field([], description="of one type")
    named: dict[str, bool] = Field({}, description="by name")
    mixed: tuple[int, bool] = Field((1, True), description="of two types")
    either: bool | tuple[int, int] = Field(False, description="one or two")
    aliased: Switch = Field(False, description="by another name")
    numbers: tuple[float, ...] | int = Field(1, description="numbers alone")
    table: dict[str, int] = Field({}, description="numbers by name")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("literal", True),
        ("literal", False),
        ("annotated", True),
        ("anything", True),
        ("anything", [True]),
        ("several", [True, False]),
        ("named", {"a": True}),
        ("mixed", (2, False)),
        ("either", True),
        ("either", (1, 2)),
        ("aliased", True),
        ("numbers", (1.5, 2.0)),
        ("table", {"a": 2}),
    ],
)
def test_true_and_false_are_taken_where_they_are_declared(name: str, value: Any) -> None:
    taken = getattr(make_options("test", Flags, {name: value}), name)
    assert taken == value
    assert type(taken) is type(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mixed", (True, True)),
        ("either", (True, 2)),
        ("numbers", True),
        ("numbers", (1.0, True)),
        ("table", {"a": True}),
    ],
)
def test_true_and_false_are_no_numbers_however_deep_they_stand(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"option '{name}' of 'test': got"):
        make_options("test", Flags, {name: value})


def test_numbers_of_numpy_are_numbers() -> None:
    assert given(power=numpy.float64(3)).power == 3.0
    assert given(power=numpy.float32(3)).power == 3.0


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize(
    ("value", "pair"),
    [
        (5, (5, 5)),
        ("5", (5, 5)),
        ("5,7", (5, 7)),
        (" 5 , 7 ", (5, 7)),
        ((5, 7), (5, 7)),
        ([5, 7], (5, 7)),
        ((5,), (5, 5)),
        ("5,", None),
        ("", None),
        ("a,b", None),
        ((1, 2, 3), None),
        ((), None),
        (0, None),
        ((4, 0), None),
        (-1, None),
        (1.5, None),
        (None, None),
        (True, None),
        ((True, 8), None),
        ([8, False], None),
    ],
    ids=repr,
)
def test_pair(value: Any, pair: tuple[int, int] | None) -> None:
    if pair is None:
        assert "'window'" in refused(window=value)
    else:
        assert given(window=value).window == pair


def test_pair_from_json() -> None:
    assert Many.model_validate_json('{"window": 5}').window == (5, 5)
    assert Many.model_validate_json('{"window": [5, 7]}').window == (5, 7)


def test_pair_in_the_schema() -> None:
    described = Many.model_json_schema()["properties"]["window"]
    assert described["metavar"] == "H[,W]"
    assert described["description"] == "size"
    assert {part["type"] for part in described["anyOf"]} == {"integer", "array"}


# ---------------------------------------------------------------- pictures


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=numpy.uint8))


@pytest.fixture
def path(picture: Image.Image, tmp_path: Path) -> Path:
    picture.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def in_base64(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_picture_in_python_is_a_path_an_image_bytes_or_a_tensor(picture: Image.Image, path: Path) -> None:
    for value in (path, str(path), picture, path.read_bytes(), ImageOption(picture)):
        made = make_options("test", Pictured, {"picture": value}).picture
        assert made == ImageOption(picture)
        assert made.size == (4, 6)
        assert made.tensor is None
        assert numpy.array_equal(numpy.asarray(made.image), numpy.asarray(picture))


def test_picture_as_tensor_is_kept_as_it_is() -> None:
    tensor = torch.randn(1, 3, 4, 6).requires_grad_()
    made = ImageOption(tensor)
    assert made.image is None
    assert made.size == (4, 6)
    assert torch.equal(made.tensor, tensor[0])
    assert not made.tensor.requires_grad
    with torch.no_grad():
        tensor.zero_()
    assert made.tensor.any()


def test_picture_over_json_is_base64(picture: Image.Image) -> None:
    made = Pictured.model_validate_json(json.dumps({"picture": in_base64(picture)})).picture
    assert made == ImageOption(picture)


def test_path_over_json_is_never_opened(path: Path) -> None:
    for text in (str(path), f"file://{path}", path.name):
        with pytest.raises(ValidationError, match=r"base64|no image"):
            Pictured.model_validate_json(json.dumps({"picture": text}))


def test_path_that_happens_to_be_base64_is_never_opened(
    picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture.save(tmp_path / "abcd", "PNG")
    assert make_options("test", Pictured, {"picture": "abcd"}).picture == ImageOption(picture)
    with pytest.raises(ValidationError, match="no image"):
        Pictured.model_validate_json('{"picture": "abcd"}')


@pytest.mark.parametrize("text", ["", "aGVsbG8=", "not base64!", "QUJD\n"])
def test_json_that_is_no_picture_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Pictured.model_validate_json(json.dumps({"picture": text}))


def test_missing_picture_is_told(tmp_path: Path) -> None:
    told = refused(Pictured, picture=tmp_path / "nothing.png")
    assert "'picture'" in told
    assert "nothing.png' does not exist" in told


@pytest.mark.parametrize("value", [3, [1, 2], {"path": "x"}])
def test_what_is_no_picture_is_told(value: Any) -> None:
    told = refused(Pictured, picture=value)
    assert "'picture'" in told
    assert "an image" in told


NO_PICTURES = [torch.zeros(4, 6), torch.zeros(2, 3, 4, 6), torch.zeros(3, 4, 6, dtype=torch.uint8)]


@pytest.mark.parametrize("tensor", NO_PICTURES)
def test_tensor_that_is_no_picture_is_refused(tensor: torch.Tensor) -> None:
    assert f"got a tensor {tuple(tensor.shape)}" in refused(Pictured, picture=tensor)


@pytest.mark.parametrize("tensor", NO_PICTURES)
def test_tensor_that_is_no_picture_is_told_what_is_expected(tensor: torch.Tensor) -> None:
    assert "float tensor (C, H, W)" in refused(Pictured, picture=tensor)


def test_pictures_compare_by_their_pixels(picture: Image.Image) -> None:
    other = picture.copy()
    other.putpixel((0, 0), (1, 2, 3))
    assert ImageOption(picture) == ImageOption(picture.copy())
    assert hash(ImageOption(picture)) == hash(ImageOption(picture.copy()))
    assert ImageOption(picture) != ImageOption(other)
    assert ImageOption(picture) != "picture"


def test_pictures_of_the_same_bytes_but_another_shape_differ() -> None:
    assert ImageOption(torch.zeros(3, 4, 6)) != ImageOption(torch.zeros(3, 6, 4))


def test_picture_in_provenance_is_short(picture: Image.Image) -> None:
    told = json.loads(make_options("test", Pictured, {"picture": picture}).model_dump_json())["picture"]
    assert told.startswith("ImageOption(4 x 6, ")
    assert len(told) < 60


def test_number_or_picture(picture: Image.Image) -> None:
    assert make_options("test", Either, {"baseline": 0.5}).baseline == 0.5
    assert isinstance(make_options("test", Either, {"baseline": picture}).baseline, ImageOption)
    assert re.search("a number,? or an image", refused(Either, baseline=[1]))


def test_picture_in_the_schema() -> None:
    described = Pictured.model_json_schema()["properties"]["picture"]["anyOf"][0]
    assert (described["type"], described["contentEncoding"]) == ("string", "base64")


# ---------------------------------------------------------------- declarations


@pytest.mark.parametrize("name", ["seed", "memory", "progress", "target", "layer", "inputs", "model", "technique"])
def test_reserved_names_are_refused(name: str) -> None:
    options = type("Taken", (Options,), {"__annotations__": {name: int}, name: Field(0, description="taken")})
    with pytest.raises(OptionError, match=rf"option '{name}' of 'test' has a reserved name.*seed"):
        Technique("test", lambda request, options: request.inputs, options)


def test_every_reserved_name_was_tried() -> None:
    assert len(RESERVED) == 8


@pytest.mark.parametrize("alias", ["alias", "validation_alias", "serialization_alias"])
def test_aliases_are_refused(alias: str) -> None:
    field: Any = Field(1, description="taken", **{alias: "seed"})
    options = type("Aliased", (Options,), {"__annotations__": {"start": int}, "start": field})
    with pytest.raises(OptionError, match="option 'start' of 'test' has the alias 'seed', but one name everywhere"):
        Technique("test", lambda request, options: request.inputs, options)


def test_option_without_description_is_refused() -> None:
    class Silent(Options):
        power: float = 2.0

    with pytest.raises(OptionError, match=r"option 'power' of 'test' has no description"):
        Technique("test", lambda request, options: request.inputs, Silent)


def test_schema_has_bounds_and_descriptions() -> None:
    schema = Technique("test", lambda request, options: request.inputs, Many).schema()["properties"]
    assert (schema["power"]["minimum"], schema["power"]["maximum"], schema["power"]["default"]) == (0.5, 4, 2.0)
    assert all(described["description"] for described in schema.values())
    json.dumps(schema)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("a.jpg,", "got an empty name among 2 pictures"),
        (" , a.jpg", "got an empty name among 2 pictures"),
        (["a.jpg", ""], r"got \['a.jpg', ''\], expected an image"),
    ],
)
def test_an_empty_name_is_no_folder(value: Any, told: str) -> None:
    class Pictured(Options):
        styles: ImagesOption = Field(description="pictures")

    with pytest.raises(OptionError, match=told):
        make_options("here", Pictured, {"styles": value})
