"""Techniques are listed without importing, loaded on demand, and a faulty plugin takes no other down."""

from __future__ import annotations

import functools
import importlib
import sys
import textwrap
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cnnviz
from cnnviz import PluginError, Technique
from cnnviz import registry as registries
from cnnviz.registry import Metrics, Offer, Selection, Techniques, select, techniques

OWN = {"activations", "deconvnet", "filters", "grad-cam", "guided-backprop", "occlusion", "saliency"}
SWITCHES = ("CNNVIZ_DISABLE_PLUGINS", "CNNVIZ_ALLOW_PLUGINS", "CNNVIZ_BLOCK_PLUGINS")

Install = Callable[..., None]


def plugin(*names: str) -> str:
    """Source of a module that registers techniques of these names."""
    calls = "\n    ".join(f"register(cnnviz.Technique({name!r}, nothing))" for name in names) or "pass"
    return f"""
import cnnviz

def nothing(request, options):
    \"\"\"Return zeros.\"\"\"
    return request.inputs[:, :1] * 0

@cnnviz.hookimpl
def cnnviz_techniques(register):
    {calls}
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution that exists as files alone: its entry points and modules."""
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)

    def installed(distribution: str, points: dict[str, str], version: str = "1.0", **modules: str) -> None:
        place = tmp_path / distribution
        info = place / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = "\n".join(f"{name} = {value}" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[cnnviz]\n{lines}\n")
        for name, source in modules.items():
            (place / f"{name}.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(place)

    before = set(sys.modules)
    yield installed
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def acme(install: Install) -> None:
    install("acme-viz", {"acme-energy": "acme_energy"}, "2.3", acme_energy=plugin("acme-energy"))


def registry(**selection: object) -> Techniques:
    return Techniques(Selection(**selection))


def faulty(name: str) -> str:
    """What is said about a technique that cannot be had; everything else still can."""
    known = registry()
    with pytest.raises(PluginError) as caught:
        _ = known[name]
    assert known.usable().keys() >= OWN
    assert name not in known.usable()
    assert known.faults[name] == str(caught.value)
    with pytest.raises(PluginError, match="faulty"):
        _ = known[name]
    assert known["saliency"].name == "saliency"
    return str(caught.value)


METRIC = """
import cnnviz

def nothing(case, options):
    \"\"\"Return zeros.\"\"\"
    return case.values.sum((1, 2, 3)) * 0

@cnnviz.hookimpl
def cnnviz_metrics(register):
    register(cnnviz.Metric("nothing", nothing))
"""


def test_what_a_function_with_some_arguments_given_does_is_told_by_the_function() -> None:
    def scaled(request: cnnviz.Request, options: cnnviz.Options, scale: float) -> None:
        """Scale the gradient."""

    part = functools.partial(scaled, scale=2.0)
    assert cnnviz.Technique("scaled", part).summary == "Scale the gradient."
    assert cnnviz.Technique("scaled", functools.partial(lambda request, options: None)).summary == ""
    part.__doc__ = "Double the gradient."
    assert cnnviz.Technique("scaled", functools.partial(part)).summary == "Double the gradient."


def test_a_description_ends_where_sections_begin() -> None:
    def sectioned(request: cnnviz.Request, options: cnnviz.Options) -> None:
        """Do something: in a line.

        Note: this is no section. In two
        lines.

        Another paragraph.
        Raises:
            ModelError: never.

        Example:
            >>> 1
        """

    technique = cnnviz.Technique("sectioned", sectioned)
    assert technique.summary == "Do something: in a line."
    assert technique.description == (
        "Do something: in a line.\n\nNote: this is no section. In two\nlines.\n\nAnother paragraph."
    )


def test_metrics_are_plugins_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "acme_metrics-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-metrics\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cnnviz.metrics]\nnothing = acme_metric\nbroken = nowhere_at_all\n")
    (tmp_path / "acme_metric.py").write_text(METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    known = Metrics(Selection())
    assert "acme_metric" not in sys.modules
    assert known["nothing"].summary == "Return zeros."
    assert "insertion" in known
    assert "nothing" not in Techniques(Selection())
    assert known.usable().keys() >= {"nothing", "deletion"}
    assert list(known.faults) == ["broken"]
    with pytest.raises(PluginError, match="no metric 'nothin'; nearest: 'nothing'"):
        known["nothin"]
    assert "nothing" not in Metrics(Selection(disable=True))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "Bad Name"}, "metric name 'Bad Name': expected lower-case"),
        ({"function": 3}, "metric 'fine': its function is 3"),
        ({"better": "larger"}, "better='larger', expected 'higher' or 'lower'"),
        ({"options": dict}, "no subclass of cnnviz.Options"),
    ],
)
def test_malformed_metrics_are_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(PluginError, match=told):
        cnnviz.Metric(**{"name": "fine", "function": lambda case, options: case.values, **given})


@pytest.mark.parametrize("key", ["inputs", "layers", "default_layer"])
def test_techniques_that_take_what_there_is_not_are_refused(key: str) -> None:
    with pytest.raises(PluginError, match=f"technique 'fine': {key}='last', expected one of \\('[a-z-]*', "):
        Technique("fine", lambda request, options: request.inputs, **{key: "last"})


# ---------------------------------------------------------------- listing and loading


@pytest.mark.usefixtures("acme")
def test_listing_imports_nothing() -> None:
    known = registry()
    assert OWN | {"acme-energy"} <= set(known)
    assert "acme-energy" in known
    assert len(known) == len(list(known))
    assert "acme_energy" not in sys.modules


@pytest.mark.usefixtures("acme")
def test_names_come_in_order() -> None:
    assert list(registry()) == sorted(registry())


@pytest.mark.usefixtures("acme")
def test_offers_say_who_brings_what_without_importing() -> None:
    offer = registry().offer("acme-energy")
    assert offer == Offer("acme-energy", "acme-viz", "2.3", "acme_energy")
    assert str(offer) == "acme-viz 2.3 (acme_energy)"
    assert offer in registry().offers
    assert "acme_energy" not in sys.modules


@pytest.mark.usefixtures("acme")
def test_technique_is_loaded_on_demand_and_once() -> None:
    known = registry()
    technique = known["acme-energy"]
    assert isinstance(technique, Technique)
    assert technique.summary == "Return zeros."
    assert known["acme-energy"] is technique
    assert "acme_energy" in sys.modules


@pytest.mark.usefixtures("acme")
def test_loading_one_plugin_imports_no_other(install: Install) -> None:
    install("other-viz", {"other": "other_module"}, other_module=plugin("other"))
    _ = registry()["acme-energy"]
    assert "other_module" not in sys.modules


@pytest.mark.usefixtures("acme")
def test_installed_technique_explains_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "_known", {})
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 2))
    found = cnnviz.explain(net, torch.rand(1, 3, 6, 6), "acme-energy")
    assert not found.values.any()
    assert found.provenance.distribution == "acme-viz"
    assert found.provenance.version == "2.3"


def test_one_module_may_bring_several_techniques(install: Install) -> None:
    install("pair", {"first": "pair_module", "second": "pair_module"}, pair_module=plugin("first", "second"))
    known = registry()
    assert known["second"].name == "second"
    assert known["first"].name == "first"


def test_entry_point_may_name_an_object(install: Install) -> None:
    source = """
        import cnnviz

        class Plugin:
            @cnnviz.hookimpl
            def cnnviz_techniques(self, register):
                register(cnnviz.Technique("object", lambda request, options: request.inputs))

        plugin = Plugin()
    """
    install("with-object", {"object": "object_module:plugin"}, object_module=source)
    assert registry()["object"].name == "object"


def test_plugin_may_use_other_techniques_while_it_is_imported(install: Install) -> None:
    source = "import cnnviz.registry\ncnnviz.registry.Techniques()['saliency']\n" + plugin("nested")
    install("nesting", {"nested": "nesting_module"}, nesting_module=source)
    assert registry()["nested"].name == "nested"


@pytest.mark.usefixtures("acme")
def test_many_threads_get_the_same_technique() -> None:
    known, start = registry(), threading.Barrier(8, timeout=30)

    def get(_: int) -> Technique:
        start.wait()
        return known["acme-energy"]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(get, range(8)))
    assert all(technique is found[0] for technique in found)


def test_a_plugin_may_use_techniques_while_one_thread_imports_it_and_another_asks_for_it(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting: Any = types.ModuleType("meeting")
    meeting.inside, meeting.asked = threading.Event(), threading.Event()
    monkeypatch.setitem(sys.modules, "meeting", meeting)
    begin = """
    import meeting
    meeting.inside.set()
    assert meeting.asked.wait(30)
    base = meeting.known["saliency"]
    """
    install("acme-viz", {"acme": "acme_slow"}, acme_slow=textwrap.dedent(begin) + plugin("acme"))
    meeting.known = registry()
    found: list[Technique] = []
    threads = [
        threading.Thread(target=importlib.import_module, args=("acme_slow",), daemon=True),
        threading.Thread(target=lambda: found.append(meeting.known["acme"]), daemon=True),
    ]
    threads[0].start()
    assert meeting.inside.wait(30)
    threads[1].start()
    time.sleep(0.2)  # until it waits for the import
    meeting.asked.set()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert found == [meeting.known["acme"]]
    assert meeting.known.faults == {}


def test_unknown_name_says_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"no technique 'gradcam'; nearest: 'grad-cam'.*cnnviz list"):
        _ = registry()["gradcam"]


def test_unknown_name_is_a_key_error_too() -> None:
    assert registry().get("nothing") is None
    with pytest.raises(KeyError):
        registry().offer("nothing")


# ---------------------------------------------------------------- faults


def test_import_error_is_reported(install: Install) -> None:
    install("bad", {"bad": "bad_module"}, bad_module="import a_package_that_is_not_there")
    told = faulty("bad")
    assert "bad 1.0 (bad_module)" in told
    assert "a_package_that_is_not_there" in told


def test_missing_module_is_reported(install: Install) -> None:
    install("bad", {"bad": "module_that_is_not_there"})
    assert "module_that_is_not_there" in faulty("bad")


def test_missing_object_is_reported(install: Install) -> None:
    install("bad", {"bad": "bad_module:nothing"}, bad_module="")
    assert "nothing" in faulty("bad")


def test_malformed_entry_point_is_reported(install: Install) -> None:
    install("bad", {"bad": "not a module!"})
    assert "bad 1.0 (not a module!)" in faulty("bad")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("raise SystemExit(3)", "SystemExit(3)"),
        ("import sys; sys.exit('no licence')", "no licence"),
        ("raise RuntimeError('no GPU')", "RuntimeError('no GPU')"),
        ("def (", "SyntaxError"),
        ("raise BaseException('odd')", "odd"),
    ],
    ids=["SystemExit", "sys.exit", "RuntimeError", "SyntaxError", "BaseException"],
)
def test_whatever_an_import_raises_is_reported(install: Install, statement: str, words: str) -> None:
    install("bad", {"bad": "bad_module"}, bad_module=statement)
    assert words in faulty("bad")


@pytest.mark.parametrize("statement", ["raise ValueError('in the hook')", "raise SystemExit('in the hook')"])
def test_whatever_a_hook_raises_is_reported(install: Install, statement: str) -> None:
    source = f"""
        import cnnviz

        @cnnviz.hookimpl
        def cnnviz_techniques(register):
            {statement}
    """
    install("bad", {"bad": "bad_module"}, bad_module=source)
    assert "in the hook" in faulty("bad")


def test_interruption_by_the_user_goes_through(install: Install) -> None:
    install("slow", {"slow": "slow_module"}, slow_module="raise KeyboardInterrupt")
    known = registry()
    with pytest.raises(KeyboardInterrupt):
        _ = known["slow"]
    assert known["saliency"].name == "saliency"
    assert "slow" not in known.faults


def test_what_is_no_technique_is_refused(install: Install) -> None:
    source = """
        import cnnviz

        @cnnviz.hookimpl
        def cnnviz_techniques(register):
            register("bad")
    """
    install("bad", {"bad": "bad_module"}, bad_module=source)
    assert "register() got 'bad', expected a cnnviz.Technique" in faulty("bad")


def test_malformed_technique_is_refused(install: Install) -> None:
    install("bad", {"bad": "bad_module"}, bad_module=plugin("Bad Name"))
    assert "'Bad Name': expected lower-case words joined by hyphens" in faulty("bad")


def test_reserved_option_is_refused(install: Install) -> None:
    source = """
        import cnnviz

        class Options(cnnviz.Options):
            seed: int = cnnviz.Field(0, description="taken")

        @cnnviz.hookimpl
        def cnnviz_techniques(register):
            register(cnnviz.Technique("bad", lambda request, options: request.inputs, Options))
    """
    install("bad", {"bad": "bad_module"}, bad_module=source)
    assert "option 'seed' of 'bad' has a reserved name" in faulty("bad")


def test_technique_of_another_name_is_refused(install: Install) -> None:
    install("bad", {"bad": "bad_module"}, bad_module=plugin("good"))
    told = faulty("bad")
    assert "entry point is named 'bad'" in told
    assert "registers 'good'" in told


def test_hook_that_registers_nothing_is_refused(install: Install) -> None:
    install("bad", {"bad": "bad_module"}, bad_module=plugin())
    assert "registers nothing" in faulty("bad")


def test_module_without_a_hook_is_refused(install: Install) -> None:
    install("bad", {"bad": "bad_module"}, bad_module="answer = 42")
    assert "registers nothing" in faulty("bad")


def test_technique_registered_twice_is_refused(install: Install) -> None:
    install("bad", {"bad": "bad_module"}, bad_module=plugin("bad", "bad"))
    assert "'bad' is registered twice by bad_module" in faulty("bad")


def test_technique_without_an_entry_point_is_refused(install: Install) -> None:
    install("bad", {"bad": "bad_module"}, bad_module=plugin("bad", "hidden"))
    assert "registers 'hidden', which has no entry point of that name" in faulty("bad")


def test_unknown_hook_is_refused(install: Install) -> None:
    typo = plugin("bad") + "\n@cnnviz.hookimpl\ndef cnnviz_typo(register):\n    pass\n"
    install("bad", {"bad": "bad_module"}, bad_module=typo)
    assert "cnnviz_typo" in faulty("bad")


def test_hook_with_unknown_arguments_is_refused(install: Install) -> None:
    source = """
        import cnnviz

        @cnnviz.hookimpl
        def cnnviz_techniques(registry):
            pass
    """
    install("bad", {"bad": "bad_module"}, bad_module=source)
    assert "registry" in faulty("bad")


def test_fault_of_one_technique_leaves_its_neighbours_in_the_module(install: Install) -> None:
    install("mixed", {"good": "mixed_module", "bad": "mixed_module"}, mixed_module=plugin("good"))
    known = registry()
    with pytest.raises(PluginError, match="entry point is named 'bad'"):
        _ = known["bad"]
    assert known["good"].name == "good"


def test_many_faults_leave_everything_else(install: Install) -> None:
    for number, source in enumerate(["raise SystemExit", "1 / 0", "import nothing_there", plugin("other")]):
        install(f"bad{number}", {f"bad{number}": f"bad_module{number}"}, **{f"bad_module{number}": source})
    install("good", {"good": "good_module"}, good_module=plugin("good"))
    known = registry()
    assert known.usable().keys() >= OWN | {"good"}
    assert known.faults.keys() == {"bad0", "bad1", "bad2", "bad3"}


# ---------------------------------------------------------------- the same name twice


@pytest.fixture
def doubled(install: Install) -> None:
    install("one-viz", {"same": "one_module"}, "1.1", one_module=plugin("same"))
    install("two-viz", {"same": "two_module"}, "2.2", two_module=plugin("same"))


@pytest.mark.usefixtures("doubled")
def test_name_offered_twice_names_both_distributions() -> None:
    known = registry()
    with pytest.raises(PluginError) as caught:
        _ = known["same"]
    for words in ("one-viz 1.1 (one_module)", "two-viz 2.2 (two_module)", "uninstall", "CNNVIZ_BLOCK_PLUGINS"):
        assert words in str(caught.value)
    assert known.faults["same"] == str(caught.value)
    assert not {"one_module", "two_module"} & set(sys.modules)
    assert known.usable().keys() >= OWN


@pytest.mark.usefixtures("doubled")
def test_blocking_one_distribution_settles_it() -> None:
    known = registry(block=frozenset({"one-viz"}))
    assert known.offer("same").distribution == "two-viz"
    assert known["same"].function.__module__ == "two_module"
    assert not known.faults


def test_built_in_name_cannot_be_taken_over(install: Install) -> None:
    install("imitation", {"saliency": "imitation_module"}, imitation_module=plugin("saliency"))
    with pytest.raises(PluginError, match=r"'saliency' is offered by .*cnnviz .*imitation|imitation.*cnnviz"):
        _ = registry()["saliency"]
    assert "imitation_module" not in sys.modules


def test_built_in_name_cannot_be_taken_over_in_passing(install: Install) -> None:
    install("imitation", {"fine": "imitation_module"}, imitation_module=plugin("fine", "saliency"))
    known = registry()
    _ = known["fine"]
    assert known["saliency"].function.__module__ == "cnnviz_techniques.attribution.saliency"


# ---------------------------------------------------------------- selection


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    "selection",
    [
        {"disable": True},
        {"allow": frozenset()},
        {"allow": frozenset({"something-else"})},
        {"block": frozenset({"acme-energy"})},
        {"block": frozenset({"acme-viz"})},
        {"allow": frozenset({"acme-viz"}), "block": frozenset({"acme-energy"})},
        {"disable": True, "allow": frozenset({"acme-viz"})},
    ],
    ids=str,
)
def test_plugin_that_is_not_admitted_is_neither_listed_nor_imported(selection: dict[str, object]) -> None:
    known = registry(**selection)
    assert "acme-energy" not in known
    assert set(known) >= OWN
    assert [offer.name for offer in known.left_out] == ["acme-energy"]
    with pytest.raises(PluginError, match=r"'acme-energy' of acme-viz 2.3.*switched off by CNNVIZ_DISABLE_PLUGINS"):
        _ = known["acme-energy"]
    assert "acme_energy" not in sys.modules


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("name", ["acme-viz", "acme-energy"])
def test_allow_list_takes_distributions_and_techniques(name: str) -> None:
    assert registry(allow=frozenset({name}))["acme-energy"].name == "acme-energy"


def test_own_techniques_can_be_blocked() -> None:
    known = registry(block=frozenset({"saliency"}))
    assert "saliency" not in known
    assert "grad-cam" in known


def test_blocked_technique_of_a_module_leaves_the_others(install: Install) -> None:
    install("pair", {"first": "pair_module", "second": "pair_module"}, pair_module=plugin("first", "second"))
    known = registry(block=frozenset({"second"}))
    assert known["first"].name == "first"
    assert "second" not in known


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("variable", "value", "listed"),
    [
        ("CNNVIZ_DISABLE_PLUGINS", "1", False),
        ("CNNVIZ_DISABLE_PLUGINS", "0", True),
        ("CNNVIZ_DISABLE_PLUGINS", "", True),
        ("CNNVIZ_ALLOW_PLUGINS", "acme-viz, other", True),
        ("CNNVIZ_ALLOW_PLUGINS", "other", False),
        ("CNNVIZ_ALLOW_PLUGINS", "", False),
        ("CNNVIZ_BLOCK_PLUGINS", "other,acme-energy", False),
        ("CNNVIZ_BLOCK_PLUGINS", " acme-viz ", False),
        ("CNNVIZ_BLOCK_PLUGINS", "other", True),
    ],
)
def test_environment_selects(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, listed: bool) -> None:
    monkeypatch.setenv(variable, value)
    known = Techniques()
    assert ("acme-energy" in known) == listed
    assert set(known) >= OWN


@pytest.mark.parametrize("name", ["Acme_Viz", "acme.viz", "ACME-VIZ"])
def test_distributions_are_named_in_any_of_their_spellings(install: Install, name: str) -> None:
    install("Acme-viz", {"acme-energy": "acme_energy"}, acme_energy=plugin("acme-energy"))
    assert "acme-energy" not in registry(block=frozenset({name}))


def test_select_decides_for_everything_that_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "_chosen", None)
    monkeypatch.setattr(registries, "_known", {})
    assert "saliency" in techniques()
    select(Selection(block=frozenset({"saliency"})))
    assert "saliency" not in techniques()
    with pytest.raises(PluginError, match="switched off"):
        cnnviz.explain(nn.Flatten(), torch.zeros(1, 3, 2, 2), "saliency")


def test_what_an_interrupted_installation_left_takes_nothing_else_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "left_over-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[cnnviz]\nleft-over = nowhere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    known = registry()
    assert known["saliency"].name == "saliency"
    assert "left-over" not in known.usable()
    assert "nowhere_at_all" in known.faults["left-over"]
    (offer,) = (offer for offer in known.offers if offer.name == "left-over")
    assert (offer.distribution, offer.version) == ("?", "?")
