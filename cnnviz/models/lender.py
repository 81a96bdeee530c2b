"""Lends replicas of one model to any number of threads, and keeps what was learnt about it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from .replica import replicate, unwrap
from .state import fingerprint, named_tensors, stamp
from .survey import Survey, survey

_Known = dict[Hashable, Survey]
_surveys: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, _Known]] = weakref.WeakKeyDictionary()
_surveys_lock = threading.Lock()


class Lender:
    """Lends replicas of `module`; a replica is used by one borrower at a time, and made anew when the model changed."""

    def __init__(self, module: nn.Module) -> None:
        self.module = unwrap(module)
        self._lock = threading.Lock()
        self._stamp = stamp(self.module)
        self._idle = [replicate(self.module)]  # what cannot be replicated is refused here
        self._fingerprint = ""

    @contextmanager
    def borrow(self) -> Iterator[nn.Module]:
        """Lend a replica. After an exception it is thrown away, since it may be in any state."""
        now = stamp(self.module)
        with self._lock:
            self._renew(now)
            replica = self._idle.pop() if self._idle else None
        replica = replica or replicate(self.module)
        yield replica
        self._give_back(replica, now)

    def fingerprint(self) -> str:
        """Return the fingerprint of the weights, made once and again after they changed."""
        now = stamp(self.module)
        with self._lock:
            self._renew(now)
            self._fingerprint = self._fingerprint or fingerprint(*(t for _, t in named_tensors(self.module)))
            return self._fingerprint

    def survey(self, example: Tensor) -> Survey:
        """Return the survey of a forward pass on such an input; remembered as long as the model stays as it is."""
        now = stamp(self.module)
        key = (tuple(example.shape[1:]), example.dtype, str(example.device))
        with _surveys_lock:
            seen, known = _surveys.get(self.module, (None, {}))
            if seen == now and key in known:
                return known[key]
        made = survey(self.module, example)
        with _surveys_lock:
            seen, known = _surveys.get(self.module, (None, {}))
            _surveys[self.module] = (now, {**(known if seen == now else {}), key: made})
        return made

    def _renew(self, now: Hashable) -> None:
        if now != self._stamp:
            self._stamp, self._idle, self._fingerprint = now, [], ""

    def _give_back(self, replica: nn.Module, made_for: Hashable) -> None:
        with self._lock:
            if made_for == self._stamp:
                self._idle.append(replica)
