"""From a model, inputs and a technique's name to an explanation."""

from __future__ import annotations

import copy
import inspect
import json
import platform
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import targets
from ..errors import InputError, LayerError, ModelError, PluginError, TargetError
from ..explanation import Explanation, Gallery, Projection, Provenance
from ..memory import parse_memory
from ..models import Lender, Model, differs_in_training, fingerprint, without_wrappers
from ..options import check_seed, make_options
from ..registry import Offer, techniques
from ..request import Progress, Request
from ..technique import Technique
from ..version import __version__
from .attempt import attempt
from .call import Call
from .inputs import Inputs, prepare

__all__ = ["Explainer", "Inputs", "attempt", "explain", "prepare"]


def explain(
    model: nn.Module | Model | None,
    inputs: Inputs,
    technique: str | Technique,
    *,
    target: targets.Target = None,
    layer: str | Sequence[str] | None = None,
    seed: int = 0,
    memory: int | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Explanation:
    """Explain what a network makes of its inputs. The model is borrowed, and left exactly as it was.

    Args:
        model: any nn.Module or a `Model`, explained in eval mode; None where the technique needs none.
        inputs: float tensor (N, C, H, W) as the module takes it; with a `Model` also a path, a PIL image, or a list of
            them; None where the technique takes none.
        technique: a name from `techniques()`, or a `Technique` of your own.
        target: class index, label, one of these (or K of them) for each input, `top(k)`, `channel(…)`, `neuron(…)`, or
            a callable from the model's output to (rows,) scores that treats rows independently; None is each sample's
            top class. With K targets each the result has a row for each: row ``i * K + j`` is target j of input i.
        layer: dotted module name (``name#k``: k-th call of a reused module), or several where the technique takes them.
        seed: of the random numbers; the same seed gives the same bits on the same device.
        memory: budget for batches, in bytes or as "2GiB"; 1 GiB by default.
        progress: called with steps done and their total; may raise to cancel.
        **options: the technique's own; ``cnnviz explain TECHNIQUE --help`` lists them.

    Returns:
        A `Heatmap`, `Gallery`, `Projection` or `Neighbours`.

    Raises:
        CnnvizError: one of its subclasses; says what was got, what is expected and what to do next.

    Warns:
        UserWarning: the model is in training mode, and would compute something else there than what is explained.

    Example:
        >>> nn = torch.nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        >>> cnnviz.explain(net, torch.rand(2, 3, 8, 8), "saliency", target=1).values.shape
        torch.Size([2, 1, 8, 8])
    """
    explainer = Explainer(model, technique, layer=layer, memory=memory, **options)
    return explainer(inputs, target, seed=seed, progress=progress)


class Explainer:
    """A technique prepared for one model: call it many times, from any thread.

    Takes `explain`'s arguments; options, layer names and the model are checked here. When the model's weights or
    modules change, the next call notices.

    Attributes:
        technique: the technique.
        options: its validated options.
        model: the model with what is known about it, or None.
        memory: budget in bytes.
    """

    def __init__(
        self,
        model: nn.Module | Model | None,
        technique: str | Technique,
        *,
        layer: str | Sequence[str] | None = None,
        memory: int | str | None = None,
        **options: Any,
    ) -> None:
        self._offer: Offer | None = None
        if isinstance(technique, Technique):
            self.technique = technique
        elif not isinstance(technique, str):
            raise PluginError(f"technique: got {targets.describe(technique)}, expected a name or a cnnviz.Technique")
        else:
            self.technique = techniques()[technique]
            self._offer = techniques().offer(technique)
        self.options = make_options(self.technique.name, self.technique.options, options)
        self.memory = parse_memory(memory)
        self.model = _described(model)
        self._lender = Lender(self.model.module) if self.model is not None else None
        if self._lender is not None and (kind := differs_in_training(self._lender.module)):
            warnings.warn(
                f"the model is in training mode, where its {kind} does something else; it is explained in eval mode, "
                "as after model.eval(), and left in training mode",
                stacklevel=_levels_to_caller(),
            )
        self._layers = self._named(layer)

    def __call__(
        self,
        inputs: Inputs = None,
        target: targets.Target = None,
        *,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Explanation:
        """Explain `inputs`; see `explain` for arguments and errors."""
        started = time.perf_counter()
        with self._called(inputs, target, seed, progress) as (call, replica):
            result = call.run(replica)
        provenance = self._provenance(call, time.perf_counter() - started)
        pictures = call.pictures
        if isinstance(result, Gallery) and call.samples is not None and self.technique.inputs == "each":
            sources = torch.arange(len(call.samples), device="cpu").repeat_interleave(
                len(result.images) // len(call.samples)
            )
            result = replace(result, sources=sources)
        if pictures is not None and call.columns > 1:
            pictures = pictures.repeat_interleave(call.columns, 0)
        if isinstance(result, Projection) and pictures is not None and len(pictures) != len(result.points):
            pictures = None  # most points are of an index, and are shown as dots
        return replace(result, provenance=provenance, pictures=pictures if result.pictures is None else result.pictures)

    @contextmanager
    def request(
        self,
        inputs: Inputs,
        target: targets.Target = None,
        *,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[Request]:
        """Lend the request that the technique would get for all inputs at once, for measurements beside an explanation.

        See `explain` for arguments and errors; there is one target for each input.
        """
        with self._called(inputs, target, seed, progress) as (call, replica), call.prepared(replica):
            if call.columns > 1:
                raise TargetError(f"target: got {call.columns} for each input, expected one; ask for them one by one")
            yield call.request(replica, 0, 1 if call.samples is None else len(call.samples))

    def on(self, module: nn.Module) -> Explainer:
        """Return an explainer with the same technique, options and layers for another network of the same kind."""
        if self.model is None:
            raise ModelError(f"technique '{self.technique.name}' was prepared for no model")
        twin = copy.copy(self)
        twin.model = replace(self.model, module=module)
        twin._lender = Lender(module)
        return twin

    @contextmanager
    def _called(
        self, inputs: Inputs, target: targets.Target, seed: int, progress: Progress | None
    ) -> Iterator[tuple[Call, nn.Module | None]]:
        """Check what was given; lend the call and a replica of the model."""
        samples: Tensor | None = None
        pictures: Tensor | None = None
        if not self._takes_none(inputs):
            samples, pictures = prepare(inputs, self.model, whole=self.technique.whole)
        with torch.inference_mode(False), torch.enable_grad():
            if self._lender is not None:
                self._lender.refresh()
            call = Call(
                self.technique,
                self.options,
                model=self.model,
                lender=self._lender,
                samples=samples,
                pictures=pictures,
                target=targets.resolve(
                    target, None if samples is None else len(samples), self.model.labels if self.model else None
                ),
                layers=self._layers,
                seed=check_seed(seed),
                memory=self.memory,
                progress=progress,
            )
            with self._lender.borrow() if self._lender else nullcontext() as replica:
                yield call, replica

    def _takes_none(self, inputs: Any) -> bool:
        name, takes_none = self.technique.name, self.technique.inputs == "none"
        if self.technique.inputs == "any":
            return inputs is None
        if takes_none and inputs is not None:
            raise InputError(f"technique '{name}' takes no inputs, got {targets.describe(inputs)}; give None")
        if inputs is None and not takes_none:
            raise InputError(f"technique '{name}' needs inputs; give a tensor (N, C, H, W), or pictures for a Model")
        return takes_none

    def _named(self, layer: str | Sequence[str] | None) -> tuple[str, ...]:
        """Return the layers' names in a replica, after checking that they exist and how many the technique takes."""
        names: tuple[Any, ...] = () if layer is None else tuple(layer) if isinstance(layer, (list, tuple)) else (layer,)
        takes, technique = self.technique.layers, f"technique '{self.technique.name}'"
        if self._lender is None and (names or takes in ("one", "many")):
            raise ModelError(f"{technique} looks into a model; give one as the first argument")
        if len(names) > {"none": 0, "one": 1}.get(takes, len(names)):
            raise LayerError(
                f"{technique} takes {'no' if takes == 'none' else takes} layer, got {', '.join(map(repr, names))}"
            )
        for name in names:
            if not isinstance(name, str):
                raise LayerError(f"layer: got {name!r}, expected a dotted module name (cnnviz layers lists them)")
        if self._lender is None:
            return ()
        module = self._lender.module
        return tuple(without_wrappers(module, name) for name in names)

    def _provenance(self, call: Call, seconds: float) -> Provenance:
        samples, model = call.samples, self.model
        ran_on = model if samples is None else samples
        return Provenance(
            technique=self.technique.name,
            distribution=self._offer.distribution if self._offer else None,
            version=self._offer.version if self._offer else None,
            options=json.loads(self.options.model_dump_json()),
            target=call.target_words,
            layer=call.layers[0] if len(call.layers) == 1 else list(call.layers) or None,
            model=model.name if model else None,
            model_fingerprint=self._lender.fingerprint() if self._lender else None,
            input_fingerprint=None if samples is None else fingerprint(samples),
            seed=call.seed,
            memory=self.memory,
            batch_sizes=sorted(call.batches.sizes, reverse=True),
            out_of_memory=call.batches.halvings,
            hooks_left_out=self._lender.hooks() if self._lender else 0,
            device=None if ran_on is None else str(ran_on.device),
            dtype=None if ran_on is None else str(ran_on.dtype),
            versions={"cnnviz": __version__, "torch": torch.__version__, "python": platform.python_version()},
            seconds=seconds,
        )


def _levels_to_caller() -> int:
    """Return the stack level of the first function outside of cnnviz, for a warning that names its line."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "cnnviz":
        level, frame = level + 1, frame.f_back
    return level - 1


def _described(model: Any) -> Model | None:
    if model is None or isinstance(model, Model):
        return model
    if isinstance(model, nn.Module):
        return Model(model)
    hint = "; load it with cnnviz.load_model(name)" if isinstance(model, str) else ""
    raise ModelError(f"model: got {targets.describe(model)}, expected an nn.Module or a cnnviz.Model{hint}")
