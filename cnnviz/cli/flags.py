"""Flags made from options: what is declared once is the command line's too."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import typer
from pydantic.fields import FieldInfo

from ..options import Options, expectation

_OPTION: Final = "option_"


def with_flags(
    run: Callable[..., None], name: str, options: type[Options], common: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """Return a function whose signature typer turns into a command with a flag for each option.

    Args:
        run: called with the options that were given, as a dictionary, and the other parameters by keyword.
        name: what the options are of; it begins the flag of an option whose name another flag has.
        options: their class.
        common: the other parameters.
    """
    taken = {parameter.name for parameter in common} | {"debug", "help"}
    flags = {field: _flag(name, options, field, info, taken) for field, info in options.model_fields.items()}

    def command(**given: Any) -> None:
        values = {
            field: option_value(options, field, value)
            for field in flags
            if (value := given.pop(_OPTION + field)) is not None
        }
        run(values, **given)

    command.__signature__ = inspect.Signature([*common, *flags.values()])  # type: ignore[attr-defined]
    return command


def option_value(options: type[Options], name: str, value: Any) -> Any:
    r"""Return a flag's text as pydantic should see it: None for "none" where that is allowed, lists split at commas.

    A comma inside of a part is written ``\,``.
    """
    schema = options.model_json_schema()["properties"][name]
    parts = schema.get("anyOf", [schema])
    if isinstance(value, str) and value.lower() == "none" and any(part.get("type") == "null" for part in parts):
        return None
    kinds = {part.get("type") for part in parts}
    if isinstance(value, str) and "array" in kinds and "string" not in kinds:
        return tuple(part.strip().replace("\\,", ",") for part in re.split(r"(?<!\\),", value))
    members = {str(one): one for part in parts for one in part.get("enum", ())}  # of numbers, which texts are not
    return members.get(value, value) if isinstance(value, str) else value


def _flag(name: str, options: type[Options], field: str, info: FieldInfo, taken: set[str]) -> inspect.Parameter:
    dashed = field.replace("_", "-")
    if field in taken:
        dashed = f"{name}-{dashed}"
    default = "required" if info.is_required() else f"default: {_shown(info.get_default(call_default_factory=True))}"
    bounds = expectation(options, field)
    is_bool = info.annotation is bool
    told = f"{info.description} ({default})" if is_bool else f"{info.description} ({bounds}; {default})"
    kind: Any = bool if is_bool else str
    option = typer.Option(
        f"--{dashed}/--no-{dashed}" if is_bool else f"--{dashed}",
        help=told[0].upper() + told[1:],
        metavar=None if is_bool else _metavar(options, field),
        show_default=False,
        rich_help_panel=f"Options of {name}",
    )
    return inspect.Parameter(
        _OPTION + field, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind | None, option], default=None
    )


def _shown(default: Any) -> str:
    if isinstance(default, (tuple, list)):
        return ",".join(map(str, default))
    return "none" if default is None else str(default)


def _metavar(options: type[Options], name: str) -> str:
    schema = options.model_json_schema()["properties"][name]
    kinds = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    if any("metavar" in part for part in (schema, *kinds)):
        return "|".join(part.get("metavar", schema.get("metavar", "N")) for part in kinds[-1:])
    if any("enum" in part or "const" in part for part in kinds):
        return "|".join(str(item) for part in kinds for item in part.get("enum", [part.get("const")]))
    return {"integer": "N", "number": "X", "array": "X,X,…"}.get(kinds[0].get("type", ""), "TEXT")
