"""Lends replicas of one model to any number of threads, and keeps what was learnt about it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from .replica import replicate, unwrap
from .state import distinct, fingerprint, named_tensors, stamp
from .survey import Survey, survey

_Known = dict[Hashable, Survey]
_surveys: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, _Known]] = weakref.WeakKeyDictionary()
_SURVEYS_KEPT = 32  # shapes
_surveys_lock = threading.Lock()


class Lender:
    """Lends replicas of `module`; a replica is used by one borrower at a time, and made anew when the model changed."""

    def __init__(self, module: nn.Module) -> None:
        self.module = unwrap(module)
        replica = replicate(self.module)  # what cannot be replicated is refused here
        self._lock = threading.Lock()
        self._stamp = stamp(self.module)
        self._idle: list[tuple[nn.Module, Hashable]] = [(replica, stamp(replica))]
        self._fingerprint = ""
        self._parts = distinct(self.module)

    def refresh(self) -> None:
        """Look whether the model changed since the last call, and forget what was made of the old one if so."""
        now = stamp(self.module)
        with self._lock:
            if now != self._stamp:
                self._stamp, self._idle, self._fingerprint, self._parts = now, [], "", distinct(self.module)

    @contextmanager
    def borrow(self) -> Iterator[nn.Module]:
        """Lend a replica.

        It is thrown away after an exception, since it may be in any state, and when its forward pass kept notes on it.
        """
        with self._lock:
            made_for = self._stamp
            replica, mark = self._idle.pop() if self._idle else (None, None)
        if replica is None:
            replica = replicate(self.module)
            mark = stamp(replica)
        yield replica
        if stamp(replica) == mark:
            with self._lock:
                if made_for == self._stamp:
                    self._idle.append((replica, mark))

    def fingerprint(self) -> str:
        """Return the fingerprint of the weights, made once and again after they changed."""
        with self._lock:
            self._fingerprint = self._fingerprint or fingerprint(*(t for _, t in named_tensors(self.module)))
            return self._fingerprint

    def hooks(self) -> int:
        """Return how many forward hooks the model has, which its replicas are without."""
        return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in self._parts)

    def survey(self, example: Tensor) -> Survey:
        """Return the survey of a forward pass on such an input; remembered as long as the model stays as it is."""
        now = self._stamp
        key = (tuple(example.shape[1:]), example.dtype, str(example.device))
        with _surveys_lock:
            seen, known = _surveys.get(self.module, (None, {}))
            if seen == now and key in known:
                return known[key]
        made = survey(self.module, example)
        if not made.fixed:
            return made
        with _surveys_lock:
            seen, known = _surveys.get(self.module, (None, {}))
            kept = list(known.items())[-_SURVEYS_KEPT + 1 :] if seen == now else []
            _surveys[self.module] = (now, {**dict(kept), key: made})
        return made
