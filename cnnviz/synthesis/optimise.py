"""The loop that all made pictures go through."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor

from ..errors import InputError, SaveError
from ..models import fingerprint
from ..request import Progress
from .canvas import Canvas
from .checkpoint import Checkpoint, advance
from .regularisers import Edit, Penalty
from .transforms import Transform

Optimiser: TypeAlias = Literal["adam", "lbfgs", "ascent"]


_FARTHEST: Final = 1e3
_MEMORY: Final = 20
"""Steps that L-BFGS remembers: of style transfer 100 make the loss fall no faster, and each step takes longer."""


def optimise(
    canvas: Canvas,
    loss: Callable[[Tensor], Tensor],
    *,
    steps: int,
    step_size: float,
    optimiser: Optimiser = "adam",
    transforms: Sequence[Transform] = (),
    penalties: Sequence[tuple[float, Penalty]] = (),
    edits: Sequence[tuple[int, Edit]] = (),
    generator: torch.Generator,
    progress: Progress,
    checkpoint: tuple[Checkpoint, str] | None = None,
) -> Tensor:
    """Change what a canvas shows, step by step, so that the loss falls; each picture by itself.

    Args:
        canvas: N pictures; changed in place.
        loss: from pictures in the units of the network's input, (N, C, H, W), to (N,), rows treated independently.
        steps: how many.
        step_size: Adam's or L-BFGS' learning rate; for "ascent" how far a number moves on average. Pixels are in
            [0, 1], whatever the units of the network.
        optimiser: "adam"; "lbfgs", with a memory of 20 steps and no line search, for one picture, which goes back to
            the lowest loss whenever it has doubled, takes shorter steps then, and shows the lowest in the end; or
            "ascent", the gradient divided by its mean absolute value.
        transforms: what happens to the pictures before the loss sees them, one after the other.
        penalties: weight and penalty of the pictures, centred and untransformed.
        edits: after every so many steps, what becomes of the pictures; for pixels only.
        generator: of the transforms' random numbers.
        progress: called after each step; may raise to cancel.
        checkpoint: where the state is kept now and then, and when progress cancels, and what this part is called there;
            what is kept already is continued, where it began with the same canvas.

    Returns:
        (N, steps), the loss before each step, without penalties, on the CPU.

    Raises:
        InputError: the loss is not finite.
        SaveError: the checkpoint cannot be written, or is more steps on.
    """

    def keep(done: bool, now: bool) -> None:
        if checkpoint is not None:
            checkpoint[0].keep(checkpoint[1], run.state, done=done, now=now)

    run = _Run(canvas, loss, step_size, optimiser, transforms, penalties, edits, generator)
    kept = None if checkpoint is None else checkpoint[0].state(checkpoint[1])
    if checkpoint is not None and kept is not None and kept["begins"] == run.begins:
        run.restore(kept)
        if run.done > steps:
            raise SaveError(
                f"checkpoint '{checkpoint[0].path}' is {run.done} steps on, expected at most the {steps} asked for; "
                "ask for as many, give another file, or delete it to begin anew"
            )
    while run.done < steps:
        run.step()
        advance(run.done, steps, progress, keep)
    run.finish()
    return torch.stack(run.history[:steps], 1)


class _Run:
    def __init__(
        self,
        canvas: Canvas,
        loss: Callable[[Tensor], Tensor],
        step_size: float,
        optimiser: Optimiser,
        transforms: Sequence[Transform],
        penalties: Sequence[tuple[float, Penalty]],
        edits: Sequence[tuple[int, Edit]],
        generator: torch.Generator,
    ) -> None:
        self.canvas = canvas
        self.begins = fingerprint(*canvas.leaves)
        self.loss = loss
        self.transforms = transforms
        self.penalties = [(weight, penalty) for weight, penalty in penalties if weight]
        self.edits = edits
        self.generator = generator
        self.normalised = optimiser == "ascent"
        self.guarded = optimiser == "lbfgs"
        self.best: dict[str, Any] = {"loss": math.inf, "leaves": []}
        self.before: list[Tensor] = []  # where the step began
        self.reach, self.moved = _FARTHEST, 0.0  # the farthest that a number may go in a step, and did in the last one
        self.optimiser = _made(optimiser, canvas.leaves, step_size)
        self.history: list[Tensor] = []

    @property
    def done(self) -> int:
        return len(self.history)

    def step(self) -> None:
        """Go one step; the loss is seen once."""
        self.optimiser.step(self._closure)
        with torch.no_grad():
            for every, edit in self.edits:
                if self.done % every == 0:
                    (leaf,) = self.canvas.leaves
                    assert leaf.grad is not None
                    leaf.copy_(edit(leaf, leaf.grad))
        self.canvas.bound()
        if self.guarded:
            self._hold_back()

    @torch.no_grad()
    def _hold_back(self) -> None:
        """Let no number go farther than it may, and L-BFGS know how far each went: bounds too may have held it back."""
        moves = [leaf - came for leaf, came in zip(self.canvas.leaves, self.before, strict=True)]
        self.moved = max(float(move.abs().max()) for move in moves)
        share = min(1.0, self.reach / max(self.moved, torch.finfo(torch.float32).tiny))
        self._show([came + share * move for came, move in zip(self.before, moves, strict=True)])
        went = torch.cat([(share * move).flatten() for move in moves])
        self.optimiser.state[self.canvas.leaves[0]].update(d=went, t=1.0)  # it keeps all with the first
        self.moved *= share
        self.reach = min(_FARTHEST, 2 * self.reach)

    def _closure(self) -> float:
        total, losses = self._loss()
        if self.guarded:
            if total > self.best["loss"] + abs(self.best["loss"]):
                self._go_back()
                total, losses = self._loss()
            self.before = [leaf.detach().clone() for leaf in self.canvas.leaves]
            if total < self.best["loss"]:
                self.best = {"loss": total, "leaves": self.before}
        self.history.append(losses)
        return total

    def _go_back(self) -> None:
        """Begin again where the loss was lowest, with shorter steps: by a wrong curvature they go anywhere."""
        self.reach = self.moved / 8
        self._show(self.best["leaves"])
        for state in self.optimiser.state.values():
            state.clear()
            state.update(func_evals=0, n_iter=0)

    def _loss(self) -> tuple[float, Tensor]:
        """Return the loss that is brought down, whose gradient is left at the leaves, and each picture's own."""
        self.optimiser.zero_grad()
        seen = self.canvas.image()
        for transform in self.transforms:
            seen = transform(seen, self.generator)
        losses = self.loss(seen)
        if not bool(torch.isfinite(losses).all()):
            raise InputError(
                f"the loss is not finite after {self.done} steps; give a smaller step size, or a wider floating type"
            )
        told = losses.detach().cpu()
        for weight, penalty in self.penalties:
            losses = losses + weight * penalty(self.canvas.centred())
        # By pixel: of a whole picture's mean a pixel's gradient is so small that L-BFGS would see no curvature.
        total: Tensor = losses.sum() * seen[0].numel()
        total.backward()  # type: ignore[no-untyped-call]  # torch's own
        if self.normalised:
            for leaf in self.canvas.leaves:
                assert leaf.grad is not None
                size = leaf.grad.abs().mean(tuple(range(1, leaf.dim())), keepdim=True)
                leaf.grad /= size.clamp(min=torch.finfo(size.dtype).tiny)
        return float(total.detach()), told

    def finish(self) -> None:
        """Show what was best, where the last step may have gone wrong."""
        if self.guarded:
            self._show(self.best["leaves"])

    @torch.no_grad()
    def _show(self, leaves: Sequence[Tensor]) -> None:
        for leaf, value in zip(self.canvas.leaves, leaves, strict=True):
            leaf.copy_(value)

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        return {
            "begins": self.begins,
            "leaves": self.canvas.leaves,
            "optimiser": self.optimiser.state_dict()["state"],
            "generator": self.generator.get_state(),
            "history": torch.stack(self.history, 1),
            "best": self.best,
            "reach": [self.reach, self.moved],
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Go back to where `state` was asked for."""
        self._show(kept["leaves"])
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": kept["optimiser"]})
        self.generator.set_state(kept["generator"])
        self.history = list(kept["history"].unbind(1))
        self.best = kept["best"]
        self.reach, self.moved = kept["reach"]


def _made(optimiser: Optimiser, leaves: list[Tensor], step_size: float) -> torch.optim.Optimizer:
    match optimiser:
        case "adam":
            return torch.optim.Adam(leaves, lr=step_size)
        case "ascent":
            return torch.optim.SGD(leaves, lr=step_size)
        case "lbfgs":
            assert all(len(leaf) == 1 for leaf in leaves), "a curvature is that of one picture"
            # One iteration a call, so that each sees the loss once and every step can be told and kept; nothing ends
            # the run early.
            return torch.optim.LBFGS(
                leaves, lr=step_size, max_iter=1, history_size=_MEMORY, tolerance_grad=0.0, tolerance_change=0.0
            )
