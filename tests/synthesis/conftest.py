"""These networks are as small as those of techniques' tests."""

from tests.techniques.conftest import on_one_thread

__all__ = ["on_one_thread"]
