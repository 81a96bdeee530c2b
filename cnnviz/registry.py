"""Discovery of plugins by entry point: listed without importing, loaded on demand, faults kept apart."""

from __future__ import annotations

import os
import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Final, TypeVar

import pluggy

from . import hookspecs
from .errors import PluginError, nearest, reason
from .hookspecs import PROJECT
from .metric import Metric
from .technique import Technique

OWN: Final = "cnnviz"
"""The distribution whose plugins CNNVIZ_DISABLE_PLUGINS and the allow list leave alone."""


@dataclass(frozen=True)
class Offer:
    """A technique or metric as its entry point announces it; nothing was imported.

    Attributes:
        name: its name.
        distribution: the installed distribution that offers it.
        version: that distribution's version.
        place: the module or object that registers it.
    """

    name: str
    distribution: str
    version: str
    place: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.place})"


@dataclass(frozen=True)
class Selection:
    """Which plugins may be used. Items are names of techniques, metrics or distributions.

    Attributes:
        disable: leave only cnnviz's own.
        allow: of other distributions, leave only these; None allows all.
        block: leave these out, whoever brings them.
    """

    disable: bool = False
    allow: frozenset[str] | None = None
    block: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "allow", None if self.allow is None else _names(self.allow))
        object.__setattr__(self, "block", _names(self.block))

    @classmethod
    def from_environment(cls) -> Selection:
        """Read CNNVIZ_DISABLE_PLUGINS (1), CNNVIZ_ALLOW_PLUGINS and CNNVIZ_BLOCK_PLUGINS (comma-separated)."""
        allow = os.environ.get("CNNVIZ_ALLOW_PLUGINS")
        return cls(
            disable=os.environ.get("CNNVIZ_DISABLE_PLUGINS", "").lower() not in ("", "0", "false", "no", "off"),
            allow=None if allow is None else frozenset(allow.split(",")),
            block=frozenset(os.environ.get("CNNVIZ_BLOCK_PLUGINS", "").split(",")),
        )

    def admits(self, offer: Offer) -> bool:
        """Whether what is offered may be used."""
        names = _names([offer.name, offer.distribution])
        if names & self.block:
            return False
        if offer.distribution == OWN:
            return True
        return not self.disable and (self.allow is None or bool(names & self.allow))


def _names(names: Iterable[str]) -> frozenset[str]:
    """Spell names as packaging does: ``Acme_Viz`` is ``acme-viz``."""
    return frozenset(re.sub(r"[-_.]+", "-", name.strip()).lower() for name in names if name.strip())


Item = TypeVar("Item", Technique, Metric)


class Registry(Mapping[str, Item]):
    """Items by name. Iterating lists names without importing any plugin; getting one loads its plugin."""

    group: ClassVar[str]
    """The entry points' group."""
    hook: ClassVar[str]
    """The hook that registers items."""
    word: ClassVar[str]
    """What an item is called."""
    item: ClassVar[type]
    """What an item is."""
    listing: ClassVar[str]
    """The command that lists them."""

    def __init__(self, selection: Selection | None = None) -> None:
        self._selection = selection or Selection.from_environment()
        self._lock = threading.RLock()
        self._plugins = pluggy.PluginManager(PROJECT)
        self._plugins.add_hookspecs(hookspecs)
        self._loaded: dict[str, Item] = {}
        self._faults: dict[str, str] = {}
        self._offers: dict[str, list[tuple[Offer, EntryPoint]]] = defaultdict(list)
        self.left_out: list[Offer] = []
        """What the selection does not admit."""
        for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
            offer = _offer(point)
            if self._selection.admits(offer):
                self._offers[point.name].append((offer, point))
            else:
                self.left_out.append(offer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._offers)

    def __repr__(self) -> str:
        return f"<{self.word}s: {', '.join(self)}>"

    def __len__(self) -> int:
        return len(self._offers)

    def __contains__(self, name: object) -> bool:
        return name in self._offers

    def __getitem__(self, name: str) -> Item:
        """Return an item, importing its plugin the first time.

        Raises:
            PluginError: unknown, offered twice, or faulty; says by whom and what to do. A KeyError too.
        """
        if name not in self._loaded:
            self._load(name)
        return self._loaded[name]

    @property
    def offers(self) -> list[Offer]:
        """Everything offered, by name; two of one name where two distributions offer it."""
        return [offer for pairs in self._offers.values() for offer, _ in pairs]

    @property
    def faults(self) -> dict[str, str]:
        """What was found wrong so far, by name."""
        doubled = {name: self._doubled(name) for name, pairs in self._offers.items() if len(pairs) > 1}
        return {**doubled, **self._faults}

    def usable(self) -> dict[str, Item]:
        """Load every plugin and return the items that work; `faults` then tells about the others."""
        found: dict[str, Item] = {}
        for name in self:
            try:
                found[name] = self[name]
            except PluginError:
                continue
        return found

    def offer(self, name: str) -> Offer:
        """Return who offers an item.

        Raises:
            PluginError: nobody, or more than one.
        """
        return self._only(name)[0]

    def _only(self, name: str) -> tuple[Offer, EntryPoint]:
        pairs = self._offers.get(name, [])
        if len(pairs) > 1:
            raise UnknownNameError(self._doubled(name))
        if pairs:
            return pairs[0]
        out = [offer for offer in self.left_out if offer.name == name]
        if out:
            raise UnknownNameError(
                f"{self.word} '{name}' of {out[0]} is switched off by CNNVIZ_DISABLE_PLUGINS, CNNVIZ_ALLOW_PLUGINS, "
                "CNNVIZ_BLOCK_PLUGINS or their flags"
            )
        raise UnknownNameError(f"no {self.word} '{name}'{nearest(name, self)} ({self.listing} shows all)")

    def _doubled(self, name: str) -> str:
        by = " and by ".join(str(offer) for offer, _ in self._offers[name])
        return (
            f"{self.word} '{name}' is offered by {by}; uninstall one, or name its distribution in CNNVIZ_BLOCK_PLUGINS"
        )

    def _load(self, name: str) -> None:
        offer, point = self._only(name)
        if name in self._faults:
            raise UnknownNameError(self._faults[name])
        try:
            plugin = point.load()  # outside of the lock: another thread that imports it may be waiting for a technique
            with self._lock:
                if name not in self._loaded:
                    self._loaded[name] = self._registered(point, plugin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may even call sys.exit; it takes no other down
            self._faults[name] = f"the plugin for '{name}' from {offer} is faulty: {reason(error)}"
            raise UnknownNameError(self._faults[name]) from error

    def _registered(self, point: EntryPoint, plugin: Any) -> Item:
        found: dict[str, Item] = {}

        def register(item: Item) -> None:
            if not isinstance(item, self.item):
                raise PluginError(f"register() got {item!r}, expected a cnnviz.{self.item.__name__}")
            if item.name in found:
                raise PluginError(f"'{item.name}' is registered twice by {point.value}")
            found[item.name] = item

        # Under the entry point's name, as several of them may name one module.
        others = [other for other in self._plugins.get_plugins() if other is not plugin]
        known = self._plugins.is_registered(plugin)
        try:
            if not known:
                self._plugins.register(plugin, name=point.name)
                self._plugins.check_pending()
            self._plugins.subset_hook_caller(self.hook, remove_plugins=others)(register=register)
        except BaseException:
            if not known and self._plugins.is_registered(plugin):
                self._plugins.unregister(plugin)
            raise
        if point.name not in found:
            has = ", ".join(map(repr, found)) or "nothing"
            raise PluginError(
                f"its entry point is named '{point.name}', but {point.value} registers {has}; the two names must be "
                "the same"
            )
        unannounced = [name for name in found if name not in self._offers and not self._is_left_out(name)]
        if unannounced:
            raise PluginError(f"{point.value} registers '{unannounced[0]}', which has no entry point of that name")
        return found[point.name]

    def _is_left_out(self, name: str) -> bool:
        return any(offer.name == name for offer in self.left_out)


class UnknownNameError(PluginError, KeyError):
    """No usable technique or metric of that name."""

    def __str__(self) -> str:  # a KeyError shows the repr
        return str(self.args[0])


def _offer(point: EntryPoint) -> Offer:
    dist = point.dist
    name, version = (dist.name, dist.version) if dist else ("", "")
    return Offer(point.name, name or "?", version or "?", point.value)  # an interrupted installation has neither


class Techniques(Registry[Technique]):
    """Techniques by name."""

    group = PROJECT
    hook = "cnnviz_techniques"
    word = "technique"
    item = Technique
    listing = "cnnviz list"


class Metrics(Registry[Metric]):
    """Metrics by name."""

    group = f"{PROJECT}.metrics"
    hook = "cnnviz_metrics"
    word = "metric"
    item = Metric
    listing = "cnnviz list --metrics"


_chosen: Selection | None = None
_known: dict[type, Any] = {}
_lock = threading.Lock()


def techniques() -> Techniques:
    """Return every technique by name; names and origins without importing, a technique itself on access.

    Example:
        >>> "grad-cam" in techniques()
        True
    """
    return _the(Techniques)


def metrics() -> Metrics:
    """Return every metric of explanations by name; names and origins without importing, a metric itself on access.

    Example:
        >>> "insertion" in metrics()
        True
    """
    return _the(Metrics)


Kind = TypeVar("Kind", Techniques, Metrics)


def _the(kind: type[Kind]) -> Kind:
    """Return the process's one registry of this kind."""
    with _lock:
        if kind not in _known:
            _known[kind] = kind(_chosen)
        made: Kind = _known[kind]
        return made


def select(selection: Selection) -> None:
    """Make `techniques` and `metrics` use this selection of plugins from now on."""
    global _chosen  # noqa: PLW0603  # one selection for the process, behind a lock
    with _lock:
        _chosen = selection
        _known.clear()
