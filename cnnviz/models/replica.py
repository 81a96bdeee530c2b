"""A private twin of a model: it shares the parameters, and nothing that is done to it reaches the original.

Explaining needs eval mode, captures and gradients at chosen places. Doing that to the caller's model and undoing it
afterwards races with other threads; a replica has nothing to undo.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from ..errors import ModelError

_HOOK_TABLES = tuple(name for name in nn.Module().__dict__ if name.endswith(("_hooks", "_hooks_with_kwargs")))
_CALLED_ALWAYS = tuple(name for name in nn.Module().__dict__ if name.endswith("_hooks_always_called"))


def unwrap(module: nn.Module) -> nn.Module:
    """Return the network inside DataParallel, DistributedDataParallel and compiled wrappers."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif "_orig_mod" in module._modules:  # torch.compile's wrapper, whose class is private
            module = module._modules["_orig_mod"]  # type: ignore[assignment]  # never None there
        else:
            return module


def replicate(model: nn.Module, *, device: str | None = None) -> nn.Module:
    """Return a replica of `model`: new modules in eval mode, without hooks, holding the same parameter memory.

    Parameters are aliases that ask for no gradient, buffers are clones, and containers among the attributes are copied,
    so that a forward pass that keeps notes on `self` keeps them on the replica. Hooks are left out, but for those by
    which `torch.nn.utils` computes weights (weight and spectral normalisation, pruning).

    Args:
        model: any network; wrappers are taken off.
        device: "meta" gives a replica without data, for shapes.

    Raises:
        ModelError: TorchScript, an exported program, a lazy module that never ran, a module whose `forward` was set on
            the instance, or parameters made in inference mode; with the remedy.
    """
    model = unwrap(model)
    modules = [(name, module) for name, module in model.named_modules()]
    for name, module in modules:
        _refuse(name or type(model).__name__, module)
    memo: dict[int, Any] = {id(module): object.__new__(type(module)) for _, module in modules}
    copier = _Copier(memo, device)
    for _, module in modules:
        if unwrap(module) is not module:  # a wrapper within: the replica holds what it wraps
            memo[id(module)] = memo[id(unwrap(module))]
    for _, module in modules:
        if unwrap(module) is module:
            copier.fill(memo[id(module)], module)
    twin: nn.Module = memo[id(model)]
    return twin


def _refuse(name: str, module: nn.Module) -> None:
    if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise ModelError(
            f"'{name}' is TorchScript, whose layers and ReLUs cannot be seen; explain the Python module it was made of"
        )
    if isinstance(module, torch.fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
    ):
        raise ModelError(
            f"'{name}' is an exported program, whose layers were dissolved; explain the Python module it was made of"
        )
    if "forward" in module.__dict__:
        raise ModelError(
            f"the forward of '{name}' was replaced on the instance, so that a replica would run on the original; "
            "wrap it in a class that defines forward"
        )
    for key, parameter in module._parameters.items():
        if isinstance(parameter, nn.UninitializedParameter):
            raise ModelError(f"parameter '{key}' of '{name}' has no shape yet; run the model once on an example input")
        if parameter is not None and parameter.is_inference():
            raise ModelError(
                f"parameter '{key}' of '{name}' was made in torch.inference_mode(), so that no gradient can pass it; "
                "build or load the model outside of inference mode"
            )


class _Copier:
    """Copies what hangs on a module; `memo` maps the id of an original to its copy, as in `copy.deepcopy`."""

    def __init__(self, memo: dict[int, Any], device: str | None) -> None:
        self.memo = memo
        self.device = device

    def fill(self, twin: nn.Module, module: nn.Module) -> None:
        for key, value in module.__dict__.items():
            twin.__dict__[key] = self._attribute(key, value)
        for hook in twin._forward_pre_hooks.values():  # weights that are computed may be older than what they are of
            hook(twin, ())

    def _attribute(self, key: str, value: Any) -> Any:
        if key == "training":
            return False
        if key in _HOOK_TABLES:
            return OrderedDict((i, self.copy(hook)) for i, hook in value.items() if _computes_weights(hook))
        if key in _CALLED_ALWAYS:
            return OrderedDict()
        if key == "_compiled_call_impl":
            return None
        if key == "_modules":
            return {name: None if child is None else self.memo[id(child)] for name, child in value.items()}
        return self.copy(value)

    def copy(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        match value:
            case torch.Tensor():
                made: Any = self._tensor(value)
            case types.MethodType():
                return types.MethodType(value.__func__, self.copy(value.__self__))
            case functools.partial():
                keywords = {key: self.copy(item) for key, item in value.keywords.items()}
                return functools.partial(self.copy(value.func), *map(self.copy, value.args), **keywords)
            case list() | set() if type(value) in (list, set):
                made = type(value)(self.copy(item) for item in value)
            case tuple() if type(value) is tuple:
                return tuple(self.copy(item) for item in value)
            case dict() if type(value) in (dict, OrderedDict):
                made = type(value)((key, self.copy(item)) for key, item in value.items())
            case _:
                try:
                    made = copy.deepcopy(value, self.memo)
                except Exception:  # noqa: BLE001  # a lock, a generator, a file: shared, as it cannot be copied
                    return value
        self.memo[id(value)] = made
        return made

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        if self.device is not None:
            made = torch.empty_like(value, device=self.device, requires_grad=False)
            return nn.Parameter(made, requires_grad=False) if isinstance(value, nn.Parameter) else made
        with torch.inference_mode(False):
            if isinstance(value, nn.Parameter):
                return nn.Parameter(value.detach(), requires_grad=False)
            return value.detach().clone()


def _computes_weights(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")
