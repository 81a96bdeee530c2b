"""One call of an explainer: batches, layers, and putting the parts together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import CheckpointError

from .. import targets
from ..errors import InputError, LayerError, ModelError, OptionError, PluginError, TargetError
from ..explanation import Explanation, Gallery, Heatmap
from ..memory import Batches, batch_size
from ..models import Lender, Model, Survey, addressable, know_calls, own_randomness, telling
from ..options import Options
from ..request import Progress, Request, Shared, unwatched
from ..technique import Technique

_STEPS = 1000
"""Progress is counted in thousandths of a sample, whatever a technique's own steps are."""


class Call:
    """Everything that belongs to one call, so that the explainer itself keeps no state between threads."""

    def __init__(
        self,
        technique: Technique,
        options: Options,
        *,
        model: Model | None,
        lender: Lender | None,
        samples: Tensor | None,
        pictures: Tensor | None,
        target: targets.Resolved,
        layers: Sequence[str],
        seed: int,
        memory: int,
        progress: Progress | None,
    ) -> None:
        self.technique = technique
        self.options = options
        self.model = model
        self.lender = lender
        self.samples = samples
        self.pictures = pictures
        self.target = target
        self.seed = seed
        self.memory = memory
        self.progress = progress
        self.batches = Batches()
        self.target_words: str | None = None
        self.reached = 0
        self.layers = self._full_names(layers)

    @cached_property
    def survey(self) -> Survey:
        """What the forward pass of one sample does, or of an input of the model's own size.

        Raises:
            InputError: the model cannot run on it.
        """
        assert self.model is not None  # a technique that takes none runs no model
        return self.surveyed(self.model.example() if self.samples is None else self.samples)

    def surveyed(self, example: Tensor) -> Survey:
        """Return what the forward pass of such an input, (1, C, H, W), does.

        Raises:
            InputError: the model cannot run on it.
        """
        assert self.lender is not None
        assert self.model is not None  # there is a lender for it
        with telling(self.model.name, example[:1]):
            return self.lender.survey(example)

    def run(self, replica: nn.Module | None) -> Explanation:
        """Return the technique's result for all samples and layers, without provenance."""
        with self.prepared(replica):
            if self.technique.inputs != "each" or self.samples is None:
                return self._part(replica, 0, 1 if self.samples is None else len(self.samples))
            size = 1
            if len(self.samples) > 1 and self.lender is not None:
                size = batch_size(self.survey, self.memory, self.samples.device, backward=True)
            parts = self.batches.run(len(self.samples), size, partial(self._part, replica))
        return _merged(parts, self.technique.name)

    def prepared(self, replica: nn.Module | None) -> AbstractContextManager[None]:
        """Let a model that draws random numbers draw them from the seed, and leave the global generator as it was."""
        if self.samples is None or replica is None:
            return nullcontext()
        know_calls(replica, self.survey.counts if self.survey.fixed else {})
        return own_randomness(self.samples.device, self.seed) if self.survey.draws else nullcontext()

    def request(
        self,
        replica: nn.Module | None,
        start: int,
        stop: int,
        *,
        layer: str | None = None,
        progress: Progress | None = None,
        shared: Shared | None = None,
        column: int = 0,
    ) -> Request:
        """Return a request for samples start to stop - 1 and one of their targets."""
        target = self.target
        if self.samples is not None:
            target = targets.part(target, start, stop)
        return Request(
            model=replica,
            inputs=None if self.samples is None else self.samples[start:stop],
            pictures=None if self.pictures is None else self.pictures[start:stop],
            target=target,
            layer=layer,
            seed=self.seed,
            memory=self.memory,
            progress=progress or self._step(start, stop, 0, 1),
            described=self.model,
            survey=lambda example: self.survey if example is None else self.surveyed(example),
            batches=self.batches,
            shared=shared,
            column=column,
            first=start,
            everything=self.samples,
        )

    def _full_names(self, names: Sequence[str]) -> tuple[str, ...]:
        if self.technique.layers == "none":
            return ()
        if self.technique.layers == "all" and not names:
            return ()
        if self.technique.default_layer == "first-convolution" and not names:
            return (self._first_convolution(),)
        if callable(self.technique.default_layer) and not names:
            named = self.technique.default_layer(self.options)
            names = () if named is None else (named,)
        if self.samples is None and self.technique.inputs == "none":
            return tuple(names)
        known = self.survey
        if names:
            full = tuple(known.resolve(name) for name in names)
            twice = [name for name in full if full.count(name) > 1]
            if twice:
                raise LayerError(f"layer '{twice[0]}' is named more than once; name each once")
            return full
        if known.cam_layer is None:
            raise LayerError(
                f"technique '{self.technique.name}': no layer of this model returns a map (N, C, h, w) larger than "
                "1 x 1; name one with layer=… (cnnviz layers lists them)"
            )
        return (known.cam_layer,)

    def _first_convolution(self) -> str:
        assert self.lender is not None
        for name, module in addressable(self.lender.module):
            if isinstance(module, nn.Conv2d):
                return name
        raise LayerError(f"technique '{self.technique.name}': this model has no nn.Conv2d; name a layer with layer=…")

    def _part(self, replica: nn.Module | None, start: int, stop: int) -> Explanation:
        """Run the technique on samples start to stop, for each target and layer, and put the results together."""
        shared = Shared(self.layers)
        columns = [self._column(replica, start, stop, shared, column) for column in range(self.columns)]
        self._step(start, stop, 1, 1)(1, 1)
        if len(columns) == 1:
            return columns[0]
        heatmaps = [made for made in columns if isinstance(made, Heatmap)]
        if len(heatmaps) < len(columns) or heatmaps[0].scores is None:
            raise TargetError(
                f"technique '{self.technique.name}' takes one target for each sample, got {self.columns}; "
                "explain them one after the other"
            )
        return _interleaved(heatmaps)

    def _column(self, replica: nn.Module | None, start: int, stop: int, shared: Shared, column: int) -> Explanation:
        """Run the technique for one target of each sample, for each layer, and fuse."""
        results: list[Explanation] = []
        requests: list[Request] = []
        layers = (None,) if self.technique.layers == "all" else self.layers or (None,)
        for number, layer in enumerate(layers):
            request = self.request(
                replica,
                start,
                stop,
                layer=layer,
                progress=self._step(start, stop, column * len(layers) + number, self.columns * len(layers)),
                shared=shared,
                column=column,
            )
            results.append(self._result(request))
            requests.append(request)
        if any(request.scored for request in requests):
            self.target_words = targets.words(self.target, self.model.labels if self.model else None)
        result = self._fused(results)
        return self._scored(result, requests[0]) if isinstance(result, Heatmap) else result

    @property
    def columns(self) -> int:
        """How many targets each sample has."""
        return targets.columns(self.target)

    def _step(self, start: int, stop: int, number: int, count: int) -> Progress:
        """Return a progress function for the number-th of a part's rounds, which counts in parts of the whole."""
        if self.progress is None:
            return unwatched
        whole = self.progress
        rows = 1 if self.samples is None else len(self.samples)

        def step(done: int, total: int) -> None:
            share = (number * _STEPS + done * _STEPS // max(total, 1)) // count
            reached = start * _STEPS + (stop - start) * min(share, _STEPS)
            self.reached = max(self.reached, reached)  # a batch that was halved begins again
            whole(self.reached, rows * _STEPS)

        return step

    def _result(self, request: Request) -> Explanation:
        try:
            made = self.technique.function(request, self.options)
        except SystemExit as error:
            raise PluginError(f"technique '{self.technique.name}' called sys.exit({error.code!r})") from error
        except RuntimeError as error:
            if not isinstance(error, CheckpointError) and "use_reentrant" not in str(error):
                raise
            raise ModelError(
                f"technique '{self.technique.name}' cannot follow a network that computes activations again while "
                "gradients are taken (gradient checkpointing); switch that off, as with memory_efficient=False or "
                "set_grad_checkpointing(False)"
            ) from error
        if not isinstance(made, (Tensor, Explanation)):
            raise PluginError(
                f"technique '{self.technique.name}' returned {targets.describe(made)}, expected a tensor or an "
                "explanation"
            )
        result = Heatmap(values=made) if isinstance(made, Tensor) else made
        # A graph would keep the whole forward pass alive.
        plain: dict[str, Any] = {name: tensor.detach() for name, tensor in result.tensors().items()}
        result = replace(result, **plain)
        rows = None if self.samples is None or self.technique.inputs != "each" else len(request.inputs)
        if wrong_shape := _misshapen(result, rows):
            raise PluginError(f"technique '{self.technique.name}' returned {wrong_shape}")
        wrong = sum(_wrong(tensor) for tensor in result.tensors().values())
        if wrong:
            raise InputError(
                f"technique '{self.technique.name}': {wrong} values of the result are not finite; look for NaN or huge "
                "values in inputs and weights, or use a wider floating type"
            )
        return result

    def _fused(self, results: list[Explanation]) -> Explanation:
        """Resize maps to the inputs where asked for, and fuse those of several layers by their mean; join pictures."""
        mode = getattr(self.options, "upsample", None)
        galleries = [result for result in results if isinstance(result, Gallery)]
        if len(galleries) == len(results) > 1:
            return _side_by_side(galleries)
        if self.samples is None or not all(isinstance(result, Heatmap) for result in results):
            if len(results) > 1:
                raise PluginError(
                    f"technique '{self.technique.name}' takes many layers, but returns neither heatmaps nor galleries"
                )
            return results[0]
        size = tuple(self.samples.shape[2:])
        maps = [result.values for result in results if isinstance(result, Heatmap)]
        if "upsample" not in type(self.options).model_fields:
            mode = "bilinear" if len(maps) > 1 else None
        if mode is not None:
            maps = [_resized(values, size, mode) for values in maps]
        if len({values.shape for values in maps}) > 1:
            raise OptionError(
                f"technique '{self.technique.name}': upsample=None leaves the layers' maps at different sizes "
                f"({', '.join(str(tuple(values.shape[1:])) for values in maps)}); give upsample='bilinear', or one "
                "layer"
            )
        values = maps[0] if len(maps) == 1 else torch.stack(maps).mean(0)
        assert isinstance(results[0], Heatmap)
        return replace(results[0], values=values)

    def _scored(self, heatmap: Heatmap, request: Request) -> Heatmap:
        """Add what was scored; a technique that ran no score, such as `activations`, explains no target."""
        scores = request.base_scores() if request.scored else None
        told = self.technique.name + (f" at {', '.join(self.layers)}" if self.layers else "")
        if scores is None:
            captions = (told,) * len(heatmap.values)
            return replace(heatmap, captions=heatmap.captions or captions)
        classes = request.classes()
        what = [str(self.target_words)] * len(scores) if classes is None else [self._label(int(i)) for i in classes]
        captions = tuple(
            f"{told}: {word}, score {score:.4g}" for word, score in zip(what, scores.tolist(), strict=True)
        )
        return replace(heatmap, scores=scores, target=classes, captions=heatmap.captions or captions)

    def _label(self, index: int) -> str:
        return f"class {index}" if self.model is None else self.model.label(index)


def _wrong(values: Tensor) -> int:
    """Return how many values are not finite."""
    if bool(values.sum().isfinite()):  # one pass, where looking at each takes three
        return 0
    return int((~torch.isfinite(values)).sum())


def _interleaved(columns: list[Heatmap]) -> Heatmap:
    """Put the results for each sample's targets side by side: row i * K + j is target j of sample i."""
    values = _woven(columns, "values")
    assert values is not None
    return Heatmap(
        values=values,
        scores=_woven(columns, "scores"),
        target=_woven(columns, "target"),
        errors=_woven(columns, "errors"),
        draws=_woven(columns, "draws"),
        captions=_woven_captions(columns),
    )


def _side_by_side(galleries: list[Gallery]) -> Gallery:
    """Put the pictures of each sample beside each other: row i * K + j is what gallery j shows of sample i."""
    images = _woven(galleries, "images")
    if images is None:
        raise PluginError("galleries of several layers have pictures of different sizes or numbers")
    return Gallery(
        images=images,
        rows=_woven(galleries, "rows"),
        values=_woven(galleries, "values"),
        history=_woven(galleries, "history"),
        captions=_woven_captions(galleries),
        frame_rate=galleries[0].frame_rate,
    )


def _woven(results: Sequence[Explanation], name: str) -> Tensor | None:
    """Return the results' tensors of a name, a row of each in turn; None unless all have one, of one shape."""
    found = [tensor for result in results if (tensor := getattr(result, name)) is not None]
    even = len({tensor.shape for tensor in found}) == 1 and len(found) == len(results)
    return torch.stack(found, 1).flatten(0, 1) if even else None


def _woven_captions(results: Sequence[Explanation]) -> tuple[str, ...]:
    rows = zip(*(result.captions for result in results), strict=True)
    return tuple(caption for row in rows for caption in row)


def _resized(values: Tensor, size: tuple[int, ...], mode: str) -> Tensor:
    align = None if mode == "nearest" else False
    return functional.interpolate(values, size, mode=mode, align_corners=align)


def _merged(parts: list[Explanation], technique: str) -> Explanation:
    """Join the results of consecutive batches."""
    if len(parts) == 1:
        return parts[0]
    captions = tuple(caption for part in parts for caption in part.captions)
    heatmaps = [part for part in parts if isinstance(part, Heatmap)]
    if len(heatmaps) == len(parts):
        return Heatmap(
            values=torch.cat([part.values for part in heatmaps]),
            scores=_joined(part.scores for part in heatmaps),
            target=_joined(part.target for part in heatmaps),
            errors=_joined(part.errors for part in heatmaps),
            draws=_joined(part.draws for part in heatmaps),
            captions=captions,
        )
    galleries = [part for part in parts if isinstance(part, Gallery)]
    if len(galleries) == len(parts):
        return Gallery(
            images=torch.cat([part.images for part in galleries]),
            rows=_joined(part.rows for part in galleries),
            values=_joined(part.values for part in galleries),
            history=_joined(part.history for part in galleries),
            captions=captions,
            frame_rate=galleries[0].frame_rate,
        )
    raise PluginError(
        f"technique '{technique}' is declared inputs='each' but returns {type(parts[0]).__name__}, which cannot be put "
        "together from batches; declare it inputs='all'"
    )


def _joined(tensors: Iterator[Tensor | None]) -> Tensor | None:
    kept = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(kept) if kept else None


def _misshapen(result: Explanation, rows: int | None) -> str | None:
    """Return what is wrong with shape or dtype of a result, which has so many rows if it has one for each sample."""
    match result:
        case Heatmap(values=values):
            fits = values.dim() == 4 and 0 not in values.shape[1:] and rows in (None, len(values))
            told = "(N, C, h, w), a row for each sample"
        case Gallery(images=values):
            fits, told = values.dim() == 4 and values.shape[1] == 3, "pictures (M, 3, h, w)"
        case _:
            return None
    if not fits:
        return f"{targets.describe(values)}, expected {told}"
    return None if values.is_floating_point() else f"values of type {values.dtype}, expected floating point"
