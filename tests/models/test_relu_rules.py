"""Every spelling of a rectifier follows the rule, forward values stay, and what is no rectifier is left alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cnnviz import ModelError, OptionError, explain, relu_rule
from tests.reference.relu_rules import ruled_gradient

RULES = ("deconvnet", "guided")
Spelling = Callable[[Tensor], Tensor]

_X = torch.linspace(-2.3, 8.1, 25, dtype=torch.float64)
_CAME = torch.cos(torch.arange(25, dtype=torch.float64) * 2.1)


def then(act: Callable[[Tensor], object]) -> Spelling:
    """A rectifier that works in place and whose result is ignored."""

    def spelled(x: Tensor) -> Tensor:
        y = x * 1
        act(y)
        return y

    return spelled


def zeros(x: Tensor) -> Tensor:
    return torch.zeros_like(x).detach()


def into_out(x: Tensor) -> Tensor:
    with torch.no_grad():
        place = torch.empty_like(x)
    torch.clamp(x * 1, min=0, out=place)
    return place


RELUS: dict[str, Spelling] = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU(inplace)": lambda x: nn.ReLU(inplace=True)(x * 1),
    "nn.ReLU(inplace), ignored": then(nn.ReLU(inplace=True)),
    "F.relu": functional.relu,
    "F.relu(input=)": lambda x: functional.relu(input=x),
    "F.relu(inplace=True)": lambda x: functional.relu(x * 1, inplace=True),
    "F.relu(x, True)": lambda x: functional.relu(x * 1, True),
    "F.relu(inplace=True), ignored": then(lambda y: functional.relu(y, inplace=True)),
    "F.relu_": lambda x: functional.relu_(x * 1),
    "torch.relu": torch.relu,
    "torch.relu_, ignored": then(torch.relu_),
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: (x * 1).relu_(),
    "Tensor.relu_, ignored": then(lambda y: y.relu_()),
    "aten.relu": torch.ops.aten.relu,
    "clamp(min=0)": lambda x: torch.clamp(x, min=0),
    "clamp(0)": lambda x: torch.clamp(x, 0),
    "clamp(input=)": lambda x: torch.clamp(input=x, min=0.0),
    "clamp(min=tensor)": lambda x: x.clamp(min=torch.tensor(0.0, dtype=x.dtype)),
    "Tensor.clamp": lambda x: x.clamp(min=0),
    "Tensor.clamp_, ignored": then(lambda y: y.clamp_(min=0)),
    "clip": lambda x: torch.clip(x, 0),
    "Tensor.clip_, ignored": then(lambda y: y.clip_(0)),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "Tensor.clamp_min_, ignored": then(lambda y: y.clamp_min_(0)),
    "maximum(x, 0)": lambda x: torch.maximum(x, zeros(x)),
    "maximum(0, x)": lambda x: torch.maximum(zeros(x), x),
    "maximum(input=, other=)": lambda x: torch.maximum(input=x, other=zeros(x)),
    "Tensor.maximum": lambda x: x.maximum(zeros(x)),
    "max(x, 0)": lambda x: torch.max(x, zeros(x)),
    "max(0, x)": lambda x: torch.max(zeros(x), x),
    "fmax(x, 0)": lambda x: torch.fmax(x, zeros(x)),
    "nn.Threshold": nn.Threshold(0, 0),
    "F.threshold": lambda x: functional.threshold(x, 0, 0),
    "F.threshold(inplace), ignored": then(lambda y: functional.threshold(y, 0, 0, True)),
    "torch.threshold": lambda x: torch.threshold(x, 0, 0),
    "torch.threshold_, ignored": then(lambda y: torch.threshold_(y, 0, 0)),
    "clamp(min=numpy's)": lambda x: x.clamp(min=numpy.float32(0)),
    "view, in place": then(lambda y: y[:].relu_()),
    "out=": into_out,
}
CEILINGS: dict[str, Spelling] = {
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6(inplace), ignored": then(nn.ReLU6(inplace=True)),
    "F.relu6": functional.relu6,
    "F.relu6(x, True), ignored": then(lambda y: functional.relu6(y, True)),
    "F.relu6, written to later": lambda x: functional.relu6(x * 1).mul_(1),
    "F.relu6(x, True), written to later": lambda x: functional.relu6(x * 1, True).mul_(1),
    "nn.Hardtanh(0, 6)": nn.Hardtanh(0, 6),
    "F.hardtanh(min_val=0)": lambda x: functional.hardtanh(x, min_val=0, max_val=6),
    "F.hardtanh_, ignored": then(lambda y: functional.hardtanh_(y, 0, 6)),
    "clamp(0, 6)": lambda x: x.clamp(0, 6),
    "Tensor.clamp_(0, 6), ignored": then(lambda y: y.clamp_(min=0, max=6)),
}
SMOOTH: dict[str, Spelling] = {
    "nn.LeakyReLU": nn.LeakyReLU(0.1),
    "F.leaky_relu(x, 0.1, True), ignored": then(lambda y: functional.leaky_relu(y, 0.1, True)),
    "F.leaky_relu_, ignored": then(functional.leaky_relu_),
    "nn.PReLU": lambda x: functional.prelu(x, torch.tensor([0.25], dtype=x.dtype)),
    "Tensor.prelu": lambda x: x.prelu(torch.tensor([0.25], dtype=x.dtype)),
    "nn.RReLU in eval": nn.RReLU().eval(),
    "nn.ELU": nn.ELU(),
    "nn.ELU(inplace), ignored": then(nn.ELU(inplace=True)),
    "nn.SELU": nn.SELU(),
    "nn.SELU(inplace), ignored": then(nn.SELU(inplace=True)),
    "nn.CELU": nn.CELU(0.7),
    "torch.celu_, ignored": then(torch.celu_),
    "nn.SiLU": nn.SiLU(),
    "nn.SiLU(inplace), ignored": then(nn.SiLU(inplace=True)),
    "nn.GELU": nn.GELU(),
    "nn.GELU('tanh')": nn.GELU(approximate="tanh"),
    "nn.Mish": nn.Mish(),
    "nn.Mish(inplace), ignored": then(nn.Mish(inplace=True)),
    "nn.Hardswish": nn.Hardswish(),
    "nn.Hardswish(inplace), ignored": then(nn.Hardswish(inplace=True)),
    "nn.Softplus": nn.Softplus(),
}
SPELLINGS = {**RELUS, **CEILINGS, **SMOOTH}


def parametrize(spellings: dict[str, Spelling]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("act", spellings.values(), ids=spellings.keys())


def ruled(act: Spelling, rule: str, x: Tensor = _X, came: Tensor = _CAME) -> Tensor:
    """The gradient that the rule lets through to x."""
    x = x.clone().requires_grad_()
    with relu_rule(rule):
        y = act(x)
    (back,) = torch.autograd.grad(y, x, came)
    return back


def slope(act: Spelling, x: Tensor = _X) -> Tensor:
    x = x.clone().requires_grad_()
    (own,) = torch.autograd.grad(act(x).sum(), x)
    return own


# ---------------------------------------------------------------- the two formulas


@parametrize(RELUS)
def test_relu_by_deconvnet_passes_what_is_positive(act: Spelling) -> None:
    assert torch.equal(ruled(act, "deconvnet"), _CAME.clamp(min=0))


@parametrize(RELUS)
def test_relu_by_guided_passes_what_is_positive_where_the_input_is(act: Spelling) -> None:
    assert torch.equal(ruled(act, "guided"), _CAME.clamp(min=0) * (_X > 0))


@parametrize(CEILINGS)
def test_ceiling_by_deconvnet_passes_what_is_positive(act: Spelling) -> None:
    assert torch.equal(ruled(act, "deconvnet"), _CAME.clamp(min=0))


@parametrize(CEILINGS)
def test_ceiling_by_guided_passes_nothing_beyond_it(act: Spelling) -> None:
    assert torch.equal(ruled(act, "guided"), _CAME.clamp(min=0) * ((_X > 0) & (_X < 6)))


@parametrize(SMOOTH)
def test_smooth_by_deconvnet_passes_what_is_positive(act: Spelling) -> None:
    assert torch.equal(ruled(act, "deconvnet"), _CAME.clamp(min=0))


@parametrize(SMOOTH)
def test_smooth_by_guided_multiplies_by_its_own_slope(act: Spelling) -> None:
    torch.testing.assert_close(ruled(act, "guided"), _CAME.clamp(min=0) * slope(act), rtol=1e-12, atol=0)


def test_nothing_passes_where_the_input_is_exactly_zero() -> None:
    x = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(ruled(functional.relu, "guided", x, torch.ones_like(x)), torch.zeros_like(x))


def test_the_plain_gradient_is_another_one() -> None:
    assert not torch.equal(slope(functional.relu) * _CAME, ruled(functional.relu, "guided"))
    assert not torch.equal(slope(functional.relu) * _CAME, ruled(functional.relu, "deconvnet"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
def test_dtype_is_kept(rule: str, dtype: torch.dtype) -> None:
    back = ruled(nn.ReLU6(), rule, _X.to(dtype), _CAME.to(dtype))
    assert back.dtype == dtype


def test_memory_format_is_kept() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    with relu_rule("guided"):
        y = functional.relu(x.requires_grad_())
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "act",
    [
        lambda x: torch.maximum(x, torch.zeros(3, 4)),
        lambda x: torch.maximum(torch.zeros(3, 4), x),
        lambda x: x.clamp(min=torch.zeros(3, 4)),
    ],
)
@pytest.mark.parametrize("rule", RULES)
def test_bound_that_broadcasts_the_input_counts_each_element_once(act: Spelling, rule: str) -> None:
    x, came = torch.tensor([[1.0], [2.0], [-3.0]]), torch.tensor([1.0, -1.0, 2.0, 0.5]).expand(3, 4)
    expected = [3.5, 3.5, 3.5 if rule == "deconvnet" else 0.0]
    assert ruled(act, rule, x, came).flatten().tolist() == expected
    assert torch.equal(act(x), x.clamp(min=0).expand(3, 4))


# ---------------------------------------------------------------- forward values


@pytest.mark.parametrize("rule", RULES)
@parametrize(SPELLINGS)
def test_forward_values_are_unchanged(act: Spelling, rule: str) -> None:
    expected = act(_X.clone())
    with relu_rule(rule):
        got = act(_X.clone().requires_grad_())
    assert torch.equal(got, expected)


def test_in_place_on_a_part_changes_that_part_alone() -> None:
    x = torch.tensor([[-1.0, 2.0], [-3.0, 4.0]], requires_grad=True)
    with relu_rule("guided"):
        y = x * 1
        y[0].relu_()
    (back,) = torch.autograd.grad(y, x, torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    assert y.tolist() == [[0.0, 2.0], [-3.0, 4.0]]
    assert back.tolist() == [[0.0, 0.0], [1.0, -1.0]]


def test_in_place_returns_the_tensor_that_was_given() -> None:
    y = _X.clone().requires_grad_() * 1
    with relu_rule("guided"):
        assert functional.relu(y, inplace=True) is y


def test_reused_module_follows_at_each_call() -> None:
    relu, x = nn.ReLU(), torch.tensor([1.0, -1.0, 2.0], requires_grad=True)
    with relu_rule("guided"):
        y = relu(-relu(x) + 1.5)
    (back,) = torch.autograd.grad(y, x, torch.ones(3))
    # The second ReLU lets 1 through wherever 1.5 - relu(x) > 0, which arrives at the first one as -1.
    assert back.tolist() == [0.0, 0.0, 0.0]


# ---------------------------------------------------------------- what is left alone

GATES: dict[str, Spelling] = {
    "sigmoid": torch.sigmoid,
    "nn.Sigmoid": nn.Sigmoid(),
    "hardsigmoid": functional.hardsigmoid,
    "tanh": torch.tanh,
    "hardtanh": functional.hardtanh,
    "softsign": functional.softsign,
    "logsigmoid": functional.logsigmoid,
    "clamp(min=-1)": lambda x: x.clamp(min=-1),
    "clamp(max=0)": lambda x: x.clamp(max=0),
    "clamp(-1, 1)": lambda x: x.clamp(-1, 1),
    "clamp_max": lambda x: x.clamp_max(0),
    "max over a dimension": lambda x: x * torch.max(x.reshape(5, 5), 1).values.repeat(5),
    "max of two": lambda x: torch.max(x, x.detach() - 1),
    "maximum of two": lambda x: torch.maximum(x, x.detach() - 1),
    "threshold at 1": lambda x: functional.threshold(x, 1, 0),
    "minimum": lambda x: torch.minimum(x, zeros(x)),
    "abs": torch.abs,
}


@pytest.mark.parametrize("rule", RULES)
@parametrize(GATES)
def test_gates_and_other_bounds_keep_their_gradient(act: Spelling, rule: str) -> None:
    def beside_a_relu(x: Tensor) -> Tensor:
        functional.relu(x)  # a rule without any rectifier is an error
        return act(x)

    x = _X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(act(x), x, _CAME)
    assert torch.equal(ruled(beside_a_relu, rule), expected)


def test_calls_without_gradients_are_left_alone() -> None:
    x = _X.clone()
    with relu_rule("guided"):
        assert functional.relu(x, inplace=True) is x
        functional.relu(_X.clone().requires_grad_())
        with torch.no_grad():
            assert not functional.relu(_X.clone().requires_grad_()).requires_grad


def test_rule_ends_with_its_block() -> None:
    with relu_rule("guided"):
        functional.relu(_X.clone().requires_grad_())
    x = _X.clone().requires_grad_()
    (back,) = torch.autograd.grad(functional.relu(x), x, _CAME)
    assert torch.equal(back, _CAME * (_X > 0))


def test_rule_ends_with_an_exception() -> None:
    with pytest.raises(RuntimeError, match="must match"), relu_rule("guided"):
        torch.zeros(3) + torch.zeros(4)
    x = _X.clone().requires_grad_()
    (back,) = torch.autograd.grad(functional.relu(x), x, _CAME)
    assert torch.equal(back, _CAME * (_X > 0))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("rule", RULES)
def test_no_rectifier_is_an_error(rule: str) -> None:
    x = _X.clone().requires_grad_()
    with pytest.raises(ModelError, match=rf"{rule}.*no ReLU.*saliency"), relu_rule(rule):
        torch.sigmoid(x)


def test_rectifier_off_the_gradients_path_is_no_hit() -> None:
    with pytest.raises(ModelError, match="path with gradients"), relu_rule("guided"):
        functional.relu(_X)


def test_unknown_rule_names_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"'gided'.*'deconvnet', 'guided'"), relu_rule("gided"):
        pass


class Acting(nn.Module):
    """Calls a function between two convolutions, and a ReLU at the end."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x))).relu().mean((2, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("calls", [1, 3])
def test_rectifier_of_torchscript_is_refused(calls: int) -> None:
    net, x = Acting(torch.jit.script(scripted)).eval(), torch.rand(1, 3, 8, 8)
    for _ in range(calls):  # it is optimised by and by
        with pytest.raises(ModelError, match=r"guided rule cannot follow.*TorchScript.*in Python instead"):
            explain(net, x, "guided-backprop", target=1)


def scripted(x: Tensor) -> Tensor:
    return torch.relu(x) * 2


def test_rectifier_in_another_thread_is_refused() -> None:
    def elsewhere(x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(functional.silu, x).result()

    with pytest.raises(ModelError, match=r"deconvnet rule cannot follow SiluBackward0.*another thread"):
        explain(Acting(elsewhere).eval(), torch.rand(1, 3, 8, 8), "deconvnet", target=1)


def test_function_of_the_networks_own_is_warned_of() -> None:
    class Rectifier(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0] * (ctx.saved_tensors[0] > 0)

    net, x = Acting(Rectifier.apply).eval(), torch.rand(1, 3, 8, 8)
    with pytest.warns(UserWarning, match=r"calls Rectifier, an autograd.Function of its own.*one of torch's"):
        explain(net, x, "guided-backprop", target=1)
    explain(net, x, "saliency", target=1)


# ---------------------------------------------------------------- threads


def test_rule_is_local_to_its_thread() -> None:
    inside, done = threading.Event(), threading.Event()
    found: list[Tensor] = []

    def elsewhere() -> None:
        assert inside.wait(30)
        x = _X.clone().requires_grad_()
        (back,) = torch.autograd.grad(functional.relu(x), x, _CAME)
        found.append(back)
        done.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with relu_rule("guided"):
        inside.set()
        assert done.wait(30)
        functional.relu(_X.clone().requires_grad_())
    thread.join()
    assert torch.equal(found[0], _CAME * (_X > 0))


def test_hit_in_another_thread_does_not_count() -> None:
    def rectify_elsewhere() -> None:
        thread = threading.Thread(target=lambda: functional.relu(_X.clone().requires_grad_()))
        thread.start()
        thread.join()

    with pytest.raises(ModelError, match="met no ReLU"), relu_rule("guided"):
        rectify_elsewhere()


# ---------------------------------------------------------------- whole networks


@pytest.mark.parametrize(
    ("name", "size", "rule"),
    [
        ("googlenet", 48, "guided"),
        ("googlenet", 48, "deconvnet"),
        ("inception_v3", 75, "guided"),
        ("densenet121", 32, "guided"),
        ("resnet18", 32, "guided"),
    ],
)
def test_network_follows_as_with_replaced_rectifiers(name: str, size: int, rule: str) -> None:
    extra = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    net = torchvision.models.get_model(name, weights=None, num_classes=7, **extra).double().eval()
    x = torch.rand(1, 3, size, size, dtype=torch.float64)
    got = explain(net, x, "deconvnet" if rule == "deconvnet" else "guided-backprop", target=3).values
    expected = ruled_gradient(net, x, lambda output: output[:, 3], rule)
    assert expected.abs().max() > 0
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()


class Checkpointed(nn.Module):
    """Recomputes a part in the backward pass, as torchvision's memory-efficient DenseNet does."""

    def __init__(self, act: Callable[[Tensor], Tensor] = functional.relu) -> None:
        super().__init__()
        self.act = act
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(lambda x: self.act(self.conv(x)), x, use_reentrant=False)
        return self.head(x.relu().mean((2, 3)))


@pytest.mark.parametrize(("technique", "rule"), [("deconvnet", "deconvnet"), ("guided-backprop", "guided")])
def test_checkpointed_part_follows(technique: str, rule: str) -> None:
    net, x = Checkpointed().eval(), torch.rand(1, 3, 6, 6)
    got = explain(net, x, technique, target=3).values
    plain = nn.Sequential(net.conv, nn.ReLU(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.head)
    torch.testing.assert_close(got, ruled_gradient(plain, x, lambda output: output[:, 3], rule))


def test_checkpointed_part_that_cannot_follow_says_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"checkpointing.*switch that off.*memory_efficient=False"):
        explain(Checkpointed(functional.silu).eval(), torch.rand(1, 3, 6, 6), "guided-backprop", target=3)
