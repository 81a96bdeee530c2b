"""Models and inputs of every kind: explained right, or refused with the reason."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import cnnviz

TECHNIQUES: dict[str, dict[str, Any]] = {
    "saliency": {},
    "guided-backprop": {},
    "deconvnet": {},
    "integrated-gradients": {"steps": 2},
    "cam": {},
    "grad-cam": {},
    "grad-cam++": {},
    "layer-cam": {},
    "score-cam": {},
    "guided-grad-cam": {},
    "occlusion": {"window": 6, "stride": 5},
    "rise": {"masks": 10},
}
EACH = pytest.mark.parametrize("technique", TECHNIQUES)


def network(channels: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    parts = [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    parts += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    return nn.Sequential(*parts).eval()


def explained(net: nn.Module, x: Tensor, technique: str, **options: Any) -> Tensor:
    return cnnviz.explain(net, x, technique, target=2, **TECHNIQUES[technique], **options).values


@EACH
@pytest.mark.parametrize("shape", [(1, 13, 29), (4, 16, 16), (7, 24, 10)])
def test_any_number_of_channels_and_any_size(technique: str, shape: tuple[int, int, int]) -> None:
    made = explained(network(shape[0]), torch.rand(2, *shape), technique)
    assert made.shape[0] == 2
    assert made.shape[1] in (1, shape[0])
    assert made.shape[2:] == shape[1:]
    assert made.std() > 0


@EACH
def test_hundreds_of_images_in_batches(technique: str) -> None:
    x = torch.rand(200, 3, 12, 12)
    many = cnnviz.explain(network(), x, technique, target=2, memory="1MiB", **TECHNIQUES[technique])
    assert max(many.provenance.batch_sizes) < 200
    torch.testing.assert_close(many.values[150:153], explained(network(), x[150:153], technique), rtol=1e-4, atol=1e-6)


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(technique: str, dtype: torch.dtype) -> None:
    net, x = network(), torch.rand(2, 3, 16, 16)
    exact = explained(net, x, technique)
    made = explained(network().to(dtype), x.to(dtype), technique)
    assert made.dtype == dtype
    # All but a few places, at which another maximum is pooled.
    off = (made.float() - exact).abs() / exact.abs().amax()
    assert off.quantile(0.95) < 50 * torch.finfo(dtype).eps


@EACH
def test_autocast(technique: str) -> None:
    net, x = network(), torch.rand(2, 3, 16, 16)
    exact = explained(net, x, technique)
    with torch.autocast("cpu", torch.bfloat16):
        made = explained(net, x, technique)
    off = (made.float() - exact).abs() / exact.abs().amax()
    assert off.quantile(0.95) < 0.2


@EACH
def test_channels_last(technique: str) -> None:
    net, x = network().double(), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    last = network().double().to(memory_format=torch.channels_last)
    made = explained(last, x.contiguous(memory_format=torch.channels_last), technique)
    torch.testing.assert_close(made, explained(net, x, technique), rtol=1e-9, atol=1e-12)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner[2:](checkpoint(self.inner[:2], x, use_reentrant=False))


@EACH
@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net.requires_grad_(False),
        nn.DataParallel,
        lambda net: torch.compile(net, backend="eager"),
        torch.fx.symbolic_trace,
        lambda net: Checkpointed().eval(),
    ],
    ids=["frozen", "DataParallel", "compiled", "fx", "checkpointed"],
)
def test_wrapped_and_frozen_models(technique: str, wrap: Any) -> None:
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(explained(wrap(network()), x, technique), explained(network(), x, technique))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # torch deprecates what users still bring
def test_torchscript_is_refused_with_the_remedy() -> None:
    with pytest.raises(cnnviz.ModelError, match=r"TorchScript.*explain the Python module"):
        cnnviz.explain(torch.jit.script(network()), torch.rand(1, 3, 16, 16), "saliency")


@EACH
def test_training_mode_is_told_and_explained_in_eval_mode(technique: str) -> None:
    net, x = network().train(), torch.rand(2, 3, 16, 16)
    with pytest.warns(UserWarning, match="in training mode, where its BatchNorm2d does something else") as told:
        made = explained(net, x, technique)
    assert told[0].filename == __file__
    assert net.training
    assert torch.equal(made, explained(network(), x, technique))


def test_training_mode_that_makes_no_difference_is_not_told() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.InstanceNorm2d(4), nn.Flatten()).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cnnviz.explain(net, torch.rand(1, 3, 8, 8), "saliency")


class TestOtherOutputs:
    """What a callable target makes explainable: segmentation, detection, embeddings, captions."""

    def test_segmentation(self) -> None:
        net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
        region = torch.zeros(64, 64, dtype=torch.bool)
        region[:32] = True

        def cats_in_the_region(output: dict[str, Tensor]) -> Tensor:
            return output["out"][:, 8, region].mean(1)

        x = torch.rand(2, 3, 64, 64)
        made = cnnviz.explain(net, x, "grad-cam", target=cats_in_the_region, layer="backbone.16")
        assert made.values.shape == (2, 1, 64, 64)
        assert made.scores is not None
        torch.testing.assert_close(made.scores, cats_in_the_region(net(x)).detach())
        pixels = cnnviz.explain(net, x, "saliency", target=cats_in_the_region).values
        assert pixels[:, :, :24].sum() > pixels[:, :, 40:].sum()

    def test_detection(self) -> None:
        torch.manual_seed(0)
        net = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=5, score_thresh=0.0
        ).eval()

        def best_box(found: list[dict[str, Tensor]]) -> Tensor:
            return torch.stack([image["scores"].max() for image in found])

        x = torch.rand(2, 3, 320, 320)
        made = cnnviz.explain(net, x, "saliency", target=best_box)
        assert made.values.shape == (2, 1, 320, 320)
        assert made.values.amax((1, 2, 3)).min() > 0

    def test_embedding(self) -> None:
        net = nn.Sequential(*network()[:8])
        reference = net(torch.rand(1, 3, 16, 16)).detach()

        def likeness(embedding: Tensor) -> Tensor:
            return nn.functional.cosine_similarity(embedding, reference)

        made = cnnviz.explain(net, torch.rand(2, 3, 16, 16), "occlusion", window=6, stride=5, target=likeness)
        assert made.values.std() > 0

    def test_caption(self) -> None:
        words = [3, 1, 2]

        class Captioner(nn.Module):
            """Gives logits of each next word, (N, steps, words)."""

            def __init__(self) -> None:
                super().__init__()
                self.eye, self.voice = nn.Sequential(*network()[:8]), nn.GRU(4, 8, batch_first=True)
                self.say = nn.Linear(8, 4)

            def forward(self, x: Tensor) -> Tensor:
                told = nn.functional.one_hot(torch.tensor([0, *words[:-1]]), 4).float().expand(len(x), -1, -1)
                return self.say(self.voice(told, self.eye(x)[None])[0])

        def log_likelihood(logits: Tensor) -> Tensor:
            return logits.log_softmax(2)[:, range(3), words].sum(1)

        made = cnnviz.explain(
            Captioner().eval(), torch.rand(2, 3, 16, 16), "grad-cam", target=log_likelihood, relu=False
        )
        assert made.provenance.layer == "eye.5"
        assert made.values.std() > 0
