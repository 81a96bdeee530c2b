"""These networks are as small as those of techniques' tests."""

from tests.techniques.conftest import one_thread

__all__ = ["one_thread"]
