"""The command line: ``cnnviz --help``."""

from __future__ import annotations

import io
import sys
from typing import Final

from ..heap import keep_freed_memory

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C."""


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # work is not lost for a letter that cannot be shown
    keep_freed_memory()
    try:
        from .app import run  # takes seconds, as torch does, in which Ctrl-C is heard too

        run(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("cnnviz: interrupted; nothing was written\n")
        sys.exit(INTERRUPTED)
