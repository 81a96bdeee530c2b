"""A private twin of a model: it shares the parameters, and nothing that is done to it reaches the original.

Explaining needs eval mode, captures and gradients at chosen places. Doing that to the caller's model and undoing it
afterwards races with other threads; a replica has nothing to undo.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import OrderedDict
from contextlib import suppress
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


def differs_in_training(model: nn.Module) -> str | None:
    """Return the class name of a module in training mode that computes something else there; None if there is none."""
    for module in model.modules():
        name = type(module).__name__
        normalises = isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
        if module.training and (normalises or "Drop" in name or name in ("StochasticDepth", "RReLU")):
            return name
    return None


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
    return _Copier(device).module(model, "")


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
    """Copies a module with what hangs on it; `memo` maps the id of an original to its copy, as in `copy.deepcopy`."""

    def __init__(self, device: str | None) -> None:
        self.memo: dict[int, Any] = {}
        self.device = device

    def module(self, module: nn.Module, name: str) -> nn.Module:
        """Return the replica of `module`, whose dotted name is `name`."""
        inner = unwrap(module)
        if id(inner) in self.memo:
            found: nn.Module = self.memo[id(inner)]
            return found
        _refuse(name or type(inner).__name__, inner)
        twin: nn.Module = object.__new__(type(inner))
        self.memo[id(inner)] = self.memo[id(module)] = twin
        # Tensors first, as a deep copy of an attribute should find those that it refers to.
        for key, value in sorted(vars(inner).items(), key=lambda item: item[0] not in ("_parameters", "_buffers")):
            twin.__dict__[key] = self._attribute(key, value, name)
        twin.__dict__ = {key: twin.__dict__[key] for key in vars(inner)}
        self._fill_slots(inner, twin)
        for hook in twin._forward_pre_hooks.values():  # weights that are computed may be older than what they are of
            hook(twin, ())
        return twin

    def _attribute(self, key: str, value: Any, name: str) -> Any:
        if key == "training":
            return False
        if key in _HOOK_TABLES:
            return OrderedDict((i, self.copy(hook)) for i, hook in value.items() if _computes_weights(hook))
        if key in _CALLED_ALWAYS:
            return OrderedDict()
        if key == "_compiled_call_impl":
            return None
        if key == "_modules":
            return {
                at: None if child is None else self.module(child, f"{name}.{at}".lstrip("."))
                for at, child in value.items()
            }
        return self.copy(value)

    def copy(self, value: Any) -> Any:
        """Return a copy of anything; what cannot be copied (a lock, a file) is shared."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        if type(value) in weakref.ProxyTypes:  # which says that it is of the class that it stands for
            return weakref.proxy(self.copy(value.__repr__.__self__))
        match value:
            case nn.Module():
                return self.module(value, type(value).__name__)
            case list() | set() | dict() if type(value) in (list, set, dict, OrderedDict):
                return self._container(value)
            case tuple() if type(value) is tuple:
                return tuple(self.copy(item) for item in value)
            case torch.Tensor():
                made: Any = self._tensor(value)
            case weakref.ReferenceType() if isinstance(value(), (nn.Module, torch.Tensor)):
                made = weakref.ref(self.copy(value()))
            case _ if type(value) in _CALLED:
                made = self._called(value)
            case _:
                made = self._object(value)
        self.memo[id(value)] = made
        return made

    def _called(self, value: Any) -> Any:
        """Copy what is called, with what it has hold of: modules may be among that, as by ``lambda x, m=m: m(x)``."""
        match value:
            case types.MethodType():
                return types.MethodType(value.__func__, self.copy(value.__self__))
            case functools.partial():
                keywords = {key: self.copy(item) for key, item in value.keywords.items()}
                return functools.partial(self.copy(value.func), *map(self.copy, value.args), **keywords)
            case types.FunctionType() if value.__closure__ or value.__defaults__ or value.__kwdefaults__:
                return self._function(value)
            case functools._lru_cache_wrapper():
                inside = self.copy(value.__wrapped__)
                own = inside is not value.__wrapped__
                return functools.lru_cache(**value.cache_parameters())(inside) if own else value
            case _:
                return value

    def _function(self, value: types.FunctionType) -> types.FunctionType:
        held = value.__closure__ or ()
        cells = tuple(types.CellType() for _ in held)
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
        self.memo[id(value)] = made  # first, as it may hold itself
        for cell, before in zip(cells, held, strict=True):
            with suppress(ValueError):  # an empty one
                cell.cell_contents = self.copy(before.cell_contents)
        made.__defaults__ = self.copy(value.__defaults__)
        made.__kwdefaults__ = self.copy(value.__kwdefaults__)
        made.__dict__.update(value.__dict__)
        return made

    def _container(self, value: Any) -> Any:
        made = self.memo[id(value)] = type(value)()  # first, as it may hold itself
        if isinstance(value, dict):
            made.update((key, self.copy(item)) for key, item in value.items())
        elif isinstance(value, list):
            made.extend(self.copy(item) for item in value)
        else:
            made.update(self.copy(item) for item in value)
        return made

    def _object(self, value: Any) -> Any:
        """Copy an object attribute by attribute, as modules may hang on it; one that knows how to copy itself does."""
        kind = type(value)
        own = {"__deepcopy__", "__reduce_ex__", "__reduce__"} & {
            name for base in kind.__mro__[:-1] for name in vars(base)
        }
        if hasattr(value, "__dict__") and not own:
            try:
                made = object.__new__(kind)
            except TypeError:  # made in C
                pass
            else:
                self.memo[id(value)] = made
                made.__dict__.update((key, self.copy(item)) for key, item in vars(value).items())
                self._fill_slots(value, made)
                return made
        try:
            return copy.deepcopy(value, self.memo)
        except Exception:  # noqa: BLE001  # whatever a stranger's __reduce__ raises
            return value

    def _fill_slots(self, value: Any, made: Any) -> None:
        for base in type(value).__mro__:
            if "__slots__" not in vars(base):
                continue
            for slot in vars(base).values():
                if isinstance(slot, types.MemberDescriptorType):
                    with suppress(AttributeError):  # an empty one
                        slot.__set__(made, self.copy(slot.__get__(value)))

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        if self.device is not None:
            made = torch.empty_like(value, device=self.device, requires_grad=False)
            return nn.Parameter(made, requires_grad=False) if isinstance(value, nn.Parameter) else made
        with torch.inference_mode(False):
            if isinstance(value, nn.Parameter):
                return nn.Parameter(value.detach(), requires_grad=False)
            return value.detach().clone()


_CALLED = (types.MethodType, types.FunctionType, functools.partial, functools._lru_cache_wrapper)


def _computes_weights(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")
