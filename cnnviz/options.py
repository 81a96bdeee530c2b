"""Options of a technique: declared once with pydantic, used as keyword arguments, CLI flags and JSON schema."""

from __future__ import annotations

import base64
import binascii
import hashlib
import operator
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import numpy
from PIL import Image
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    PydanticUserError,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic import Field as Field  # noqa: PLC0414  # public here
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, PydanticSerializationUnexpectedValue, core_schema
from torch import Tensor

from .data import find_images, open_image
from .errors import InputError, OptionError, nearest
from .render import to_tensor

RESERVED: Final = frozenset(("seed", "memory", "progress", "target", "layer", "inputs", "model", "technique"))


class Options(BaseModel):
    """Base of every technique's options: frozen, unknown names forbidden, defaults checked.

    Each option is annotated, bounded and described once, with `Field`:

    Example:
        >>> class Sharpness(Options):
        ...     power: float = Field(2.0, ge=0.5, le=4, description="exponent of the gradient")
        >>> Sharpness(power=3).power
        3.0
    """

    # Validators are built when a technique is registered; building them here would slow the import of cnnviz.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse True where a number is meant, which Python would take for 1."""
        if not _takes_bools(cls.model_fields[str(info.field_name)].annotation, value):
            raise PydanticCustomError("bool", "true and false are no numbers")
        return value


def _takes_bools(annotation: Any, value: Any) -> bool:
    """Whether each bool in a value, however deep, stands where the annotation has one."""
    annotation = getattr(annotation, "__value__", annotation)  # of an alias
    origin, parts = get_origin(annotation), get_args(annotation)
    match value:
        case _ if origin is Annotated:
            return _takes_bools(parts[0], value)
        case _ if origin in (Union, UnionType):
            return any(_takes_bools(part, value) for part in parts)
        case bool():
            return annotation in (bool, Any, object) or (origin is Literal and any(value is part for part in parts))
        case list() | tuple() if origin is tuple and parts[-1:] != (...,):
            each = [*parts, *parts[-1:] * len(value)]
            return all(_takes_bools(part, item) for part, item in zip(each, value, strict=False))
        case list() | tuple() | set() if parts and origin is not dict:
            return all(_takes_bools(parts[0], item) for item in value)
        case dict() if origin is dict:
            return all(_takes_bools(parts[1], item) for item in value.values())
        case _:  # what no number can be is refused as that
            return not isinstance(value, (list, tuple, set, dict)) or annotation not in _SINGLE


_SINGLE: Final = (bool, int, float, complex, str, type(None))


def _pair(value: Any) -> Any:
    if isinstance(value, str):
        value = tuple(part.strip() for part in value.split(","))
    if isinstance(value, (list, tuple)):
        return tuple(value) * 2 if len(value) == 1 else tuple(value)
    return value, value


_Positive = Annotated[int, Field(ge=1)]
Pair = Annotated[
    tuple[_Positive, _Positive],
    BeforeValidator(_pair, json_schema_input_type=_Positive | tuple[_Positive, _Positive]),
    Field(json_schema_extra={"metavar": "H[,W]"}),
]
"""Two positive numbers, (height, width): one number stands for both; ``H[,W]`` on the command line."""


class ImageOption:
    """An option whose value is a picture: a tensor, PIL image or path in Python, a path on the CLI, base64 over HTTP.

    Attributes:
        tensor: the values as given, (C, H, W), where it was a tensor; None otherwise.
        image: the upright RGB picture, where it was a PIL image, path or base64; None otherwise.
        digest: the first 16 digits of the SHA-256 of its pixels.
        name: the file's name without its ending, where it was a path; empty otherwise.
    """

    def __init__(self, value: Tensor | Image.Image | str | Path | bytes) -> None:
        self.tensor: Tensor | None = None
        self.image: Image.Image | None = None
        self.name = Path(value).stem if isinstance(value, (str, Path)) else ""
        if isinstance(value, Tensor):
            value = value[0] if value.dim() == 4 and len(value) == 1 else value
            if value.dim() != 3 or not value.is_floating_point():
                raise InputError(f"got a tensor {tuple(value.shape)} {value.dtype}, expected a float tensor (C, H, W)")
            self.tensor = value.detach().clone()
            raw = self.tensor.float().cpu().contiguous().numpy().tobytes()
        else:
            self.image = open_image(value)
            raw = numpy.asarray(self.image).tobytes()
        self.digest = hashlib.sha256(raw).hexdigest()[:16]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        if self.tensor is not None:
            return self.tensor.shape[-2], self.tensor.shape[-1]
        assert self.image is not None
        return self.image.height, self.image.width

    @property
    def values(self) -> Tensor:
        """The tensor as given, (C, H, W), or the picture in [0, 1], (3, H, W)."""
        if self.tensor is not None:
            return self.tensor
        assert self.image is not None
        return to_tensor(self.image)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageOption) and self.digest == other.digest and self.size == other.size

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"ImageOption({self.size[0]} x {self.size[1]}, {self.digest})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.json_or_python_schema(
            python_schema=core_schema.no_info_plain_validator_function(cls._from_python),
            json_schema=core_schema.no_info_after_validator_function(cls._from_base64, core_schema.str_schema()),
            serialization=core_schema.plain_serializer_function_ser_schema(_image_told, when_used="json"),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*", "metavar": "IMAGE"}

    @classmethod
    def _from_python(cls, value: Any) -> ImageOption:
        if isinstance(value, ImageOption):
            return value
        if not isinstance(value, (Tensor, Image.Image, str, Path, bytes)):
            raise PydanticCustomError("image", "expected a tensor, a PIL image or a path")
        try:
            return cls(value)
        except InputError as error:
            raise PydanticCustomError("image", "{why}", {"why": str(error)}) from error

    @classmethod
    def _from_base64(cls, value: str) -> ImageOption:
        try:
            return cls._from_python(base64.b64decode(value, validate=True))
        except binascii.Error as error:
            raise PydanticCustomError("image", "expected an image file in base64") from error


def _image_told(value: Any) -> str:
    if not isinstance(value, ImageOption):  # of the option's other types, one after this
        raise PydanticSerializationUnexpectedValue("no image")
    return repr(value)


def _images(value: Any) -> Any:
    """Read one image, a folder of them, or several; on the command line they are separated by commas."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(item, str) and not item.strip() for item in items):
        raise PydanticCustomError("image", "got an empty name among {count} pictures", {"count": len(items)})
    try:
        return tuple(
            image
            for item in items
            for image in (find_images([item]) if isinstance(item, (str, Path)) and Path(item).is_dir() else [item])
        )
    except InputError as error:
        raise PydanticCustomError("image", "{why}", {"why": str(error)}) from error


ImagesOption = Annotated[
    tuple[ImageOption, ...], BeforeValidator(_images), Field(json_schema_extra={"metavar": "IMAGE,IMAGE,…"})
]
"""An option whose value is one picture or several: as `ImageOption`, or folders of them."""


def _number_or_numbers(value: Any) -> Any:
    """Read the command line's "0.5" and "0.1,0.2,0.3"; everything else is left to the field's own types."""
    if isinstance(value, str):
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            return value
        return numbers[0] if len(numbers) == 1 else numbers
    return value


_Number = Annotated[float, Field(allow_inf_nan=False)]
Baseline = Annotated[_Number | tuple[_Number, ...] | ImageOption, BeforeValidator(_number_or_numbers)]
"""What stands for "nothing to see": a number, a number for each channel, or an image; see `Request.baseline`."""


def _named(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


Perturbation = SkipJsonSchema[
    Annotated[Callable[[Tensor, Tensor], Tensor], PlainSerializer(_named, return_type=str, when_used="json")]
]
"""An option whose value is a function that changes boxes of an image; given in Python alone.

It takes a copy of an image (1, C, H, W) and boxes (k, 4) of one size, int64 on the CPU: top, bottom, left and right,
the bottom and the right exclusive. It returns what is put into them, (k, C, bottom - top, right - left), of the image's
dtype and device; for the same box always the same, however boxes are put together.
"""


def check_seed(seed: Any) -> int:
    """Return a seed of random numbers.

    Raises:
        OptionError: it is no whole number, or out of range.
    """
    try:
        whole = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:  # as a tensor of several raises too
        whole = -1
    if not 0 <= whole < 2**63:
        raise OptionError(f"seed: got {seed!r}, expected a whole number from 0 to 2**63 - 1")
    return whole


def check_declaration(technique: str, options: type[Options]) -> None:
    """Refuse options that could not be served everywhere.

    Raises:
        OptionError: a reserved name, an alias, or an option without a description.
    """
    for name, info in options.model_fields.items():
        if name in RESERVED:
            raise OptionError(f"option '{name}' of '{technique}' has a reserved name ({', '.join(sorted(RESERVED))})")
        if alias := info.alias or info.validation_alias or info.serialization_alias:
            raise OptionError(
                f"option '{name}' of '{technique}' has the alias {alias!r}, but one name everywhere is expected; give "
                "the option itself the name that it should have"
            )
        if not info.description:
            raise OptionError(f"option '{name}' of '{technique}' has no description; give Field(…, description=…)")
        if name == "upsample" and not _alternatives(info.annotation) <= {"bilinear", "bicubic", "nearest", type(None)}:
            raise OptionError(
                f"option 'upsample' of '{technique}' is carried out by the framework, which knows 'bilinear', "
                "'bicubic', 'nearest' and None; declare it as one of these, or give it another name"
            )
    try:
        options.model_rebuild()  # now, before several threads ask for it
        options.model_json_schema()
    except PydanticUserError as error:
        raise OptionError(f"the options of '{technique}' have no JSON schema: {error.message}") from error


def _alternatives(annotation: Any) -> set[Any]:
    """Return the members of a union of literals."""
    parts = get_args(annotation)
    return set().union(*map(_alternatives, parts)) if parts else {annotation}


def make_options(technique: str, options: type[Options], given: dict[str, Any]) -> Options:
    """Validate keyword arguments.

    Raises:
        OptionError: names each wrong option, its bounds and the value got.
    """
    try:
        return options(**given)
    except ValidationError as error:
        problems: dict[str, list[Any]] = {}
        for problem in error.errors(include_url=False):
            problems.setdefault(str(problem["loc"][0]) if problem["loc"] else "options", []).append(problem)
        told = [_told(technique, options, name, found) for name, found in problems.items()]
        raise OptionError("; ".join(told)) from None


def _told(technique: str, options: type[Options], name: str, problems: list[Any]) -> str:
    """Say what is wrong with one option; several problems are those of the alternatives that it has."""
    known = list(options.model_fields)
    if problems[0]["type"] == "extra_forbidden":
        have = f"it has {', '.join(map(repr, known))}" if known else "it has none"
        return f"unknown option '{name}' of '{technique}'{nearest(name, known)}; {have}"
    got = "nothing" if problems[0]["type"] == "missing" else _shown(problems[0]["input"])
    reasons = [
        p["msg"] for p in problems if p["type"] in _OWN_WORDS and isinstance(p["input"], (str, Path, bytes, Tensor))
    ]
    why = f" ({reasons[0].removeprefix('Value error, ')})" if reasons else ""
    return (
        f"option '{name}' of '{technique}': got {got}, expected {expectation(options, name) or 'something else'}{why}"
    )


_OWN_WORDS: Final = ("image", "value_error")


def _shown(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]


def expectation(options: type[Options], name: str) -> str:
    """Return what an option accepts, in words, from its JSON schema: ``a number, 0.5 to 4``."""
    schema = options.model_json_schema()
    described = schema["properties"].get(name)
    return _words(described, schema.get("$defs", {})) if described else ""


def _words(schema: dict[str, Any], defs: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _words(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "anyOf" in schema:
        return ", or ".join(dict.fromkeys(_words(part, defs) for part in schema["anyOf"]))
    if "enum" in schema:
        return "one of " + ", ".join(repr(item) for item in schema["enum"])
    if "const" in schema:
        return repr(schema["const"])
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        several = _words(items[0], defs).replace("a whole number", "whole numbers").replace("a number", "numbers")
        return f"{len(items)} {several}" if "prefixItems" in schema else several
    word = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "none"}.get(
        str(kind)
    )
    if word is None:
        return "an image" if "contentMediaType" in schema else "text"
    return word + _range(schema)


def _range(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    parts = [f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema]
    return " " + " and ".join(parts) if parts else ""
