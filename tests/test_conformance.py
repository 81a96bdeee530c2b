"""Every installed technique and metric, whoever wrote it, keeps the contract."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import cnnviz
from cnnviz.metrics import available
from cnnviz.testing import ConformanceError, SmallNet, check_metric, check_technique
from tests import quick


@pytest.mark.parametrize("name", list(cnnviz.techniques()))
def test_technique_conforms(name: str) -> None:
    model = quick.network(name, SmallNet())
    assert "threads" in check_technique(name, model=model, **quick.OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", list(available()))
def test_metric_conforms(name: str) -> None:
    assert "threads" in check_metric(name, **quick.METRICS.get(name, {}))


def draws_for_each(case: cnnviz.Case, options: cnnviz.Options) -> torch.Tensor:
    """Draw another number for each sample of a batch."""
    return torch.rand(len(case.values), generator=case.request.generator)


def mean_of_all(case: cnnviz.Case, options: cnnviz.Options) -> torch.Tensor:
    """Let one sample's number depend on the others."""
    return case.values.mean().expand(len(case.values))


def shrinks_weights(case: cnnviz.Case, options: cnnviz.Options) -> torch.Tensor:
    """Change the caller's weights."""
    with torch.no_grad():
        for parameter in case.request.model.parameters():
            parameter.mul_(0.5)
    return case.request.base_scores()


def endless(case: cnnviz.Case, options: cnnviz.Options) -> torch.Tensor:
    """Give what no mean can be taken of."""
    return case.request.base_scores() / 0


def silent(case: cnnviz.Case, options: cnnviz.Options) -> torch.Tensor:
    """Say nothing about any sample."""
    return case.request.base_scores() * torch.nan


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (endless, "infinite"),
        (silent, "NaN for every sample"),
        (draws_for_each, "draw random numbers per call"),
        (mean_of_all, "of its samples alone"),
        (shrinks_weights, "it changed the model"),
    ],
)
def test_a_faulty_metric_is_found_out(function: Any, told: str) -> None:
    with pytest.raises(ConformanceError, match=told):
        check_metric(cnnviz.Metric("faulty", function))


def test_a_metric_may_say_nothing_about_a_sample() -> None:
    def first_alone(case: cnnviz.Case, options: cnnviz.Options) -> torch.Tensor:
        """Say nothing where the score is below the first sample's."""
        scores = case.request.base_scores()
        return torch.where(scores > 8.0, scores, torch.nan)

    inputs = torch.rand(3, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores = SmallNet().eval()(inputs).amax(1)
    assert scores.min() < 8.0 < scores.max()
    assert "threads" in check_metric(cnnviz.Metric("first-alone", first_alone), inputs=inputs)


class _Options(cnnviz.Options):
    pass


def _gradient(request: cnnviz.Request) -> torch.Tensor:
    x = request.inputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(request.score(x).sum(), x)
    return gradient.sum(1, keepdim=True)


def draws_globally(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Use the global generator."""
    return _gradient(request) + torch.rand(1)


def draws_per_sample(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Draw other numbers for each sample of a batch."""
    drawn = torch.randn(request.inputs.shape, generator=request.generator)
    return _gradient(request) + drawn.sum(1, keepdim=True)


def mixes_samples(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Let one sample's map depend on the others."""
    heat = _gradient(request)
    return heat / heat.abs().max()


def writes_to_weights(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Change the caller's weights."""
    heat = _gradient(request)
    for parameter in request.model.parameters():
        parameter.mul_(1.5)
    return heat


def loses_a_dimension(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Return something of the wrong shape."""
    return _gradient(request)[:, 0]


def swaps_height_and_width(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Return a map that lies on its side."""
    return _gradient(request).transpose(2, 3)


def explains_the_top_class(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Explain the top class, whatever was asked for."""
    request.score()
    x = request.inputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(request.model(x.clone()).amax(1).sum(), x)
    return gradient


def explains_classes_alone(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Explain the top class where the target is none."""
    classes = request.classes()
    x = request.inputs.detach().requires_grad_()
    output = request.model(x.clone())
    index = output.argmax(1) if classes is None else classes
    (gradient,) = torch.autograd.grad(output.gather(1, index[:, None]).sum(), x)
    return gradient


def keeps_the_first_target(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Take for all targets what the first one gave."""
    request.score()
    return request.once("map", lambda: _gradient(request))


def looks_at_the_first_layer(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Take the first layer, whatever was asked for."""
    with cnnviz.capture(request.model, "conv1") as seen, torch.no_grad():
        request.model(request.inputs.clone())
    return seen.output


def keeps_the_first_layer(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Take for all layers what the first one gave."""

    def maps() -> torch.Tensor:
        with cnnviz.capture(request.model, str(request.layer)) as seen, torch.no_grad():
            request.model(request.inputs.clone())
        return seen.output.sum(1, keepdim=True)

    return request.once("maps", maps)


def writes_to_inputs(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Write to the samples, which other targets get too."""
    heat = _gradient(request)
    request.inputs.zero_()
    return heat


_HELD: list[torch.Tensor] = []


def keeps_inputs(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Keep a view of the samples for good."""
    _HELD.append(request.inputs[:1])
    return _gradient(request)


def sets_attributes(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Change plain attributes of the caller's modules."""
    request.described.module.relu.inplace = False
    return _gradient(request)


def takes_a_bias(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Take a parameter of the caller's away."""
    request.described.module.conv3.bias = None
    return _gradient(request)


def swaps_modules(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Put another module of the same kind in a module's place."""
    request.described.module.pool = nn.MaxPool2d(2)
    return _gradient(request)


def sets_threads(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Change the number of threads."""
    torch.set_num_threads(torch.get_num_threads() + 1)
    return _gradient(request)


def sets_default_dtype(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Change the default dtype."""
    heat = _gradient(request)
    torch.set_default_dtype(torch.float64)
    return heat


def asks_for_determinism(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Let all of torch be deterministic."""
    torch.use_deterministic_algorithms(True)
    return _gradient(request)


def asks_cudnn_to_try(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Let cuDNN try out kernels."""
    torch.backends.cudnn.benchmark = True
    return _gradient(request)


def hooks_all_modules(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Leave a hook on the modules of every network."""
    nn.modules.module.register_module_forward_hook(lambda *_: None)
    return _gradient(request)


def forgets_finally(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Set what is not set back where the model fails."""
    module: Any = request.described.module
    asked = [parameter.requires_grad for parameter in module.parameters()]
    module.requires_grad_(True)
    module.note = 1
    heat = _gradient(request)
    for parameter, before in zip(module.parameters(), asked, strict=True):
        parameter.requires_grad_(before)
    del module.note
    return heat


def forgets_training_mode(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Leave the caller's module in eval mode where the model fails."""
    module = request.described.module
    before = module.training
    with _LOCK:  # or threads were told first
        module.eval()
        heat = _gradient(request)
        module.train(before)
    return heat


_LOCK = threading.Lock()


def swallows_errors(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Return zeros where the model fails."""
    try:
        heat = _gradient(request)
    except Exception:  # noqa: BLE001  # which is the fault
        return torch.zeros(len(request.inputs), 1, 4, 4)
    request.progress(1, 1)
    return heat


def returns_truth(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Return whether, not how much."""
    return _gradient(request) > 0


def returns_whole_numbers(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Return whole numbers."""
    return (_gradient(request) * 1000).long()


def returns_complex_numbers(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Return complex numbers."""
    return torch.complex(_gradient(request), _gradient(request))


def undocumented(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    return _gradient(request)


def fails(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Fail in the middle without saying why."""
    raise KeyError("lost")


@pytest.fixture
def process_left_alone() -> Iterator[None]:
    """Set back what faulty plugins set for the whole process."""
    threads, dtype, hooks = torch.get_num_threads(), torch.get_default_dtype(), nn.modules.module._global_forward_hooks
    known = list(hooks)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    for key in hooks.keys() - set(known):
        del hooks[key]
    _HELD.clear()


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (draws_globally, "global random state of torch"),
        (draws_per_sample, "of its samples alone"),
        (mixes_samples, "of its samples alone"),
        (writes_to_weights, "changed the model|different results"),
        (loses_a_dimension, r"expected \(N, C, h, w\)"),
        (swaps_height_and_width, "40 x 24 for inputs 24 x 40: height and width are swapped"),
        (explains_the_top_class, "the same for two classes"),
        (explains_classes_alone, "the same for a class and a callable target"),
        (keeps_the_first_target, "gives not what each class gives alone|scores one"),
        (writes_to_inputs, "writes to request.inputs"),
        (keeps_inputs, "keeps the memory of request.inputs alive"),
        (sets_attributes, r"changed the model or the process: relu\.inplace$"),
        (takes_a_bias, r"changed the model or the process: conv3\.bias$"),
        (swaps_modules, "changed the model or the process: pool$"),
        (sets_threads, "changed the model or the process: number of threads$"),
        (sets_default_dtype, "changed the model or the process: default dtype$"),
        (asks_for_determinism, "changed the model or the process: deterministic algorithms$"),
        (asks_cudnn_to_try, r"changed the model or the process: torch\.backends\.cudnn\.benchmark$"),
        (hooks_all_modules, "changed the model or the process: torch's _global_forward_hooks"),
        (forgets_finally, "changed the model or the process: .*conv1.weight"),
        (forgets_training_mode, "changed the model or the process: .*training"),
        (swallows_errors, "raised by the model did not reach the caller"),
        (returns_truth, "bool, expected floating point"),
        (returns_whole_numbers, "int64, expected floating point"),
        (returns_complex_numbers, "complex64, expected floating point"),
        (undocumented, "no docstring"),
        (functools.partial(undocumented), "no docstring"),
        (fails, "lost"),
    ],
)
@pytest.mark.usefixtures("process_left_alone")
def test_conformance_suite_finds_the_fault(function: Any, complaint: str) -> None:
    technique = cnnviz.Technique("faulty", function, _Options)
    with pytest.raises(ConformanceError, match=complaint):
        check_technique(technique)


@pytest.mark.parametrize(
    ("function", "layers", "complaint"),
    [
        (looks_at_the_first_layer, "one", "the same for layers 'conv1' and 'conv3'"),
        (keeps_the_first_layer, "many", "two layers give not what each gives alone"),
    ],
)
def test_conformance_suite_finds_what_ignores_its_layer(function: Any, layers: Any, complaint: str) -> None:
    technique = cnnviz.Technique("faulty", function, _Options, layers=layers)
    with pytest.raises(ConformanceError, match=complaint):
        check_technique(technique)
    assert "layers" in check_technique(technique, layer="conv1")  # where one is named, none are compared


def test_the_model_fails_in_the_hands_of_the_plugin() -> None:
    runs: list[list[int]] = []

    def twice(request: cnnviz.Request, options: _Options) -> torch.Tensor:
        """Run the model twice."""
        done: list[int] = []
        runs.append(done)  # of several threads
        heat = _gradient(request)
        done.append(1)
        heat = heat + _gradient(request)
        done.append(2)
        return heat

    check_technique(cnnviz.Technique("twice", twice))
    assert runs.count([1]) == 1
    assert len(runs) - 1 == runs.count([1, 2])


def test_a_gallery_may_number_its_samples() -> None:
    def numbered(request: cnnviz.Request, options: _Options) -> cnnviz.Gallery:
        """Show each sample under its number."""
        images = request.gradient().sigmoid()
        return cnnviz.Gallery(images=images, rows=torch.arange(len(images)))

    assert "batch" in check_technique(cnnviz.Technique("numbered", numbered))


class _Maps(SmallNet):
    """A network whose output holds no classes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.norm1(self.conv1(x)))


def test_target_and_layer_are_handed_on() -> None:
    seen = set()

    def spy(request: cnnviz.Request, options: _Options) -> torch.Tensor:
        """Note what it is asked for."""
        seen.add((request.layer, request.target))
        return _gradient(request)

    def brightness(output: torch.Tensor) -> torch.Tensor:
        return output.mean((1, 2, 3))

    technique = cnnviz.Technique("spy", spy, layers="one")
    assert "targets" in check_technique(technique, model=_Maps(), target=brightness, layer="norm1")
    assert ("norm1", brightness) in seen
    assert {layer for layer, _ in seen} == {"norm1"}


def test_a_target_for_each_sample_is_handed_on_row_by_row() -> None:
    assert "batch" in check_technique("saliency", target=[1, 2, 0])


@pytest.mark.parametrize(
    "check", [lambda x: check_technique("saliency", inputs=x), lambda x: check_metric("deletion", inputs=x)]
)
def test_a_batch_of_one_is_no_batch(check: Any) -> None:
    with pytest.raises(cnnviz.InputError, match=r"got a tensor \(1, 3, 24, 40\), .* N of at least 2"):
        check(torch.rand(1, 3, 24, 40))


class _Odd(SmallNet):
    """A network that cannot be copied by `copy.deepcopy`, and counts as empty."""

    def __init__(self) -> None:
        super().__init__()
        self.made = self.conv1.weight * 2

    def __len__(self) -> int:
        return 0


def test_the_callers_model_is_what_is_run() -> None:
    seen = set()

    def spy(request: cnnviz.Request, options: _Options) -> torch.Tensor:
        """Note what it runs."""
        seen.add(type(request.model).__name__)
        return _gradient(request)

    def measured(case: cnnviz.Case, options: _Options) -> torch.Tensor:
        """Note what it runs."""
        seen.add(type(case.request.model).__name__)
        return case.request.base_scores()

    assert "threads" in check_technique(cnnviz.Technique("spy", spy), model=_Odd())
    assert "threads" in check_metric(cnnviz.Metric("spy", measured), model=_Odd())
    assert seen == {"_Odd"}


def test_small_net_is_the_same_every_time() -> None:
    x = torch.ones(1, 3, 16, 16)
    assert torch.equal(SmallNet().eval()(x), SmallNet().eval()(x))
    assert not torch.equal(SmallNet().eval()(x), SmallNet(seed=1).eval()(x))
