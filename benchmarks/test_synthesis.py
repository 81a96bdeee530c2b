"""Steps of style transfer beside the way in which PyTorch's tutorial takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import cnnviz
from cnnviz.synthesis import Pixels, Style, StyleLoss, optimise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STYLE, CONTENT = ("0", "2", "5", "7", "10"), "7"  # conv1_1 to conv3_1, and conv2_2, as there
WEIGHT = 1e6
STEPS = {128: 40, 256: 20, 512: 6}


class Normalise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.tensor(MEAN).view(-1, 1, 1)
        self.std = torch.tensor(STD).view(-1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean.to(x)) / self.std.to(x)


def gram(x: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    rows = x.reshape(images * channels, height * width)
    return torch.mm(rows, rows.t()).div(x.numel())


class Likeness(nn.Module):
    """A layer that passes on what it is given, and notes how far its look is from the wanted one."""

    def __init__(self, wanted: Tensor, look: Any) -> None:
        super().__init__()
        self.wanted, self.look = look(wanted).detach(), look

    def forward(self, x: Tensor) -> Tensor:
        self.loss = functional.mse_loss(self.look(x), self.wanted)
        return x


def tutorial(layers: nn.Sequential, content: Tensor, style: Tensor, steps: int) -> None:
    """Losses are layers of a network that ends with the last of them; L-BFGS with its defaults."""
    net = nn.Sequential(Normalise())
    losses: list[tuple[float, Likeness]] = []
    for name, layer in layers.named_children():
        net.append(nn.ReLU(inplace=False) if isinstance(layer, nn.ReLU) else layer)
        for weight, wanted, look, here in (
            (1.0, content, lambda x: x, name == CONTENT), (WEIGHT, style, gram, name in STYLE)
        ):  # fmt: skip
            if here:
                with torch.no_grad():
                    losses.append((weight, Likeness(net(wanted), look)))
                net.append(losses[-1][1])
        if name == STYLE[-1]:
            break
    net.eval().requires_grad_(False)
    x = content.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([x], max_iter=min(20, steps), max_eval=min(20, steps))
    done = 0

    def closure() -> Tensor:
        nonlocal done
        with torch.no_grad():
            x.clamp_(0, 1)
        optimiser.zero_grad()
        net(x)
        total = sum(weight * layer.loss for weight, layer in losses)
        total.backward()
        done += 1
        return total

    while done < steps:
        optimiser.step(closure)


def ours(layers: nn.Sequential, content: Tensor, style: Tensor, steps: int) -> None:
    units = cnnviz.Preprocess(mean=MEAN, std=STD)

    def paint(request: cnnviz.Request, _: cnnviz.Options) -> cnnviz.Gallery:
        """Take some steps."""
        shown = request.laid_out(request.inputs)
        loss = StyleLoss(
            request.model, [(1000.0, Style.of(request.model, STYLE, units.normalise(style)))],
            [(name, 1.0) for name in STYLE], picture=shown, content_layers=[(CONTENT, 1.0)],
        )  # fmt: skip
        canvas = Pixels(request.inputs, units)
        request.batched(
            lambda *_: optimise(
                canvas, lambda x: loss(request.laid_out(x)), steps=steps, step_size=1.0, optimiser="lbfgs",
                generator=request.generator, progress=request.progress,
            ),
            1, backward=True, example=request.inputs,
        )  # fmt: skip
        return cnnviz.Gallery(images=units.inverse(canvas.image().detach()))

    model = cnnviz.load_model(layers, preprocess=units)
    cnnviz.explain(model, units.normalise(content), cnnviz.Technique("steps", paint, inputs="all", whole=True))


CASES = {f"vgg19, {size} x {size}, {steps} steps": (size, steps) for size, steps in STEPS.items()}


@pytest.mark.parametrize("case", CASES)
def test_style_transfer(case: str, race: Any, device: str) -> None:
    size, steps = CASES[case]
    if race.quick and size > 128:
        pytest.skip("takes minutes")
    torch.manual_seed(0)
    layers = torchvision.models.vgg19().features.eval().requires_grad_(False).to(device)
    content, style = torch.rand(2, 1, 3, size, size, device=device)
    race.rounds, race.warm = min(race.rounds, 3), 1
    race(
        lambda: ours(layers, content, style, steps),
        {"PyTorch's tutorial": lambda: tutorial(layers, content, style, steps)},
    )
