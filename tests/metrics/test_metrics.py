"""Metrics beside their twins and beside torchcam, captum and Quantus."""

from __future__ import annotations

from typing import Any

import captum.metrics
import pytest
import quantus
import torch
import torchcam.methods
import torchcam.metrics
from quantus.functions.similarity_func import correlation_spearman
from torch import Tensor, nn

import cnnviz
from cnnviz import InputError, OptionError, TargetError
from cnnviz.metrics import available, measure
from tests.reference.metrics import area_of_curve, blurred, box_energy, pointing_game
from tests.techniques.networks import SIZE, TARGET, images, network

BOXES = [[[4.0, 8.0, 40.0, 60.0]], [[0.0, 0.0, 20.0, 20.0], [30.0, 30.5, 64.0, 50.2]]]
STEPS = 16  # divides the number of pixels, as torchcam wants


class Small(nn.Module):
    """A network of few weights in double precision, for twins in loops."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu().mean((2, 3)))


@pytest.fixture
def small() -> nn.Module:
    return Small().double().eval()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return network("resnet18", torch.float64)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return images(torch.float64)


@pytest.fixture(scope="module")
def cams(net: nn.Module, x: Tensor) -> Tensor:
    """torchcam's own maps of probabilities, as its metrics make them, (N, 1, h, w) in [0, 1]."""
    with torchcam.methods.GradCAM(net, "layer3") as extractor:
        return extractor(TARGET, probabilities(net(x.clone().requires_grad_())))[0][:, None].detach()


def probabilities(output: Tensor) -> Tensor:
    return output.softmax(1)


def torchcam_means(net: nn.Module, x: Tensor, kind: Any, **given: Any) -> dict[str, float]:
    with torchcam.methods.GradCAM(net, "layer3") as extractor:
        metric = kind(extractor, probabilities, **given)
        metric.update(x.clone().requires_grad_(), TARGET)
        return metric.summary()


# ---------------------------------------------------------------- insertion and deletion


@pytest.mark.parametrize("metric", ["deletion", "insertion"])
def test_curves_equal_the_twin(small: nn.Module, metric: str) -> None:
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    heat = torch.randn(2, 1, 9, 11, dtype=torch.float64)
    heat[1] = heat[1].round()  # equal values go in the order of the pixels
    made = measure(small, x, heat, metric, target=[1, 4], steps=7, sigma=1.5)
    assert made.axes == (f"share of pixels {metric[:-3]}ed", "score of the target")
    for i, target in enumerate([1, 4]):

        def probability(image: Tensor, target: int = target) -> float:
            return float(small(image[None]).detach().softmax(1)[0, target])

        inserting = metric == "insertion"
        empty = blurred(x[i], 1.5, 2) if inserting else torch.zeros_like(x[i])
        area, curve = area_of_curve(probability, x[i], heat[i, 0], empty, 7, inserting=inserting)
        assert float(made.values[i]) == pytest.approx(area, rel=1e-9)
        assert made.curves[i].tolist() == pytest.approx(curve, rel=1e-9)
        assert made.places.tolist() == pytest.approx([round(99 * k / 7) / 99 for k in range(8)])


def test_curves_equal_torchcam(net: nn.Module, x: Tensor, cams: Tensor) -> None:
    grey = (0.2, -0.1, 0.4)
    baseline = x.new_tensor(grey)[None, :, None, None]
    theirs = torchcam_means(net, x, torchcam.metrics.DeletionInsertionMetric, steps=STEPS, baseline=baseline)
    for metric in ("deletion", "insertion"):
        mine = measure(net, x, cams, metric, target=TARGET, steps=STEPS, baseline=grey).values
        # torchcam integrates over shares of pixels in single precision
        assert float(mine.mean()) == pytest.approx(theirs[f"{metric}_auc"], rel=1e-6)


def test_curve_of_the_pixels_by_hand() -> None:
    """Score: the mean. Pixels 4, 3, 2, 1 go one by one: means 2.5, 1.5, 0.75, 0.25, 0."""

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3))

    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    made = measure(Mean(), image, image, "deletion", target=lambda output: output, steps=4)
    assert made.curves.tolist() == [[2.5, 1.5, 0.75, 0.25, 0.0]]
    assert made.values.tolist() == [0.9375]  # (2.5 / 2 + 1.5 + 0.75 + 0.25) / 4
    made = measure(Mean(), image, image, "insertion", target=lambda output: output, steps=4, baseline=0.0)
    assert made.curves.tolist() == [[0.0, 1.0, 1.75, 2.25, 2.5]]
    assert made.values.tolist() == [1.5625]


# ---------------------------------------------------------------- confidence


def test_drop_and_increase_equal_torchcam(net: nn.Module, x: Tensor, cams: Tensor) -> None:
    drop = measure(net, x, cams, "average-drop", target=TARGET).values
    increase = measure(net, x, cams, "increase-in-confidence", target=TARGET).values
    theirs = torchcam_means(net, x, torchcam.metrics.ClassificationMetric)
    # torchcam adds 1e-7 to what it divides by: the score, and the range of the map, which so ends just below 1
    assert float(drop.mean()) == pytest.approx(theirs["avg_drop"], rel=2e-5)
    assert float(increase.mean()) == theirs["conf_increase"]
    assert {*increase.tolist()} <= {0.0, 1.0}


def test_a_map_of_ones_loses_what_a_map_of_zeros_loses() -> None:
    """Neither points at anything: the image is gone, and the score is that of zeros."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    image = torch.rand(1, 3, 2, 2, dtype=torch.float64)
    lost = measure(net, image, torch.zeros(1, 1, 2, 2), "average-drop", target=0).values
    before, after = (net(shown).detach().softmax(1)[0, 0] for shown in (image, image * 0))
    assert float(lost) == pytest.approx(float((before - after).relu() / before))


# ---------------------------------------------------------------- localisation


@pytest.mark.parametrize("tolerance", [0.0, 7.0])
def test_pointing_game_and_energy_equal_the_twins(net: nn.Module, x: Tensor, tolerance: float) -> None:
    heat = torch.randn(2, 1, SIZE, SIZE, dtype=torch.float64).mul(1.5).round()  # several maxima
    hits = measure(net, x, heat, "pointing-game", target=TARGET, boxes=BOXES, tolerance=tolerance).values
    energy = measure(net, x, heat, "box-energy", target=TARGET, boxes=BOXES).values
    for i, boxes in enumerate(BOXES):
        assert float(hits[i]) == pytest.approx(pointing_game(heat[i, 0], boxes, tolerance))
        assert float(energy[i]) == pytest.approx(box_energy(heat[i, 0], boxes), rel=1e-9)


def test_pointing_game_and_energy_equal_quantus(net: nn.Module, x: Tensor, cams: Tensor) -> None:
    large = nn.functional.interpolate(cams, (SIZE, SIZE), mode="bilinear")
    masks = torch.zeros(2, 1, SIZE, SIZE)
    boxes = [[[8, 8, 40, 60]], [[0, 30, 64, 50]]]
    for mask, ((left, top, right, bottom),) in zip(masks, boxes, strict=True):
        mask[:, top:bottom, left:right] = 1
    given = {
        "model": net,
        "x_batch": x.numpy(),
        "y_batch": torch.tensor(TARGET).numpy(),
        "a_batch": large.numpy(),
        "s_batch": masks.numpy(),
    }
    for metric, kind in (("pointing-game", quantus.PointingGame), ("box-energy", quantus.RelevanceMassAccuracy)):
        theirs = kind(abs=False, normalise=False, disable_warnings=True)(**given)
        mine = measure(net, x, large, metric, target=TARGET, boxes=boxes).values
        assert mine.tolist() == pytest.approx([float(value) for value in theirs], rel=1e-9)


def test_samples_without_a_box_are_not_counted(net: nn.Module, x: Tensor) -> None:
    for metric in ("pointing-game", "box-energy"):
        values = measure(net, x, torch.rand(2, 1, 8, 8), metric, target=TARGET, boxes=[[], BOXES[1]]).values
        assert values.isnan().tolist() == [True, False]


def test_a_map_without_positive_values_has_no_energy(net: nn.Module, x: Tensor) -> None:
    made = measure(net, x, -torch.rand(2, 1, 8, 8), "box-energy", target=TARGET, boxes=BOXES)
    assert made.values.tolist() == [0.0, 0.0]


# ---------------------------------------------------------------- infidelity and sensitivity


def drawn_squares(samples: int, window: int) -> list[tuple[int, int]]:
    """The places that the metric draws: 16 at a time, rows before columns."""
    generator, found = torch.Generator().manual_seed(5), []
    for start in range(0, samples, 16):
        many = min(16, samples - start)
        top = torch.randint(SIZE - window + 1, (many,), generator=generator).tolist()
        left = torch.randint(SIZE - window + 1, (many,), generator=generator).tolist()
        found += list(zip(top, left, strict=True))
    return found


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("perturbation", ["squares", "noise"])
def test_infidelity_equals_captum(net: nn.Module, x: Tensor, perturbation: str, normalise: bool) -> None:
    heat = cnnviz.explain(net, x, "saliency", target=TARGET, sign="signed", channels="none").values
    samples = 20
    given = {"samples": samples, "perturbation": perturbation, "noise": 0.3, "window": 24, "normalise": normalise}
    mine = measure(net, x, heat, "infidelity", target=TARGET, seed=5, **given).values

    def changed(repeated: Tensor) -> tuple[Tensor, Tensor]:
        if perturbation == "noise":
            generator = torch.Generator().manual_seed(5)
            noise = [torch.randn(n, 3, SIZE, SIZE, generator=generator) for n in (16, 4)]
            taken = 0.3 * torch.cat(noise).to(repeated).repeat(2, 1, 1, 1)
            return taken, repeated - taken
        share = torch.zeros_like(repeated)
        for i, (top, left) in enumerate(drawn_squares(samples, 24) * 2):
            share[i, :, top : top + 24, left : left + 24] = 1
        return share, repeated * (1 - share)

    theirs = captum.metrics.infidelity(
        net, changed, x, heat, target=torch.tensor(TARGET), n_perturb_samples=samples, normalize=normalise
    )
    assert mine.tolist() == pytest.approx(theirs.tolist(), rel=1e-6)


def test_infidelity_of_a_linear_network_and_its_gradient_is_nothing() -> None:
    """For a linear score the gradient foretells every change: Yeh 2019, below definition 2.1."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    heat = cnnviz.explain(net, x, "saliency", target=[0, 3], sign="signed", channels="none").values
    given = {"target": [0, 3], "perturbation": "noise", "samples": 10}
    assert measure(net, x, heat, "infidelity", normalise=False, **given).values.abs().max() < 1e-12
    assert measure(net, x, 7 * heat, "infidelity", normalise=True, **given).values.abs().max() < 1e-12
    assert measure(net, x, 7 * heat, "infidelity", normalise=False, **given).values.min() > 1e-3
    covered = measure(net, x, heat * x, "infidelity", target=[0, 3], window=5, normalise=False, samples=10)
    assert covered.values.abs().max() < 1e-12


def test_sensitivity_equals_captum(net: nn.Module, x: Tensor) -> None:
    explainer = cnnviz.Explainer(net, "saliency", sign="signed", channels="none")
    mine = measure(net, x, explainer, "max-sensitivity", target=TARGET, samples=6, radius=0.1, seed=3)
    noise = torch.Generator().manual_seed(3)
    moves = [torch.rand(3, SIZE, SIZE, generator=noise) * 2 - 1 for _ in range(6)]

    def gradients(given: Any, **_: Any) -> tuple[Tensor, ...]:
        (inputs,) = given if isinstance(given, tuple) else (given,)
        rows = [TARGET[i * 2 // len(inputs)] for i in range(len(inputs))]
        inputs = inputs.detach().requires_grad_()
        with torch.enable_grad():
            scores = net(inputs)[range(len(rows)), rows]
            return torch.autograd.grad(scores.sum(), inputs)

    theirs = captum.metrics.sensitivity_max(
        gradients,
        x,
        perturb_func=lambda repeated: repeated + 0.1 * torch.stack(moves).to(repeated).repeat(2, 1, 1, 1),
        n_perturb_samples=6,
    )
    assert mine.values.tolist() == pytest.approx(theirs.tolist(), rel=1e-6)


# ---------------------------------------------------------------- parameter randomisation


def test_randomisation_follows_quantus_rank_correlation(x: Tensor) -> None:
    """The curve is Spearman's correlation of the maps, as Quantus computes it, with ties."""
    net = network("resnet18", torch.float64)
    seen: list[Tensor] = []

    def watched(request: cnnviz.Request, options: cnnviz.Options) -> Tensor:
        """Keep every map."""
        heat = request.gradient().abs().sum(1, keepdim=True)
        seen.append((heat / heat.amax()).round(decimals=2))
        return seen[-1]

    made = measure(net, x, cnnviz.Technique("watched", watched), "parameter-randomisation", target=TARGET, stages=4)
    assert len(seen) == 5
    assert made.curves.shape == (2, 5)
    assert made.places.tolist() == [0, 10, 20, 30, 41]  # of 20 convolutions, 20 normalisations and a linear layer
    assert torch.equal(made.values, made.curves[:, -1].abs())
    for stage, maps in enumerate(seen):
        for i in range(2):
            theirs = correlation_spearman(seen[0][i].flatten().numpy(), maps[i].flatten().numpy())
            assert float(made.curves[i, stage]) == pytest.approx(float(theirs), abs=1e-9)


def test_a_map_that_looks_at_the_image_alone_does_not_notice(small: nn.Module) -> None:
    def edges(request: cnnviz.Request, options: cnnviz.Options) -> Tensor:
        """Show the image itself."""
        request.score()
        return request.inputs.sum(1, keepdim=True)

    x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    made = measure(small, x, cnnviz.Technique("edges", edges), "parameter-randomisation")
    assert made.values.tolist() == pytest.approx([1.0, 1.0])


def test_a_map_that_is_turned_around_does_notice_nothing_either(small: nn.Module) -> None:
    """A correlation of -1 is no better than one of 1: the curve keeps the sign, the value does not."""
    turns: list[int] = []

    def turned(request: cnnviz.Request, options: cnnviz.Options) -> Tensor:
        """Show the image, and its negative ever after."""
        request.score()
        turns.append(1)
        return request.inputs.sum(1, keepdim=True) * (1 if len(turns) == 1 else -1)

    x = torch.rand(1, 3, 12, 12, dtype=torch.float64)
    made = measure(small, x, cnnviz.Technique("turned", turned), "parameter-randomisation")
    assert made.curves[0, -1].item() == pytest.approx(-1.0)
    assert made.values.item() == pytest.approx(1.0)


def test_a_map_that_vanishes_says_nothing(small: nn.Module) -> None:
    turns: list[int] = []

    def vanishes(request: cnnviz.Request, options: cnnviz.Options) -> Tensor:
        """Show the image, and nothing of the first sample ever after."""
        request.score()
        turns.append(1)
        seen = torch.tensor([float(len(turns) == 1), 1.0], dtype=torch.float64)[:, None, None, None]
        return request.inputs.sum(1, keepdim=True) * seen

    x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    made = measure(small, x, cnnviz.Technique("vanishes", vanishes), "parameter-randomisation")
    assert made.values.isnan().tolist() == [True, False]
    assert made.curves[0, 0] == pytest.approx(1.0)
    assert made.curves[0, 1:].isnan().all()


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("metric", ["infidelity", "deletion", "average-drop"])
def test_many_images_keep_to_the_budget(metric: str, target: int | None) -> None:
    sizes: list[int] = []

    class Watched(Small):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(0 if x.is_meta else len(x))
            return super().forward(x)

    net, x = Watched().eval(), torch.randn(40, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(40, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    made = measure(net, x, maps, metric, target=target, memory="2MiB")
    assert max(sizes) < 20
    plenty = measure(net, x, maps, metric, target=target, memory="1GiB")
    torch.testing.assert_close(made.values, plenty.values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("draw", ["shuffle", "reset"])
def test_randomisation_begins_with_the_last_layer_and_leaves_the_model_alone(small: nn.Module, draw: str) -> None:
    found: list[dict[str, Tensor]] = []

    def watched(request: cnnviz.Request, options: cnnviz.Options) -> Tensor:
        """Keep every network's weights."""
        found.append({name: p.detach().clone() for name, p in request.model.named_parameters()})
        return request.gradient()

    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    x = torch.rand(1, 3, 12, 12, dtype=torch.float64)
    measure(small, x, cnnviz.Technique("watched", watched), "parameter-randomisation", stages=2, draw=draw)
    same = [{name for name in before if torch.equal(before[name], weights[name])} for weights in found]
    assert same == [set(before), {"first.weight", "first.bias"}, set()]
    assert all(torch.equal(before[name], p) for name, p in small.named_parameters())
    if draw == "shuffle":
        for name, weights in before.items():
            assert torch.equal(found[-1][name].flatten().sort().values, weights.flatten().sort().values)


# ---------------------------------------------------------------- what is given


def test_a_heatmap_is_measured_for_what_it_explains(small: nn.Module) -> None:
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    heat = cnnviz.explain(small, x, "saliency", target=[4, 0])
    by_itself = measure(small, x, heat, "deletion")
    assert torch.equal(by_itself.values, measure(small, x, heat.values, "deletion", target=[4, 0]).values)
    assert torch.equal(by_itself.values, measure(small, x, "saliency", "deletion", target=[4, 0]).values)


def test_pictures_are_prepared_and_scores_of_callables_are_raw() -> None:
    model = cnnviz.load_model()
    from cnnviz.data import demo_picture

    made = measure(model, demo_picture(), "grad-cam", "deletion", target="Egyptian cat", steps=2)
    assert float(made.curves[0, 0]) == pytest.approx(0.718, abs=0.01)
    raw = measure(model, demo_picture(), "grad-cam", "deletion", target=lambda output: output[:, 285], steps=2)
    assert float(raw.curves[0, 0]) == pytest.approx(18.87, abs=0.05)


def squared(request: cnnviz.Request, options: cnnviz.Options) -> cnnviz.Gallery:
    """Return no map."""
    return cnnviz.Gallery(images=torch.rand(1, 3, 4, 4))


def test_bad_input_is_told(small: nn.Module) -> None:
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    heat = torch.rand(2, 1, 12, 12)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (InputError, r"compares with boxes; give boxes", {"metric": "pointing-game"}),
        (InputError, "explains again, and got maps alone", {"metric": "max-sensitivity"}),
        (InputError, r"expected \(N, C, h, w\)", {"explained": heat[:1]}),
        (InputError, r"expected \(N, C, h, w\)", {"explained": heat[:, 0]}),
        (InputError, "not finite", {"explained": heat / 0}),
        (InputError, "expected floating point", {"explained": heat > 0.5}),
        (InputError, r"expected \(N, C, h, w\)", {"explained": heat[:, :0]}),
        (InputError, "boxes: got 5, expected those of each input", {"metric": "box-energy", "boxes": 5}),
        (InputError, "boxes of input 0: got None", {"metric": "box-energy", "boxes": [None, []]}),
        (InputError, "boxes: got those of 1 inputs, expected 2", {"metric": "box-energy", "boxes": BOXES[:1]}),
        (InputError, "left, top, right and bottom", {"metric": "box-energy", "boxes": [[[5, 5, 1, 9]], []]}),
        (InputError, "left, top, right and bottom", {"metric": "box-energy", "boxes": [[[5, 5, 9]], []]}),
        (OptionError, "unknown option 'step' of 'deletion'; nearest: 'steps'", {"step": 3}),
        (OptionError, "'window' of 'infidelity': got .13, 13.", {"metric": "infidelity", "window": 13}),
        (TargetError, "got 2 for each input, expected one", {"target": cnnviz.top(2)}),
        (cnnviz.PluginError, "no metric 'delection'.* 'deletion'", {"metric": "delection"}),
        (cnnviz.PluginError, "no heatmap|by a heatmap", {"explained": cnnviz.Technique("squared", squared)}),
    ]
    for error, told, changed in cases:
        given = {"explained": heat, "metric": "deletion", "target": [0, 1], **changed}
        with pytest.raises(error, match=told):
            measure(small, x, **given)
    whole = cnnviz.explain(small, x, "saliency", target=lambda output: output[:, 0])
    with pytest.raises(TargetError, match="give the target that it explains"):
        measure(small, x, whole, "deletion")


def test_maps_of_numpy_are_measured_and_left_alone(small: nn.Module) -> None:
    def spoils(case: cnnviz.Case, options: cnnviz.Options) -> Tensor:
        """Write to the maps."""
        return case.values.zero_().sum((1, 2, 3))

    x, heat = torch.rand(2, 3, 12, 12, dtype=torch.float64), torch.rand(2, 1, 12, 12, dtype=torch.float64)
    before = heat.clone()
    measure(small, x, heat, cnnviz.Metric("spoils", spoils), target=0)
    assert torch.equal(heat, before)
    theirs = measure(small, x, heat.numpy(), "deletion", target=0)
    assert torch.equal(theirs.values, measure(small, x, heat, "deletion", target=0).values)


def test_maps_that_show_nothing_are_not_called_stable() -> None:
    """Gradients of a constant score: nothing changes, and nothing was explained."""
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 3))
    nn.init.constant_(net[0].bias, -100)
    for metric in ("max-sensitivity", "parameter-randomisation"):
        made = measure(net.eval(), torch.rand(2, 3, 8, 8), "saliency", metric, target=0)
        assert made.values.isnan().all()


def test_a_metric_of_ones_own_is_measured(small: nn.Module) -> None:
    def total(case: cnnviz.Case, options: cnnviz.Options) -> Tensor:
        """Add the map up."""
        return case.maps.sum((1, 2))

    x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    heat = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    made = measure(small, x, heat, cnnviz.Metric("total", total), target=0)
    assert made.values.tolist() == pytest.approx(heat.sum((1, 2, 3)).tolist())
    wrong = cnnviz.Metric("wrong", lambda case, options: 1.0)
    with pytest.raises(cnnviz.PluginError, match="metric 'wrong' returned float"):
        measure(small, x, heat, wrong, target=0)
    with pytest.raises(cnnviz.PluginError, match="returned 1 values for 2 samples"):
        measure(small, x, heat, cnnviz.Metric("short", lambda case, options: torch.ones(1)), target=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("metric", sorted(available()))
def test_half_precision_is_measured_in_single(dtype: torch.dtype, metric: str) -> None:
    net, x = Small().to(dtype).eval(), torch.randn(2, 3, 12, 12).to(dtype)
    heat = 1e5 * torch.rand(2, 1, 12, 12)  # more than half precision holds
    explained = "saliency" if available()[metric].explains else heat
    given: dict[str, Any] = {"target": [0, 1], "boxes": [[[0, 0, 6, 6]], [[3, 3, 12, 12]]]}
    made = measure(net, x, explained, metric, **given)
    assert made.values.dtype == torch.float32
    assert torch.isfinite(made.values).all()
    if metric == "pointing-game":
        single = measure(
            Small().eval(), x.float(), heat, metric, target=[0, 1], boxes=[[[0, 0, 6, 6]], [[3, 3, 12, 12]]]
        )
        assert torch.equal(made.values, single.values)


@pytest.mark.parametrize("metric", sorted(available()))
def test_channels_last_changes_nothing(small: nn.Module, metric: str) -> None:
    x = torch.randn(2, 3, 12, 10, dtype=torch.float64)
    given: dict[str, Any] = {"target": [0, 1], "boxes": [[[0, 0, 6, 6]], [[3, 3, 10, 12]]]}
    plain = measure(small, x, "saliency", metric, **given).values
    last = measure(small, x.to(memory_format=torch.channels_last), "saliency", metric, **given).values
    torch.testing.assert_close(plain, last)


def test_infidelity_keeps_to_the_budget() -> None:
    """Its changed images are made batch by batch."""
    sizes: list[int] = []

    class Watched(Small):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(0 if x.is_meta else len(x))
            return super().forward(x)

    x = torch.randn(8, 3, 64, 64)
    measure(Watched().eval(), x, torch.rand(8, 1, 64, 64), "infidelity", target=0, memory="1MiB", samples=20)
    assert sum(sizes) >= 160
    assert max(sizes) <= 8


def test_a_drop_of_no_score_is_unknown() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    image = torch.rand(2, 3, 2, 2, dtype=torch.float64)
    made = measure(net, image, torch.rand(2, 1, 2, 2), "average-drop", target=lambda output: output[:, 0] * 0)
    assert made.values.isnan().all()


def test_modules_that_cannot_be_pickled_are_randomised() -> None:
    import threading

    net = Small()
    net.lock = threading.Lock()
    net.tied = nn.Conv2d(3, 4, 3)
    net.tied.weight = net.first.weight
    made = measure(net.eval(), torch.rand(1, 3, 12, 12), "saliency", "parameter-randomisation", target=0)
    assert torch.isfinite(made.values).all()
