"""The commands, and how they fail."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import CnnvizError
from ..registry import Selection, select
from . import INTERRUPTED, demo, evaluate, explain, index, info, layers, list_, report, train_style

app = typer.Typer(
    name="cnnviz",
    help="See inside convolutional networks, and trust what you see.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("list")(list_.list_)
app.command("info")(info.info)
app.command("layers")(layers.layers)
app.command("report")(report.report)
app.command("evaluate")(evaluate.evaluate_)
app.command("demo")(demo.demo)
app.command("train-style")(train_style.command)
app.add_typer(explain.app, name="explain")
app.add_typer(index.app, name="index")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cnnviz {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
    no_plugins: Annotated[bool, typer.Option("--no-plugins", help="Use cnnviz's own techniques only.")] = False,
    allow_plugin: Annotated[
        list[str] | None, typer.Option(help="Of other distributions, use only this one or this technique; repeatable.")
    ] = None,
    block_plugin: Annotated[
        list[str] | None, typer.Option(help="Leave out this distribution or technique; repeatable.")
    ] = None,
) -> None:
    given = Selection.from_environment()
    if no_plugins or allow_plugin or block_plugin:
        allow = frozenset(allow_plugin) | (given.allow or frozenset()) if allow_plugin else given.allow
        select(Selection(no_plugins or given.disable, allow, given.block | frozenset(block_plugin or ())))


def run(given: list[str]) -> None:
    """Run the command that arguments name, and exit.

    Raises:
        KeyboardInterrupt: on Ctrl-C, unless the command has told by itself what was kept.
    """
    arguments = [argument for argument in given if argument != "--debug"]  # wherever it stands
    debug = len(arguments) < len(given)
    try:
        code = app(arguments, standalone_mode=False)
    except CnnvizError as error:
        if debug:
            raise
        _fail(str(error), 2)
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        # Typer's usage errors have this method; their class is private to it.
        told = getattr(error, "format_message", None)
        if debug:
            raise
        if told is not None and not told():  # the help was shown, as nothing was asked for
            sys.exit(2)
        if told is not None:
            _fail(told(), getattr(error, "exit_code", 2))
        _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)
    if code == INTERRUPTED:  # typer turns Ctrl-C into this
        raise KeyboardInterrupt
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    typer.echo("cnnviz: " + " ".join(message.split()), err=True)
    sys.exit(code)
