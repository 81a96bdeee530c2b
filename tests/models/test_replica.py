"""A replica computes what the original computes, on the same weights, and nothing done to it reaches the original."""

from __future__ import annotations

import copy
import functools
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from cnnviz import ModelError
from cnnviz.models import capture, replicate, unwrap


class Net(nn.Module):
    """Parameters, buffers, a reused module and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)
        self.register_buffer("scale", torch.rand(4, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.norm(self.conv(x))) * self.scale)
        return self.head(self.act(x).mean((2, 3)))


def photo(size: int = 8, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, size, size)


def lively(module: nn.Module) -> nn.Module:
    """Give normalisations statistics of their own, so that eval and training mode differ."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2)
    return module


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Everything of a module that a borrower could change."""
    parts = dict(module.named_modules())
    return {
        "modules": {name: id(part) for name, part in parts.items()},
        "training": {name: part.training for name, part in parts.items()},
        "hooks": {
            (name, table): list(value.items())
            for name, part in parts.items()
            for table, value in vars(part).items()
            if table.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
        },
        "tensors": {
            name: (id(t), t.data_ptr(), t._version, t.requires_grad)
            for name, t in (*module.named_parameters(), *module.named_buffers())
        },
        "grads": {name: None if p.grad is None else id(p.grad) for name, p in module.named_parameters()},
        "random": torch.get_rng_state().tolist(),
    }


def same_bits(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture
def net() -> nn.Module:
    return lively(Net())


# ---------------------------------------------------------------- what a replica is made of


def test_parameters_share_memory_and_ask_for_no_gradient(net: nn.Module) -> None:
    twin = replicate(net)
    own, theirs = dict(net.named_parameters()), dict(twin.named_parameters())
    assert own.keys() == theirs.keys()
    for name, parameter in theirs.items():
        assert isinstance(parameter, nn.Parameter)
        assert parameter is not own[name]
        assert parameter.data_ptr() == own[name].data_ptr()
        assert not parameter.requires_grad


def test_buffers_are_clones_with_the_same_bits(net: nn.Module) -> None:
    own, theirs = dict(net.named_buffers()), dict(replicate(net).named_buffers())
    assert same_bits(own, theirs)
    assert all(theirs[name].data_ptr() != own[name].data_ptr() for name in own)


def test_every_module_is_in_eval_mode_whatever_the_original_is(net: nn.Module) -> None:
    net.train()
    net.norm.eval()
    assert not any(part.training for part in replicate(net).modules())
    assert net.drop.training
    assert not net.norm.training


def test_hooks_are_left_out(net: nn.Module) -> None:
    called = []

    def note(*_: Any) -> None:
        called.append(1)

    net.register_forward_hook(note, always_call=True)
    net.conv.register_forward_pre_hook(note)
    net.conv.register_forward_hook(lambda module, args, kwargs, output: note(), with_kwargs=True)
    net.conv.register_full_backward_hook(note)
    net.head.register_full_backward_pre_hook(note)
    replicate(net)(photo().requires_grad_()).sum().backward()
    assert not called
    net(photo().requires_grad_()).sum().backward()
    assert len(called) >= 5


def test_hooks_added_to_the_replica_stay_there(net: nn.Module) -> None:
    twin = replicate(net)
    twin.conv.register_forward_hook(lambda *_: None)
    assert not net.conv._forward_hooks
    assert not replicate(net).conv._forward_hooks


def test_original_is_untouched(net: nn.Module) -> None:
    net.train()
    net.drop.eval()
    net.conv.weight.requires_grad_(False)
    net.conv.register_forward_hook(lambda *_: None)
    net.head.weight.grad = torch.ones_like(net.head.weight)
    before, bits = snapshot(net), {name: t.clone() for name, t in net.state_dict().items()}
    twin = replicate(net)
    twin(photo(8).requires_grad_()).sum().backward()
    after = snapshot(net)
    # The test itself drew an input.
    before.pop("random")
    after.pop("random")
    assert after == before
    assert same_bits(bits, net.state_dict())


def test_making_and_running_a_replica_draws_no_random_numbers(net: nn.Module) -> None:
    x = photo()
    before = torch.get_rng_state()
    replicate(net.train())(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_changed_weights_show_in_the_replica_at_once(net: nn.Module) -> None:
    twin, x = replicate(net), photo()
    with torch.no_grad():
        net.head.weight.mul_(3)
    assert torch.equal(twin(x), net.eval()(x))


def test_training_the_replica_leaves_the_original_buffers(net: nn.Module) -> None:
    mean = net.norm.running_mean.clone()
    replicate(net).train()(photo())
    assert torch.equal(net.norm.running_mean, mean)


def test_meta_replica_has_shapes_and_no_data(net: nn.Module) -> None:
    twin = replicate(net, device="meta")
    assert {t.device.type for t in (*twin.parameters(), *twin.buffers())} == {"meta"}
    assert twin(photo().to("meta")).shape == (2, 5)
    assert net.conv.weight.device.type == "cpu"


def test_replica_of_a_replica_shares_the_same_memory(net: nn.Module) -> None:
    again = replicate(replicate(net))
    assert again.conv.weight.data_ptr() == net.conv.weight.data_ptr()


def test_replicating_in_inference_mode_still_allows_gradients(net: nn.Module) -> None:
    x = photo()
    with torch.inference_mode():
        twin = replicate(net)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(twin(x).sum(), x)
    assert slope.abs().sum() > 0


def test_buffers_made_in_inference_mode_become_ordinary(net: nn.Module) -> None:
    with torch.inference_mode():
        net.scale = torch.rand(4, 1, 1)
    twin = replicate(net)
    assert net.scale.is_inference()
    assert not twin.scale.is_inference()
    assert torch.equal(twin.scale, net.scale)


# ---------------------------------------------------------------- the same bits

ARCHITECTURES = {
    "alexnet": 63,
    "resnet18": 64,
    "resnext50_32x4d": 32,
    "densenet121": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "squeezenet1_1": 32,
    "shufflenet_v2_x0_5": 32,
    "efficientnet_b0": 32,
    "mnasnet0_5": 32,
    "regnet_y_400mf": 32,
    "convnext_tiny": 32,
    "swin_t": 32,
}


@pytest.mark.parametrize(("name", "size"), ARCHITECTURES.items())
def test_output_is_bit_equal_on(name: str, size: int) -> None:
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module = lively(torchvision.models.get_model(name, weights=None, **quick)).train()
    x = torch.rand(1, 3, size, size)
    with torch.no_grad():
        got = replicate(module)(x)
        expected = module.eval()(x)
    assert torch.equal(got, expected)


def test_dict_outputs_are_bit_equal() -> None:
    module = lively(
        torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    ).eval()
    x = photo(32)
    with torch.no_grad():
        got, expected = replicate(module)(x), module(x)
    assert same_bits(dict(got), dict(expected))


def test_recurrent_networks_are_bit_equal() -> None:
    module, x = nn.LSTM(5, 4, num_layers=2, batch_first=True).eval(), torch.rand(2, 3, 5)
    assert torch.equal(replicate(module)(x)[0], module(x)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(net: nn.Module, dtype: torch.dtype) -> None:
    x = photo().to(dtype)
    assert torch.equal(replicate(net.to(dtype))(x), net.eval()(x))


# ---------------------------------------------------------------- wrappers


class Compiled(nn.Module):
    """A network with a compiled part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = torch.compile(part)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))])
def test_wrappers_are_taken_off(net: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped, x = wrap(net), photo()
    assert unwrap(wrapped) is net
    twin = replicate(wrapped)
    assert type(twin) is Net
    assert torch.equal(twin(x), net.eval()(x))


def test_wrappers_within_are_taken_off(net: nn.Module) -> None:
    twin, x = replicate(Compiled(net)), photo()
    assert type(twin.part) is Net
    assert torch.equal(twin(x), net.eval()(x))


def test_module_compiled_in_place_runs_uncompiled(net: nn.Module) -> None:
    net.compile()
    x = photo()
    twin = replicate(net)
    assert twin._compiled_call_impl is None
    assert net._compiled_call_impl is not None
    assert torch.equal(twin(x), net.eval().forward(x))


def test_unwrap_leaves_a_plain_module_alone(net: nn.Module) -> None:
    assert unwrap(net) is net


# ---------------------------------------------------------------- what is refused


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        # torch deprecates TorchScript, which users still bring.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))


def scripted_within() -> nn.Module:
    return nn.Sequential(nn.Identity(), scripted())


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as above
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.trace(nn.Conv2d(3, 4, 1), photo())


def exported() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns about its own internals
        return torch.export.export(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), (photo(),)).module()


def patched() -> nn.Module:
    made = nn.Conv2d(3, 4, 1)
    made.forward = functools.partial(nn.Conv2d.forward, made)
    return nn.Sequential(made)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 1))


def inference_born() -> nn.Module:
    with torch.inference_mode():
        return nn.Sequential(nn.Conv2d(3, 4, 1))


REFUSED = [
    (scripted, ["TorchScript", "Python module"]),
    (scripted_within, ["'1'", "TorchScript", "Python module"]),
    (traced, ["TorchScript", "Python module"]),
    (exported, ["exported", "Python module"]),
    (patched, ["forward of '0'", "instance", "class"]),
    (lazy, ["'weight' of '0'", "no shape", "run the model once"]),
    (inference_born, ["'weight' of '0'", "inference_mode", "outside"]),
]


@pytest.mark.parametrize(("make", "words"), REFUSED, ids=lambda item: getattr(item, "__name__", ""))
def test_refused_with_reason_and_remedy(make: Callable[[], nn.Module], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        replicate(make())
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_lazy_module_that_ran_once_is_taken() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 1))
    x = photo()
    expected = net(x)
    assert torch.equal(replicate(net)(x), expected)


# ---------------------------------------------------------------- computed and shared weights


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, still found in published code
        return torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3))


def old_spectral_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as above
        return torch.nn.utils.spectral_norm(nn.Conv2d(3, 4, 3))


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Conv2d(3, 4, 3), "weight", amount=0.5)


COMPUTED = [
    old_weight_norm,
    old_spectral_norm,
    lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    lambda: parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)),
    lambda: parametrizations.orthogonal(nn.Conv2d(3, 4, 3)),
    pruned,
]
COMPUTED_IDS = [
    "old weight_norm",
    "old spectral_norm",
    "weight_norm",
    "spectral_norm",
    "orthogonal",
    "pruning",
]


@pytest.mark.parametrize("make", COMPUTED, ids=COMPUTED_IDS)
def test_computed_weights_are_computed_in_the_replica(make: Callable[[], nn.Module]) -> None:
    net = nn.Sequential(make(), nn.ReLU()).eval()
    x = photo()
    expected = net(x)
    before = snapshot(net)
    twin = replicate(net)
    assert torch.equal(twin(x), expected)
    assert snapshot(net) == before


@pytest.mark.parametrize("make", COMPUTED, ids=COMPUTED_IDS)
def test_computed_weights_follow_a_change_of_the_original(make: Callable[[], nn.Module]) -> None:
    net = nn.Sequential(make(), nn.ReLU()).eval()
    twin, x = replicate(net), photo()
    with torch.no_grad():
        next(p for p in net.parameters() if p.dim() == 1 and p.numel() == 4).add_(1)
        # The largest weight, or its source, so that masks and norms matter.
        next(p for p in net.parameters() if p.dim() == 4).neg_()
    assert torch.equal(twin(x), net(x))


def test_computed_weights_let_gradients_through() -> None:
    twin, x = replicate(nn.Sequential(old_weight_norm(), nn.ReLU())), photo().requires_grad_()
    (slope,) = torch.autograd.grad(twin(x).sum(), x)
    assert slope.abs().sum() > 0


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 1, bias=False)
        self.b = nn.Conv2d(3, 3, 1, bias=False)
        self.b.weight = self.a.weight
        self.same = self.a
        self.register_buffer("mean", torch.rand(1))
        self.register_buffer("also_mean", self.mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.same(x)) - self.mean + self.also_mean


def test_tied_weights_and_shared_modules_stay_tied() -> None:
    net, x = Tied(), photo()
    twin = replicate(net)
    assert twin.a.weight is twin.b.weight
    assert twin.same is twin.a
    assert twin.mean is twin.also_mean
    assert torch.equal(twin(x), net(x))


# ---------------------------------------------------------------- what hangs on a module besides


class Listed(nn.Module):
    """Holds modules where PyTorch does not look for them."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = [nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)]
        self.by_name = {"act": nn.ReLU()}
        self.pair = (nn.Conv2d(3, 3, 1), 2)
        self.registered = nn.Conv2d(3, 3, 1)
        self.also = [self.registered]

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = self.by_name["act"](conv(x))
        return self.also[0](self.pair[0](x) * self.pair[1])


def test_modules_in_plain_containers_run() -> None:
    net, x = Listed(), photo()
    twin = replicate(net)
    assert torch.equal(twin(x), net(x))
    assert twin.convs[0] is not net.convs[0]


def test_registered_module_in_a_plain_list_is_the_registered_replica() -> None:
    twin = replicate(Listed())
    assert twin.also[0] is twin.registered
    with capture(twin, "registered") as seen:
        out = twin(photo())
    assert torch.equal(seen.output, out)


def test_modules_in_plain_lists_share_their_weights() -> None:
    net = Listed()
    assert replicate(net).convs[0].weight.data_ptr() == net.convs[0].weight.data_ptr()


def test_modules_in_plain_lists_lose_their_hooks() -> None:
    net, called = Listed(), []
    net.convs[0].register_forward_hook(lambda *_: called.append(1))
    replicate(net)(photo())
    assert not called


def test_weight_norm_in_a_plain_list_is_not_shared() -> None:
    net = nn.Sequential(nn.Identity())
    net.extra = [old_weight_norm()]
    assert replicate(net).extra[0] is not net.extra[0]


class Bound(nn.Module):
    """Keeps its own methods, bound and partly applied, as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.step = self._step
        self.scaled = functools.partial(self._scaled, factor=2.0)
        self.table = {"steps": [self._step, self.conv.forward]}

    def _step(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()

    def _scaled(self, x: Tensor, factor: float) -> Tensor:
        return self.conv(x) * factor

    def forward(self, x: Tensor) -> Tensor:
        return self.table["steps"][1](self.table["steps"][0](self.scaled(self.step(x))))


def test_bound_methods_are_bound_to_the_replica() -> None:
    net, x = Bound(), photo()
    twin = replicate(net)
    assert twin.step.__self__ is twin
    assert twin.scaled.func.__self__ is twin
    assert twin.table["steps"][0].__self__ is twin
    assert twin.table["steps"][1].__self__ is twin.conv
    assert torch.equal(twin(x), net(x))


class Closed(nn.Module):
    """Keeps a function that closes over the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.run = lambda x: self.drop(x) * 1

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def test_function_closing_over_the_module_is_refused_or_follows() -> None:
    x = torch.ones(1, 3, 4, 4)
    try:
        twin = replicate(Closed().train())
    except ModelError as error:
        assert "run" in str(error)  # noqa: PT017 - refusing is as good as following
    else:
        assert torch.equal(twin(x), x)


class Locked(nn.Module):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.lock = threading.Lock()
        self.numbers = (number for number in range(3))

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.conv(x)


def test_what_cannot_be_copied_is_shared() -> None:
    net, x = Locked(), photo()
    twin = replicate(net)
    assert twin.lock is net.lock
    assert twin.numbers is net.numbers
    assert torch.equal(twin(x), net(x))


class Notes:
    def __init__(self) -> None:
        self.lines: list[int] = []


class Forgetful(nn.Module):
    """Writes to itself in forward, in every kind of attribute."""

    def __init__(self, notes: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.register_buffer("count", torch.zeros(()))
        self.plain = torch.zeros(2)
        self.last: Tensor | None = None
        self.seen: list[int] = []
        self.cache: dict[str, list[int]] = {"shapes": []}
        self.notes = notes
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.plain.add_(1)
        self.last = x
        self.seen.append(len(x))
        self.cache["shapes"].append(len(x))
        self.notes.lines.append(len(x))
        self.calls += 1
        return self.conv(x)


def test_state_written_in_forward_stays_off_the_original() -> None:
    net = Forgetful(Notes())
    twin = replicate(net)
    twin(photo())
    assert twin.calls == 1
    assert net.calls == 0
    assert net.count == 0
    assert net.plain.sum() == 0
    assert net.last is None
    assert net.seen == []
    assert net.cache == {"shapes": []}
    assert net.notes.lines == []


def test_state_beside_a_lock_stays_off_the_original() -> None:
    notes = Notes()
    notes.lock = threading.Lock()
    net = Forgetful(notes)
    replicate(net)(photo())
    assert net.notes.lines == []


class Recursive(nn.Module):
    """Refers to itself through plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.conv.__dict__["owner"] = self

    def forward(self, x: Tensor) -> Tensor:
        return self.conv.owner.conv(x)


def test_attributes_that_point_back_are_followed() -> None:
    twin = replicate(Recursive())
    assert twin.conv.owner is twin


def test_lists_that_hold_themselves_are_followed() -> None:
    net = nn.Identity()
    net.loop = []
    net.loop.append(net.loop)
    twin = replicate(net)
    assert twin.loop[0] is twin.loop


def test_replica_can_be_deep_copied(net: nn.Module) -> None:
    x = photo()
    twin = copy.deepcopy(replicate(net))
    assert torch.equal(twin(x), net.eval()(x))


class Looped(nn.Module):
    """Reaches its own modules in every way but by their names."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.child = nn.Module()
        match way:
            case "defaults":
                self.steps = [lambda x, m=m: m(x) for m in (self.conv, self.norm)]
            case "keyword defaults":

                def step(x: Tensor, *, norm: nn.Module = self.norm) -> Tensor:
                    return norm(x)

                self.steps = [self.conv, step]
            case "a weak reference":
                self.child.parent = weakref.ref(self)
                self.steps = [self.conv, lambda x, child=self.child: child.parent().norm(x)]
            case "a proxy":
                self.child.parents = [weakref.proxy(self)]
                self.steps = [self.conv, lambda x, child=self.child: child.parents[0].norm(x)]
            case "a cache":
                self.picked = functools.lru_cache(maxsize=4)(self._picked)
                self.steps = [self.conv, lambda x, self=self: self.picked("norm")(x)]

    def _picked(self, name: str) -> nn.Module:
        return getattr(self, name)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x.mean((2, 3))


@pytest.mark.parametrize("way", ["defaults", "keyword defaults", "a weak reference", "a proxy", "a cache"])
def test_modules_are_the_replicas_however_they_are_reached(way: str) -> None:
    net = Looped(way).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    twin = replicate(net)
    with capture(twin, ["conv", "norm"]) as seen:
        twin(photo())
    assert seen.values.keys() == {"conv", "norm"}
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    x = photo()
    assert torch.equal(twin(x), net.eval()(x))
    copied = replicate(twin)
    assert torch.equal(copied(x), net(x))


def test_functions_that_hold_nothing_are_shared() -> None:
    net = nn.ReLU()
    net.plain, net.cached = photo, functools.lru_cache(len)
    twin = replicate(net)
    assert twin.plain.__code__ is photo.__code__
    assert twin.cached is net.cached


def test_a_function_that_calls_itself_is_followed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def twice(x: Tensor, left: int = 2) -> Tensor:
        return twice(net(x), left - 1) if left else x

    net.twice = twice
    twin = replicate(net.train())
    before = net[1].running_mean.clone()
    twin.twice(photo())
    assert torch.equal(net[1].running_mean, before)


class Held:
    __slots__ = ("__dict__", "part")

    def __init__(self, part: nn.Module) -> None:
        self.part = part
        self.other = part


class Slotted(nn.Module):
    __slots__ = ("__hidden", "empty", "gain", "held")

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.gain, self.__hidden, self.held = 2.0, torch.ones(4, 1, 1), Held(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.held.part(x) * self.gain + self.__hidden


def test_what_lies_in_slots_is_copied() -> None:
    net, x = Slotted().eval(), torch.rand(1, 3, 4, 4)
    twin = replicate(net)
    assert torch.equal(twin(x), net(x))
    assert twin.held.part is twin.held.other is twin.conv
    assert not hasattr(twin, "empty")
    twin.gain = 3.0
    assert net.gain == 2.0
