"""Styles are Gram matrices; seen in pieces, they and their gradients are the whole picture's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import cnnviz
from cnnviz import InputError, LayerError
from cnnviz.models import know_calls, survey
from cnnviz.synthesis import LEAST_TILE, Style, StyleLoss, by_size, features, shares_that_fit, style_layers
from cnnviz.synthesis.style import Piece
from cnnviz.testing import SmallNet
from tests.reference import synthesis as twin

SEEN = ("1", "4", "7")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2),
    ).double().eval().requires_grad_(False)  # fmt: skip


def picture(height: int, width: int, seed: int = 0, count: int = 1) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, height, width, generator=draws, dtype=torch.float64)


def test_style_is_the_gram_matrix_of_each_layer() -> None:
    net, x = network(), picture(12, 16)
    style = Style.of(net, SEEN, x)
    for gram, maps in zip(style.grams, features(net, SEEN, x), strict=True):
        torch.testing.assert_close(gram[0], twin.gram(maps[0]))


def test_the_style_of_a_picture_in_pieces_is_that_of_the_whole() -> None:
    net, x = network(), picture(230, 300)
    for whole, pieced in zip(Style.of(net, SEEN, x).grams, Style.of(net, SEEN, x, tile=192).grams, strict=True):
        torch.testing.assert_close(pieced, whole, rtol=1e-9, atol=1e-12)


def test_loss_is_its_formula() -> None:
    net, x, content, wanted = network(), picture(12, 16), picture(12, 16, 1), picture(20, 8, 2)
    style = Style.of(net, SEEN, wanted)
    loss = StyleLoss(
        net, [(5.0, style)], [("1", 1.0), ("4", 3.0), ("7", 1.0)], picture=content,
        content_layers=[("4", 2.0)], dream_layers=[("7", 0.5)],
    )  # fmt: skip
    total = 0.0
    for name, share in (("1", 0.2), ("4", 0.6), ("7", 0.2)):
        (mine,), (theirs,) = features(net, [name], x), features(net, [name], wanted)
        a, b = twin.gram(mine[0]), twin.gram(theirs[0])
        total += 5 * share * float((a - b).square().sum() / b.square().sum())
    (mine,), (theirs,) = features(net, ["4"], x), features(net, ["4"], content)
    total += 2 * float((mine - theirs).square().sum() / theirs.square().sum())
    (mine,), (theirs,) = features(net, ["7"], x), features(net, ["7"], content)
    total -= 0.5 * float(mine.square().sum() / theirs.square().sum())
    assert float(loss(x)) == pytest.approx(total, rel=1e-9)


def test_a_picture_in_its_own_style_is_at_no_distance() -> None:
    net, x = network(), picture(16, 16)
    loss = StyleLoss(
        net, [(1.0, Style.of(net, SEEN, x))], [(name, 1.0) for name in SEEN], picture=x, content_layers=[("7", 1.0)]
    )
    assert float(loss(x)) == pytest.approx(0, abs=1e-12)
    assert float(loss(picture(16, 16, 3))) > 0.01


def test_a_blend_is_the_weighted_mean() -> None:
    net = network()
    styles = [Style.of(net, ("4",), picture(16, 16, seed)) for seed in (1, 2)]
    mean = Style.blend(styles, (1.0, 3.0))
    torch.testing.assert_close(mean.grams[0], 0.25 * styles[0].grams[0] + 0.75 * styles[1].grams[0])


@pytest.mark.parametrize(
    ("size", "masked"),
    # A mask is averaged over the places of a map, which a size that is no multiple of the stride shifts.
    [((96, 224), True), ((256, 160), True), ((300, 250), False), ((201, 197), False)],
)
def test_pieces_add_up_to_the_whole(size: tuple[int, int], masked: bool) -> None:
    net, x, content = network(), picture(*size), picture(*size, seed=1)
    mask = (torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(5)) > 0.5).double()
    names = [(name, 1.0) for name in SEEN]
    styles = [
        (3.0, Style.of(net, SEEN, picture(40, 40, 2), mask if masked else None)),
        (1.0, Style.of(net, SEEN, picture(40, 40, 3))),
    ]

    def loss(tile: int | None) -> StyleLoss:
        return StyleLoss(
            net, styles, names, picture=content, content_layers=[("4", 2.0)], dream_layers=[("7", 0.5)], tile=tile
        )

    slopes, values = [], []
    for tile in (None, 192):
        y = x.clone().requires_grad_()
        value = loss(tile)(y)
        (slope,) = torch.autograd.grad(value.sum(), y)
        slopes.append(slope)
        values.append(value.detach())
    assert len(loss(192).pieces(x)) > 1
    torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=0)
    assert float((slopes[1] - slopes[0]).abs().max() / slopes[0].abs().max()) < 1e-9


def test_masks_keep_styles_apart() -> None:
    net, x = network(), picture(16, 32)
    left = torch.zeros(1, 1, 16, 32, dtype=torch.float64)
    left[..., :16] = 1
    style = Style.of(net, ("1",), picture(16, 16, 4), left)
    y = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(StyleLoss(net, [(1.0, style)], [("1", 1.0)])(y).sum(), y)
    assert slope[..., :16].abs().max() > 0
    assert slope[..., 18:].abs().max() == 0, "what lies further than the field of a unit"


def test_layers_are_chosen_by_size_and_field() -> None:
    net = network().float()
    called = survey(net, torch.zeros(1, 3, 64, 64)).layers
    assert [[layer.name for layer in group] for group in by_size(called)] == [["1"], ["4"], ["7"]]
    assert style_layers(net, torch.zeros(1, 3, 64, 64)) == SEEN
    assert style_layers(net, torch.zeros(1, 3, 10, 64)) == ("1", "4"), "unit 7 sees 18 pixels"
    with pytest.raises(
        LayerError, match=r"layer '7' sees 18 x 18 pixels, more than the style image of 10 x 64; give a"
    ):
        style_layers(net, torch.zeros(1, 3, 10, 64), ("1", "7"))
    with pytest.raises(InputError, match=r"cannot run on inputs of shape \(1, 3, 2, 2\)"):
        style_layers(net, torch.zeros(1, 3, 2, 2))


def test_layers_without_maps_are_told() -> None:
    net = network().float()
    for name in ("8", "10"):
        with pytest.raises(LayerError, match=rf"layer '{name}' returns .* name a layer before the global pooling"):
            features(net, [name], torch.zeros(1, 3, 32, 32))


def test_forward_passes_end_with_the_last_layer_needed() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    net, x = network(), picture(16, 16)
    know_calls(net, survey(net, x).counts)
    first, second = (2 * net.get_submodule(name).weight.numel() for name in ("0", "3"))
    first, second = 256 * first, 64 * second
    loss = StyleLoss(net, [(1.0, Style.of(net, ("1", "4"), x))], [("1", 1.0), ("4", 1.0)])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features(net, ("1", "4"), x)
    assert counter.get_total_flops() == first + second
    y = x.clone().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(loss(y).sum(), y)
    by_operator = counter.get_flop_counts()["Global"]
    convolved = sum(count for operator, count in by_operator.items() if "convolution" in str(operator))
    assert convolved == 2 * (first + second), "as much backwards, to the picture alone"


def test_pieces_are_no_larger_than_was_asked_for() -> None:
    for tile in (LEAST_TILE, 200, 512):
        for piece in Piece.all((700, 300), tile):
            assert max(part.stop - part.start for part in piece.outer) <= tile
    with pytest.raises(cnnviz.OptionError, match="tile: got 159, expected at least 160 pixels"):
        Piece.all((700, 300), 159)


def test_pieces_fit_the_memory_or_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is checked against the budget is what is run."""
    fitted, seen = [], []
    fits, every = cnnviz.Request.fits, Piece.all

    def noted(request: cnnviz.Request, example: Tensor) -> bool:
        fitted.append(max(example.shape[2:]))
        return fits(request, example)

    def cut(size: tuple[int, int], tile: int | None) -> list[Piece]:
        pieces = every(size, tile)
        seen.extend(max(part.stop - part.start for part in piece.outer) for piece in pieces)
        return pieces

    monkeypatch.setattr(cnnviz.Request, "fits", noted)
    monkeypatch.setattr(Piece, "all", cut)
    net, x = SmallNet().eval(), torch.rand(1, 3, 320, 320)
    cnnviz.explain(net, x, "texture-gram", layer="conv2", steps=1, memory="16MiB")
    assert max(seen) <= fitted[-1] < 320
    with pytest.raises(InputError, match="a piece of 160 x 160 pixels does not fit the memory budget"):
        cnnviz.explain(net, x, "texture-gram", layer="conv2", steps=1, memory="6MiB")


@pytest.mark.parametrize("size", [(193, 60), (258, 195), (194, 194)])
def test_a_last_piece_too_small_for_a_place_adds_nothing(size: tuple[int, int]) -> None:
    net, x, content = network(), picture(*size), picture(*size, seed=1)
    mask = torch.ones(1, 1, *size, dtype=torch.float64)
    style, shares = Style.of(net, SEEN[1:], picture(40, 40, 2), mask), [(name, 1.0) for name in SEEN[1:]]
    values, slopes = [], []
    for tile in (None, 192):
        y = x.clone().requires_grad_()
        loss = StyleLoss(net, [(1.0, style)], shares, picture=content, content_layers=[("7", 1.0)], tile=tile)
        values.append(loss(y))
        slopes.append(torch.autograd.grad(values[-1].sum(), y)[0])
    assert min(piece.inner[0].stop - piece.inner[0].start for piece in Piece.all(size, 192)) < 4
    torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0, atol=1e-9 * float(slopes[0].abs().max()))
    for whole, pieced in zip(Style.of(net, SEEN, x).grams, Style.of(net, SEEN, x, tile=192).grams, strict=True):
        torch.testing.assert_close(pieced, whole, rtol=1e-9, atol=1e-12)


def test_a_layer_is_named_once_by_whatever_name() -> None:
    net = network().float()
    with pytest.raises(LayerError, match="style layer '1' is named twice"):
        style_layers(net, torch.zeros(1, 3, 64, 64), ("1", "1#0"))
    with pytest.raises(LayerError, match="layer '7#0' sees 18 x 18 pixels"):
        style_layers(net, torch.zeros(1, 3, 10, 64), ("7#0",))


def test_layers_that_see_too_much_go_with_their_weights() -> None:
    net, shares = network().float(), [("1", 1.0), ("4", 0.0), ("7", 3.0)]
    assert shares_that_fit(net, torch.zeros(1, 3, 64, 64), shares) == [("1", 1.0), ("7", 3.0)]
    assert shares_that_fit(net, torch.zeros(1, 3, 10, 64), shares) == [("1", 1.0)]
    with pytest.raises(LayerError, match="layer '7' sees 18 x 18 pixels"):
        shares_that_fit(net, torch.zeros(1, 3, 10, 64), shares[1:])
