"""``python -m cnnviz`` is ``cnnviz``."""

from .cli import main

main()
