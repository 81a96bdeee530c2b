"""What a technique is given to work with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Literal, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from .errors import InputError, LayerError, ModelError, OptionError, TargetError
from .memory import Batches, batch_size, need
from .models import (
    Chains,
    Folding,
    Layer,
    Model,
    Pools,
    Preprocess,
    Survey,
    Unfoldable,
    capture,
    fingerprint,
    growths_in,
    know_calls,
    named_tensors,
    own_randomness,
    relu_rule,
    replicate,
)
from .models.receptive_field import tensors_in
from .models.relu_rules import Rule, check_followed
from .options import ImageOption
from .render import resize
from .targets import (
    Resolved,
    Selector,
    Several,
    Top,
    called,
    class_output,
    class_scores,
    describe,
    part,
    stable,
    words,
)

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the steps done and their total; may raise to cancel."""


def unwatched(done: int, total: int) -> None:
    """Progress that nobody watches."""


Made = TypeVar("Made")

_LAYOUT, _OWN = "either layout", "by kernels of our own"
_PARTS = 10_000  # of progress through sweeps


def within(progress: Progress, share: tuple[float, float]) -> Progress:
    """Return the progress of a part of the work, which goes from ``share[0]`` to ``share[1]`` of the whole."""
    start, stop = share

    def step(done: int, total: int) -> None:
        progress(round(_PARTS * (start + (stop - start) * done / max(total, 1))), _PARTS)

    return step


class Shared:
    """What the requests of one batch have in common; they differ in layer and in the target's column alone.

    Attributes:
        layers: every layer that is asked for.
        classes: (N, K), K explained classes of each sample, once they are known.
        base: (N, K), scores of the unmodified samples, once they are known.
    """

    def __init__(self, layers: Sequence[str] = ()) -> None:
        self.layers = tuple(layers)
        self.classes: Tensor | None = None
        self.base: Tensor | None = None
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], Made]) -> Made:
        """Return what `compute` made when it was first asked for under this key."""
        if key not in self._made:
            self._made[key] = compute()
        made: Made = self._made[key]
        return made


class Request:
    """One call of a technique: the model, the samples, what to explain, and the means to run the model.

    Attributes:
        model: a private replica of the network, in eval mode; None for techniques that were given none.
        inputs: (N, C, H, W) on the model's device; None where the technique takes none.
        pictures: what the inputs show.
        target: class indices (N,), a selector, a callable, or None for top classes.
        layer: full name of the layer, or None.
        generator: seeded random numbers, on the CPU. Draw them without the batch dimension, so that every sample sees
            the same ones, whatever batch it is in.
        memory: budget in bytes.
        progress: call it with steps done and their total; it may raise to cancel.
        scored: whether a score was asked for, so that the result explains a target.
        first: the number of the first sample in the call, whose samples may come in several batches.
    """

    def __init__(
        self,
        *,
        model: nn.Module | None,
        inputs: Tensor | None,
        pictures: Tensor | None = None,
        target: Resolved,
        layer: str | None,
        seed: int,
        memory: int,
        progress: Progress,
        described: Model | None = None,
        survey: Callable[[Tensor | None], Survey] | None = None,
        batches: Batches | None = None,
        shared: Shared | None = None,
        column: int = 0,
        first: int = 0,
        everything: Tensor | None = None,
    ) -> None:
        self.first = first
        self._everything = inputs if everything is None else everything
        self._model = model
        self._inputs = inputs
        self._pictures = pictures
        self._target = target
        self.layer = layer
        self.generator = torch.Generator().manual_seed(seed)
        self.memory = memory
        self.progress = progress
        self._described = described
        self._surveyed = survey
        self._batches = batches or Batches()
        self._shared = shared or Shared()
        self._column = column
        self._gradients = self._sweeps = 0
        self.scored = False

    @property
    def model(self) -> nn.Module:
        """The replica.

        Raises:
            ModelError: no model was given.
        """
        if self._model is None:
            raise ModelError("this technique needs a model; give one as the first argument")
        return self._model

    @property
    def inputs(self) -> Tensor:
        """The samples, (N, C, H, W).

        Raises:
            InputError: there are none.
        """
        if self._inputs is None:
            raise InputError("this technique was declared to take no inputs")
        return self._inputs

    @property
    def pictures(self) -> Tensor:
        """What the samples show, (N, 3, H, W) in [0, 1], on the CPU.

        Raises:
            InputError: there are no samples.
        """
        if self._pictures is None:
            raise InputError("this technique was declared to take no inputs")
        return self._pictures

    @property
    def given(self) -> bool:
        """Whether there are samples; a technique may be declared to do without."""
        return self._inputs is not None

    @property
    def described(self) -> Model:
        """The caller's model, with its preprocessing and labels where they are known; `model` is what to run.

        Raises:
            ModelError: no model was given.
        """
        return self._described or Model(self.model)

    @property
    def layers(self) -> tuple[str, ...]:
        """Full names of all layers of the call."""
        return self._shared.layers

    @property
    def normalisation(self) -> Preprocess:
        """From pictures in [0, 1], (N, 3, H, W), to what the model takes, and back."""
        if self._model is None:
            return Preprocess()
        return self.described.normalisation

    @property
    def example(self) -> Tensor:
        """A blank input of the model's own size, (1, C, H, W)."""
        return self.described.example()

    @property
    def count(self) -> int:
        """How many samples there are; without samples, how many targets were named."""
        if self._inputs is not None:
            return len(self._inputs)
        match self._target:
            case Tensor():
                return len(self._target)
            case Several():
                return len(self._target.parts)
            case _:
                return 1

    @property
    def target(self) -> Resolved:
        """What is explained: class indices (N,), a selector, a callable, or None for top classes."""
        match self._target:
            case Tensor():
                return self._target[:, self._column]
            case Top():
                return None
            case _:
                return self._target

    @property
    def aimed(self) -> bool:
        """Whether a target was named, be it `cnnviz.top`; without one it is each sample's top class."""
        return self._target is not None

    def score(
        self,
        inputs: Tensor | None = None,
        rows: Sequence[int] | Tensor | None = None,
        *,
        probability: bool = False,
    ) -> Tensor:
        """Run the model and return the explained score of each row; gradients flow where they are asked for.

        Args:
            inputs: (rows, C, H, W); None for the samples themselves.
            rows: for each input the sample whose target it takes; None where input i belongs to sample i.
            probability: score classes by the softmax of the output; other targets stay as they are.

        Returns:
            (rows,) scores: raw, no softmax, unless probabilities were asked for.

        Raises:
            TargetError: the target does not fit the output.
            InputError: a sample's score is not finite, or rows are missing.
        """
        return self._all_scores(inputs, rows, probability=probability)[:, self._column]

    def output(self) -> Any:
        """Run the model on the samples and return what it returns.

        Raises:
            TargetError: the target does not fit the output.
            InputError: a sample's score is not finite.
        """
        self.scored = True
        output = self.forward(self.inputs.clone())
        self._reduced(output, torch.arange(len(self.inputs), device="cpu"), unmodified=True)
        return output

    @property
    def ends(self) -> str | None:
        """The layer in which the target lies, behind which nothing is run; None where it looks at the output."""
        return self._target.layer if isinstance(self._target, (Selector, Several)) else None

    def forward(self, x: Tensor) -> Any:
        """Run the model on inputs as far as the target asks, and return its output, or what the target's layer returns.

        Of inputs on the meta device shapes come out: a replica without data runs on them.
        """
        model = self.model
        if x.is_meta:
            known, model = self._survey(), replicate(model, device="meta")
            know_calls(model, known.counts if known.fixed else {})
        with self._in_less_time(x):
            if self.ends is None:
                return _plain(model(x), x)
            with capture(model, self.ends, stop=True) as seen:
                model(x)
            return _plain(seen.output, x)

    def gradient(
        self,
        make: Callable[[int], Tensor] | None = None,
        weights: Sequence[float] = (1.0,),
        *,
        rule: Rule | None = None,
    ) -> Tensor:
        """Return the gradient of each sample's score at its input, or a weighted sum of gradients at made inputs.

        One forward pass for each made input serves all targets of the call.

        Args:
            make: ``make(i)`` returns the i-th inputs, (N, C, H, W), which must not depend on the target; None for the
                samples themselves.
            weights: weight of each made input's gradient.
            rule: how the model's rectifiers pass gradients, see `relu_rule`; those of a target callable pass them as
                ever. None for the plain gradient.

        Returns:
            (N, C, H, W).

        Raises:
            TargetError: the score does not depend on the input.
            ModelError: a rule was asked for, and nothing rectifies, or something that the rule cannot follow.
        """
        self.scored = True
        self._gradients += 1

        def all_targets() -> list[Tensor]:
            total: list[Tensor] = []
            for i, weight in enumerate(weights):
                x = (self.inputs if make is None else make(i)).detach().requires_grad_()
                found = _connected(_slopes(self._all_scores(x, None, rule=rule), [x]))
                if len(weights) > 1:  # what is added up in half precision stops growing
                    found = [slope.to(torch.promote_types(slope.dtype, torch.float32)) for slope in found]
                found = [slope * weight if weight != 1 else slope for slope in found]
                total = [a.add_(b) for a, b in zip(total, found, strict=True)] if total else found
                self.progress(i + 1, len(weights))
            return [slope.to(self.inputs.dtype) for slope in total]

        return self._shared.once(("gradient", self._gradients), all_targets)[self._column]

    def layer_gradient(self) -> tuple[Tensor, Tensor]:
        """Return the layer's maps and the gradient of each sample's score there.

        One forward pass serves all layers and targets of the call, and each target's backward pass goes from the score
        to the first of the layers.

        Returns:
            Two tensors (N, C, h, w).

        Raises:
            LayerError: the layer returns no maps, or not one for each sample, or the target does not depend on it.
        """
        layers = self._shared.layers or (str(self.layer),)

        def all_layers() -> tuple[dict[str, Any], list[tuple[Tensor, ...]]]:
            with capture(self.model, layers, grad=True) as seen:  # the graph starts at the first of them
                scores = self._all_scores(None, None)
            for layer, maps in seen.values.items():
                self._check_maps(layer, maps)
            return seen.values, _slopes(scores, list(seen.values.values()))

        self.scored = True
        maps, slopes = self._shared.once("layer gradient", all_layers)
        slope = slopes[self._column][layers.index(str(self.layer))] if slopes else None
        if slope is None:
            raise LayerError(
                f"the target does not depend on layer '{self.layer}' in a way that gradients can follow; name a layer "
                "before it, or look behind it for no_grad(), detach(), integers or gradient checkpointing"
            )
        return maps[str(self.layer)].detach(), slope

    def _check_maps(self, layer: str, maps: Any) -> None:
        if not isinstance(maps, Tensor) or maps.dim() != 4:
            raise LayerError(
                f"layer '{layer}' returns {describe(maps)}, expected maps (N, C, h, w); name a spatial layer"
            )
        if not maps.is_floating_point():
            raise LayerError(f"layer '{layer}' returns {maps.dtype}, expected real maps; name a layer that does")
        if len(maps) != len(self.inputs):
            raise LayerError(
                f"layer '{layer}' returns {len(maps)} maps for {len(self.inputs)} inputs, expected one for each; name "
                "a layer that is called once for all of them"
            )

    def once(self, key: Hashable, compute: Callable[[], Made]) -> Made:
        """Return ``compute()``, run once for all targets and layers of this batch; for what does not depend on them."""
        return self._shared.once(("once", key), compute)

    def kept(self, name: Hashable, of: Hashable, compute: Callable[[], Made], example: Tensor | None = None) -> Made:
        """Return ``compute()``, or what it made when it was last asked for under this name, of inputs of this shape.

        All calls on a model share that, as long as the model stays as it is; where values decide what a network does,
        the batches of one call.

        Args:
            name: what is asked for; a plugin begins it with its own name, or puts that first in a tuple.
            of: what else it depends on; of another it is made anew, and only the newest is kept. So it is of another
                seed, where the network draws random numbers.
            compute: makes it, of nothing that differs between inputs of one shape.
            example: one of the inputs, (1, C, H, W), where they are not of the samples' shape.
        """
        survey = self._survey(example)
        seed = self.generator.initial_seed() if survey.draws else None
        known, made = survey.found.get(name, (None, None))
        if known != (of, seed):
            # Or the numbers that follow would be others than in calls that know it already.
            with nullcontext() if seed is None else own_randomness(self._device_of(example), seed):
                made = compute()
            survey.found[name] = (of, seed), made
        return cast("Made", made)

    def sweep(
        self,
        make: Callable[[int, int], Tensor],
        count: int,
        rows: Sequence[int] | Tensor,
        *,
        probability: bool = False,
        shared: bool = False,
        share: tuple[float, float] = (0.0, 1.0),
        rounding: Literal["same", "alike", "any"] = "same",
        sizes: Sequence[int] | None = None,
    ) -> Tensor:
        """Score many made inputs without gradients, in batches that fit the budget.

        Args:
            make: ``make(start, stop)`` returns the inputs numbered start to stop - 1, (stop - start, C, H, W).
            count: how many there are.
            rows: (count,), for each the sample whose target it takes.
            probability: score classes by the softmax of the output; other targets stay as they are.
            shared: the made inputs do not depend on the target, so that one sweep serves all targets of the call.
            share: from where to where progress goes meanwhile, in [0, 1], for techniques with several sweeps.
            rounding: "same" runs the model as it is. On a CPU in single precision "any" makes convolutions by kernels
                of our own, and batch norms part of them, which is up to twice as fast and rounds up to half as far
                again, where the model returns the same then but for rounding, and the weights that are made ready for
                it take at most half of the memory. "alike" does so where no kernel of several pixels sums over more
                than 576 products, which rounds as far as the model itself. In bfloat16 both give the model its inputs
                channels last. Of differences of scores both scores are to be swept alike, since rounding shows in them.
            sizes: how many there are in each batch, for inputs that take less memory than whole ones (`Patched`); by
                default as many as fit the budget.

        Returns:
            (count,) scores.

        Raises:
            InputError: a score is not finite.
        """
        picked = torch.as_tensor(rows, dtype=torch.long, device="cpu")
        if not count:
            return torch.empty(0, dtype=torch.float32, device="cpu" if self._inputs is None else self._inputs.device)
        self.scored = True
        self._sweeps += shared  # others are not looked for by the other targets
        step = within(self.progress, share)

        def all_targets() -> Tensor:
            self._classes(None)  # before the first batch, which should hold nothing else
            example = make(0, 1) if self._inputs is None else None
            every: list[Tensor] = []  # of all batches one: small ones in between would break the memory into pieces

            def scored(start: int, stop: int) -> None:
                rows, scores = picked[start:stop], None
                if rounding != "same":
                    with suppress(Exception, Unfoldable):  # the network as it is tells whether that is an error
                        wide = rounding == "any"
                        scores = self._fast_scores(make(start, stop), rows, probability=probability, wide=wide)
                if scores is None:  # by now it may have written to its inputs
                    scores = self._scores(make(start, stop), rows, probability=probability)
                if not every:
                    every.append(scores.new_empty(count, *scores.shape[1:]))
                every[0][start:stop] = scores
                step(stop, count)

            self.batched(scored, count, example=example, sizes=sizes)
            return _finite(every[0], "made input")

        with torch.no_grad():
            scores = self._shared.once(("sweep", self.layer, self._sweeps), all_targets) if shared else all_targets()
        return scores[:, self._column]

    def batched(
        self,
        work: Callable[[int, int], Made],
        count: int,
        *,
        backward: bool = False,
        example: Tensor | None = None,
        at_most: int | None = None,
        sizes: Sequence[int] | None = None,
    ) -> list[Made]:
        """Return ``work(start, stop)`` for consecutive ranges that cover `count` images, in batches within the budget.

        Args:
            work: runs the model on images start to stop - 1; after memory ran out, it is called again with fewer.
            count: how many images there are.
            backward: `work` takes gradients.
            example: one of the images, (1, C, H, W), where they are not of the samples' shape.
            at_most: so many images in a batch, whatever the budget allows.
            sizes: how many there are in each batch, whatever the budget allows.
        """
        known = self._survey(example)
        device = self._device_of(example)
        size = min(batch_size(known, self.memory, device, backward=backward), at_most or count)
        if sizes is not None:
            stops = list(itertools.accumulate(sizes))
            return [made for n, stop in zip(sizes, stops, strict=True) for made in self._run_part(work, stop - n, n)]
        if example is None:
            return self._batches.run(count, size, work)
        know_calls(self.model, known.counts if known.fixed else {})
        with own_randomness(device, self.generator.initial_seed()) if known.draws else nullcontext():
            return self._batches.run(count, size, work)

    def _run_part(self, work: Callable[[int, int], Made], first: int, count: int) -> list[Made]:
        return self._batches.run(count, count, lambda start, stop: work(first + start, first + stop))

    def advance(self, done: int, total: int, share: tuple[float, float] = (0.0, 1.0)) -> None:
        """Tell how far a part of the work is, which goes from ``share[0]`` to ``share[1]`` of the whole."""
        within(self.progress, share)(done, total)

    def room(self, example: Tensor) -> int:
        """Return how many such inputs, (1, C, H, W), fit beside what is kept of one; at least 1."""
        known = self._survey(example)
        return max(1, (self.memory - known.kept) // max(need(known, backward=False), 1))

    def fits(self, example: Tensor) -> bool:
        """Whether the forward and backward pass of one such input, (1, C, H, W), fits the memory budget."""
        return need(self._survey(example), backward=True) <= self.memory

    def image(self, option: ImageOption, *, whole: bool = False, size: Sequence[int] | None = None) -> Tensor:
        """Return an image option as the model takes it, (1, C, H, W): pictures are preprocessed, tensors are not.

        Args:
            option: the image.
            whole: a picture is neither resized nor cropped.
            size: (height, width) to which it is then resized, bilinear and antialiased.

        Raises:
            InputError: a picture was given and the model has no preprocessing, or the channels differ.
        """
        like = self.example if self._inputs is None else self.inputs
        if option.tensor is not None:
            made = option.tensor[None].to(like)
        else:
            assert option.image is not None
            described = Model(nn.Identity()) if self._model is None else self.described
            made = described.prepare([option.image], whole=whole or size is not None).to(like)
        if made.shape[1] != like.shape[1]:
            raise InputError(f"the image option has {made.shape[1]} channels, the inputs {like.shape[1]}")
        return made if size is None else resize(made, size)

    def baseline(self, option: float | tuple[float, ...] | ImageOption) -> Tensor:
        """Return a `Baseline` option in the units of the model's input, (C, H, W) or (C, 1, 1).

        Raises:
            InputError: an image of another size.
            OptionError: neither one number nor one for each channel.
        """
        shape = self.inputs.shape[1:]
        if isinstance(option, ImageOption):
            image = self.image(option)[0]
            if image.shape != shape:
                raise InputError(f"the baseline image is {tuple(image.shape)}, the inputs {tuple(shape)}; resize it")
            return image
        values = (option,) * shape[0] if isinstance(option, float) else option
        if len(values) != shape[0]:
            told = f"one, or one for each of the {shape[0]} channels"
            raise OptionError(f"option 'baseline': got {len(values)} numbers, expected {told}")
        return self.inputs.new_tensor(values)[:, None, None]

    def calls(self, example: Tensor | None = None) -> tuple[Layer, ...]:
        """Return the module calls of a forward pass of the samples, or of such an input, in order of completion.

        Their receptive fields are left out; `cnnviz.layers` has them.
        """
        return self._survey(example).layers

    def told(self, row: int) -> str:
        """Return the target of a sample in words: ``281 tabby``."""
        labels = self._described.labels if self._described else None
        one = part(self._target, row, row + 1)
        return words(one[:, self._column] if isinstance(one, Tensor) else one, labels)

    def identity(self) -> dict[str, Any]:
        """Return what the call is of, as plain values by which long work that was interrupted knows itself again.

        Raises:
            TargetError: the target is a callable without a name of its own, which could be any other.
        """
        tensors = [] if self._model is None else [tensor for _, tensor in named_tensors(self._model)]
        units = self.normalisation
        return {
            "model": fingerprint(*tensors),
            "preprocessing": [list(units.mean), list(units.std)],
            "inputs": None if self._everything is None else fingerprint(self._everything),
            "target": stable(self._target),
            "layers": list(self.layers),
            "seed": self.generator.initial_seed(),
        }

    def classes(self) -> Tensor | None:
        """Return the class explained for each sample, (N,), running the model if need be; None where it is no class."""
        self.scored = True
        classes = self._classes(None)
        return None if classes is None else classes[:, self._column]

    def base_scores(self, *, probability: bool = False) -> Tensor:
        """Return the scores of the unmodified samples, (N,), without gradients; run once for all targets of the call.

        Args:
            probability: score classes by the softmax of the output, unless scores are known already.
        """
        if self._shared.base is None:
            count = len(self.inputs)

            def scored(start: int, stop: int) -> Tensor:
                rows = torch.arange(start, stop, device="cpu")
                return self._scores(self.inputs[start:stop].clone(), rows, probability=probability)

            with torch.no_grad():
                if count <= self._at_once:
                    self.score(probability=probability)
                else:
                    self._classes(None)
                    self._shared.base = _finite(torch.cat(self.batched(scored, count)))
            assert self._shared.base is not None
        self.scored = True
        return self._shared.base[:, self._column]

    def _all_scores(
        self,
        inputs: Tensor | None,
        rows: Sequence[int] | Tensor | None,
        *,
        probability: bool = False,
        rule: Rule | None = None,
    ) -> Tensor:
        """Return the scores of all targets, (rows, K)."""
        self.scored = True
        own = inputs is None or (self.given and _same_memory(inputs, self.inputs))
        x = self.inputs if inputs is None else inputs
        # A clone, since a network may begin with an in-place operation.
        given = x.clone() if own or x.requires_grad else x
        return self._scores(given, rows, unmodified=own and rows is None, probability=probability, rule=rule)

    def _scores(
        self,
        x: Tensor,
        rows: Sequence[int] | Tensor | None,
        *,
        unmodified: bool = False,
        probability: bool = False,
        rule: Rule | None = None,
    ) -> Tensor:
        if rows is None:
            if len(x) != len(self.inputs):
                raise InputError(f"score() got {len(x)} inputs for {len(self.inputs)} samples; give rows=…")
            index = torch.arange(len(x), device="cpu")
        else:
            index = torch.as_tensor(rows, dtype=torch.long, device="cpu")
            if index.shape != (len(x),):
                raise InputError(f"score() got {len(x)} inputs and rows of shape {tuple(index.shape)}")
        with nullcontext() if rule is None else relu_rule(rule):  # what the target makes of the output is no network's
            output = self.forward(x)
        if rule is not None:
            check_followed(output, rule)
        scores = self._reduced(output, index, unmodified=unmodified, probability=probability)
        if x.requires_grad and torch.is_grad_enabled() and not scores.requires_grad:
            raise TargetError(_UNCONNECTED)
        return scores

    def _fast_scores(self, x: Tensor, rows: Tensor, *, probability: bool, wide: bool) -> Tensor:
        """Return the scores of made inputs but for rounding; of a model with wide kernels as they are, unless `wide`.

        Raises:
            Unfoldable: it takes another run without that, as it does after any exception.
        """
        if x.device.type != "cpu" or x.dtype != torch.float32 or x.dim() != 4:
            return self._scores(self.laid_out(x), rows, probability=probability)
        folding = self._folding
        allowed = (wide or folding.narrow) and folding.size <= self.memory // 2  # a batch takes the other, see `need`
        if not allowed or not self._tried(_OWN, x[:1], self._folds):
            return self._scores(x, rows, probability=probability)
        with folding:  # and a clone, since a map of one channel is channels last in name alone
            return self._scores(x.clone(memory_format=torch.channels_last), rows, probability=probability)

    @contextmanager
    def _in_less_time(self, x: Tensor) -> Iterator[None]:
        """Run the model on inputs in less time within it, to the same bits."""
        if type(x) is not Tensor or x.device.type != "cpu":
            yield
            return
        chains: Chains | None = None
        if x.dtype == torch.float32 and not x.requires_grad:
            example = x[:1] if self._inputs is None else None
            growths = self.kept("growths", None, lambda: growths_in(self.model), example)
            chains = self._shared.once("chains", lambda: Chains(self.model, growths))
        but = chains.layers if chains else frozenset()
        with chains or nullcontext(), self._shared.once(("pools", but), lambda: Pools(self.model, but)):
            yield

    @property
    def _folding(self) -> Folding:
        return self._shared.once("folding", lambda: Folding(self.model))

    def _folds(self, x: Tensor) -> bool:
        return self._folding.helps and self._indifferent(x, self._folding)

    def _tried(self, name: str, x: Tensor, trial: Callable[[Tensor], bool]) -> bool:
        """Return what a trial on two of such an input, (1, C, H, W), found when the model was first asked for it.

        Of a single one `view` may succeed where it fails for more; it is tried on one where two do not fit the memory.
        """
        example = x.detach() if self._inputs is None else None

        def tried() -> bool:
            count = 2 if 2 * need(self._survey(example), backward=False) <= self.memory else 1
            with torch.no_grad():
                return trial(x.expand(count, -1, -1, -1))

        return self.kept(("tried", name, self.ends), None, tried, example)

    def _survey(self, example: Tensor | None = None) -> Survey:
        """Return what a forward pass of such an input does; of the samples where none is given."""
        assert self._surveyed is not None
        return self._surveyed(example)

    def _device_of(self, example: Tensor | None) -> torch.device:
        return (self.inputs if example is None else example).device

    def laid_out(self, x: Tensor) -> Tensor:
        """Return made inputs, (N, C, H, W), as convolutions on a CPU take them fastest, where the model allows that.

        Channels then lie last in memory. The model returns the same but for rounding.
        """
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16) or x.dim() != 4:
            return x
        last = self._tried(_LAYOUT, x[:1], self._indifferent)
        return x.contiguous(memory_format=torch.channels_last) if last else x

    def _indifferent(self, x: Tensor, inside: AbstractContextManager[Any] | None = None) -> bool:
        """Whether the model returns the same for inputs, (N, C, H, W), in either layout; channels last in a context."""
        try:
            with inside or nullcontext():
                other = self.forward(x.clone(memory_format=torch.channels_last))
            return _same_but_for_rounding(self.forward(x.clone(memory_format=torch.contiguous_format)), other)
        except (Exception, Unfoldable):  # noqa: BLE001  # whatever it is (`view` fails in one), the model is run as it is
            return False

    def _reduced(self, output: Any, index: Tensor, *, unmodified: bool, probability: bool = False) -> Tensor:
        """Return the scores of all targets, (rows, K), in an output whose row i belongs to sample index[i]."""
        has_rows = isinstance(output, Tensor) and output.dim() > 1 and not callable(self._target)
        if has_rows and len(output) != len(index):
            what = "the model" if self.ends is None else f"layer '{self.ends}'"
            raise TargetError(
                f"{what} returns {len(output)} rows for {len(index)} inputs, expected one for each, so that scores are "
                "told apart; name another layer, or give a callable that reduces the output to one number for each"
            )
        match self._target:
            case Several():
                scores = self._target.score(output, index)[:, None]
            case _ if isinstance(self._target, Selector):
                scores = self._target.score(output)[:, None]
            case None | Tensor() | Top():
                classes = self._classes(output if unmodified else None)
                assert classes is not None
                scores = class_scores(output, classes[index], probability=probability)
            case _:
                scores = called(self._target, output, len(index))[:, None]
        if unmodified:
            self._shared.base = _finite(scores.detach())
        return scores

    def _classes(self, output: Any) -> Tensor | None:
        """Return the explained classes of each sample, (N, K), from its output where they are not known."""
        if isinstance(self._target, Tensor):
            return self._target
        if not (self._target is None or isinstance(self._target, Top)):
            return None
        if self._shared.classes is None:
            if output is None:
                if self._inputs is None:
                    raise TargetError("target: got none, and there are no inputs whose top class it could be; name one")
                with torch.no_grad():
                    found = torch.cat(self.batched(self._tops, len(self.inputs)))
            else:
                found = _top(output, self._best)
            self._shared.classes = found
        return self._shared.classes

    @property
    def _best(self) -> int:
        """How many of each sample's top classes are explained."""
        return self._target.k if isinstance(self._target, Top) else 1

    def _tops(self, start: int, stop: int) -> Tensor:
        return _top(self.forward(self.inputs[start:stop].clone()), self._best)

    @property
    def _at_once(self) -> int:
        """How many samples fit the memory budget."""
        return batch_size(self._survey(), self.memory, self.inputs.device, backward=False)


_UNCONNECTED = (
    "the score does not depend on the input in a way that gradients can follow; look for detach(), no_grad(), integers "
    "or quantized weights in the model and in the target callable"
)


def _connected(slopes: Sequence[tuple[Tensor | None, ...]]) -> list[Tensor]:
    """Return each column's only gradient.

    Raises:
        TargetError: there is none.
    """
    found = [slope for (slope,) in slopes if slope is not None]
    if len(found) < len(slopes):
        raise TargetError(_UNCONNECTED)
    return found


def _slopes(scores: Tensor, places: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Return, for each column of scores, its gradients at the places; None where it does not depend on one."""
    if not scores.requires_grad:
        return []
    columns = scores.sum(0)
    last = len(columns) - 1
    return [
        torch.autograd.grad(column, places, retain_graph=k < last, allow_unused=True)
        for k, column in enumerate(columns.unbind())
    ]


def _top(output: Any, k: int) -> Tensor:
    scores = class_output(output).detach()
    if k > scores.shape[1]:
        raise TargetError(f"the model has {scores.shape[1]} classes, so that there is no top {k}; give fewer")
    _finite(scores.amax(1, keepdim=True))
    return (scores.argmax(1, keepdim=True) if k == 1 else scores.topk(k, 1).indices).cpu()


def _plain(output: Any, x: Tensor) -> Any:
    """Return an output with plain tensors where the input is a patched one."""
    if type(x) is Tensor:
        return output
    from .incremental import densified  # only where patches are made, so that `import cnnviz` stays light

    return densified(output)


def _same_but_for_rounding(a: Any, b: Any) -> bool:
    pairs = list(zip(tensors_in(a), tensors_in(b), strict=True))
    slack = [1e-2 * float(one.abs().max()) if one.is_floating_point() and one.numel() else 0.0 for one, _ in pairs]
    return all(torch.allclose(one, two, rtol=0, atol=atol) for (one, two), atol in zip(pairs, slack, strict=True))


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.stride() == b.stride() and a.data_ptr() == b.data_ptr()


def _finite(scores: Tensor, of: str = "sample") -> Tensor:
    wrong = (~torch.isfinite(scores)).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise InputError(
            f"the score of {of} {row} is {float(scores[row, column])}; look for NaN or huge values in the inputs and "
            "in the model's weights, or use a wider floating type"
        )
    return scores
