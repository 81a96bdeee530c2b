"""What a technique is, and what it is given to work with."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from .errors import InputError, ModelError, PluginError, TargetError
from .explanation import Explanation
from .memory import Batches, batch_size
from .models import Model, Survey, capture
from .options import ImageOption, Options, check_declaration
from .targets import Channel, Neuron, Resolved, called, class_output, class_scores

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the steps done and their total; may raise to cancel."""


class Request:
    """One call of a technique: the model, the samples, what to explain, and the means to run the model.

    Attributes:
        model: a private replica of the network, in eval mode; None for techniques that were given none.
        inputs: (N, C, H, W) on the model's device; None where the technique takes none.
        target: class indices (N,), a selector, a callable, or None for each sample's top class.
        layer: full name of the layer, or None.
        generator: seeded random numbers, on the CPU. Draw them without the batch dimension, so that every sample sees
            the same ones, whatever batch it is in.
        memory: budget in bytes.
        progress: call it with steps done and their total; it may raise to cancel.
        scored: whether `score` or `sweep` was called, so that the result explains a target.
    """

    def __init__(
        self,
        *,
        model: nn.Module | None,
        inputs: Tensor | None,
        target: Resolved,
        layer: str | None,
        seed: int,
        memory: int,
        progress: Progress,
        described: Model | None = None,
        survey: Callable[[], Survey] | None = None,
        batches: Batches | None = None,
    ) -> None:
        self._model = model
        self._inputs = inputs
        self.target = target
        self.layer = layer
        self.generator = torch.Generator().manual_seed(seed)
        self.memory = memory
        self.progress = progress
        self._described = described
        self._survey = survey
        self._batches = batches or Batches()
        self._top: Tensor | None = None
        self._base: Tensor | None = None
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

    def score(self, inputs: Tensor | None = None, rows: Sequence[int] | Tensor | None = None) -> Tensor:
        """Run the model and return the explained score of each row; gradients flow where they are asked for.

        Args:
            inputs: (rows, C, H, W); None for the samples themselves.
            rows: for each input the sample whose target it takes; None where input i belongs to sample i.

        Returns:
            (rows,) raw scores, no softmax.

        Raises:
            TargetError: the target does not fit the output.
            InputError: a sample's score is not finite, or rows are missing.
        """
        self.scored = True
        unmodified = inputs is None or (rows is None and _same_memory(inputs, self.inputs))
        x = self.inputs if inputs is None else inputs
        # A clone, since a network may begin with an in-place operation.
        return self._score(x.clone() if unmodified or x.requires_grad else x, rows, unmodified)

    def sweep(self, make: Callable[[int, int], Tensor], count: int, rows: Sequence[int] | Tensor) -> Tensor:
        """Score many made inputs without gradients, in batches that fit the budget.

        Args:
            make: ``make(start, stop)`` returns the inputs numbered start to stop - 1, (stop - start, C, H, W).
            count: how many there are.
            rows: (count,), for each the sample whose target it takes.

        Returns:
            (count,) scores.
        """
        picked = torch.as_tensor(rows, dtype=torch.long, device="cpu")
        self.scored = True

        def part(start: int, stop: int) -> Tensor:
            scores = self._score(make(start, stop), picked[start:stop], unmodified=False)
            self.progress(stop, count)
            return scores

        with torch.no_grad():
            self._classes(None)  # before the first batch, which should hold nothing else
            size = self._batch_size(backward=False)
            return torch.cat(self._batches.run(count, size, part))

    def image(self, option: ImageOption) -> Tensor:
        """Return an image option as the model takes it, (1, C, H, W): pictures are preprocessed, tensors are not.

        Raises:
            InputError: a picture was given and the model has no preprocessing, or the channels differ.
        """
        if option.tensor is not None:
            made = option.tensor[None].to(self.inputs)
        else:
            assert option.image is not None
            described = self._described or Model(self.model)
            made = described.prepare([option.image]).to(self.inputs)
        if made.shape[1] != self.inputs.shape[1]:
            raise InputError(f"the image option has {made.shape[1]} channels, the inputs {self.inputs.shape[1]}")
        return made

    def classes(self) -> Tensor | None:
        """Return the class explained for each sample, (N,); None where the target is no class or nothing was scored."""
        return self._classes(None) if self.scored else None

    def base_scores(self) -> Tensor | None:
        """Return the scores of the unmodified samples, (N,), running the model if need be; None if none were asked."""
        if self._base is None and self.scored:
            with torch.no_grad():
                self.score()
        return self._base

    def _batch_size(self, *, backward: bool) -> int:
        assert self._survey is not None
        return batch_size(self._survey(), self.memory, self.inputs.device, backward=backward)

    def _score(self, x: Tensor, rows: Sequence[int] | Tensor | None, unmodified: bool) -> Tensor:
        if rows is None:
            if len(x) != len(self.inputs):
                raise InputError(f"score() got {len(x)} inputs for {len(self.inputs)} samples; give rows=…")
            index = torch.arange(len(x))
        else:
            index = torch.as_tensor(rows, dtype=torch.long, device="cpu")
            if index.shape != (len(x),):
                raise InputError(f"score() got {len(x)} inputs and rows of shape {tuple(index.shape)}")
        output = self._run(x)
        match self.target:
            case Channel() | Neuron():
                scores = self.target.score(output)
            case None | Tensor():
                classes = self._classes(output if unmodified else None)
                assert classes is not None
                scores = class_scores(output, classes[index])
            case _:
                scores = called(self.target, output, len(x))
        if x.requires_grad and torch.is_grad_enabled() and not scores.requires_grad:
            raise TargetError(
                "the score does not depend on the input in a way that gradients can follow; look for detach(), "
                "no_grad() or integers in the model and in the target callable"
            )
        if unmodified:
            self._base = _finite(scores.detach())
        return scores

    def _run(self, x: Tensor) -> Any:
        if not isinstance(self.target, (Channel, Neuron)):
            return self.model(x)
        with capture(self.model, self.target.layer, stop=True) as seen:
            self.model(x)
        return seen.output

    def _classes(self, output: Any) -> Tensor | None:
        if isinstance(self.target, Tensor):
            return self.target
        if self.target is not None:
            return None
        if self._top is None:
            if output is None:
                with torch.no_grad():
                    output = self.model(self.inputs.clone())
            scores = class_output(output)
            _finite(scores.detach().amax(1))
            self._top = scores.detach().argmax(1).cpu()
        return self._top


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.stride() == b.stride() and a.data_ptr() == b.data_ptr()


def _finite(scores: Tensor) -> Tensor:
    wrong = (~torch.isfinite(scores)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"the score of sample {row} is {float(scores[row])}; look for NaN or huge values in the inputs and in the "
            "model's weights, or use a wider floating type"
        )
    return scores


Function: TypeAlias = Callable[[Request, Any], "Tensor | Explanation"]


@dataclass(frozen=True)
class Technique:
    """A visualisation or explanation technique, as a plugin registers it.

    Attributes:
        name: lower-case words joined by hyphens, the same as its entry point's.
        function: ``function(request, options)``: a pure function that returns a tensor, which becomes a `Heatmap`,
            or an explanation. Its docstring's first line is the summary shown to users.
        options: its `Options` class.
        family: "attribution", "inspection", "behaviour", "synthesis", "texture", "style", or one of its own.
        inputs: "each" sample by itself (batched by the framework within the memory budget), "all" at once, or "none".
        layers: whether it takes "none", "one" or "many" layers; many are computed one by one and fused by their mean.
        default_layer: what is taken where no layer is named: the last spatial output before the head that is no
            pooling, or the first convolution.

    Raises:
        PluginError: a malformed declaration.
        OptionError: an option with a reserved name or without a description.
    """

    name: str
    function: Function
    options: type[Options] = Options
    family: str = "attribution"
    inputs: Literal["each", "all", "none"] = "each"
    layers: Literal["none", "one", "many"] = "none"
    default_layer: Literal["last-spatial", "first-convolution"] = "last-spatial"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+([-.][a-z0-9]+)*\+*", self.name):
            raise PluginError(
                f"technique name {self.name!r}: expected lower-case words joined by hyphens, as 'grad-cam'"
            )
        if not callable(self.function):
            raise PluginError(f"technique '{self.name}': its function is {self.function!r}, expected a callable")
        if not (isinstance(self.options, type) and issubclass(self.options, Options)):
            raise PluginError(f"technique '{self.name}': options {self.options!r} is no subclass of cnnviz.Options")
        for key in ("inputs", "layers", "default_layer"):
            known = get_args(inspect.get_annotations(type(self), eval_str=True)[key])
            if getattr(self, key) not in known:
                raise PluginError(f"technique '{self.name}': {key}={getattr(self, key)!r}, expected one of {known}")
        check_declaration(self.name, self.options)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of its options."""
        return self.options.model_json_schema()
