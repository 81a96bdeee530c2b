"""Where models come from: the embedded default, torchvision, timm, an importable architecture with a weights file."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..errors import ModelError, nearest
from .model import Model, class_names
from .preprocess import Preprocess

EMBEDDED: Final = "mobilenet_v2"
_WEIGHTS: Final = "mobilenet_v2.safetensors"


def load_model(
    name: str | Path | nn.Module | Model | None = None,
    *,
    weights: str | Path | None = "DEFAULT",
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | Mapping[int, str] | None = None,
    device: str | torch.device = "cpu",
) -> Model:
    """Load a network in eval mode, with its preprocessing and labels where they are known.

    Args:
        name: None for the embedded MobileNetV2 (ImageNet, no network needed); a torchvision name; ``"timm:NAME"``;
            ``"package.module:function"`` that returns an nn.Module; the ``.safetensors`` file of a style network, see
            `cnnviz.synthesis.train_style`; or a module, which is wrapped as it is.
        weights: "DEFAULT" for what the source offers (downloaded by torchvision or timm, or from their cache), None
            for random weights, or the path of a ``.safetensors`` or state-dict file, read without unpickling code.
            Half-precision files are cast to float32.
        preprocess: replaces the source's preprocessing, which for a file of weights is that of the default ones.
        labels: replaces the source's class names: in order, or a dictionary from a class's number to its name.
        device: where the weights go; a module given is left where it is.

    Raises:
        ModelError: an unknown name, weights that cannot be had or do not fit; says what to do.
        OptionError: labels that name no classes.

    Example:
        >>> model = load_model()
        >>> model.name, model.input_size, len(model.labels)
        ('mobilenet_v2', (224, 224), 1000)
    """
    if isinstance(name, (Model, nn.Module)):
        if weights is not None and str(weights) != "DEFAULT":
            raise ModelError("weights: a module has its own; load them with module.load_state_dict(…) first")
        made = name if isinstance(name, Model) else Model(name)
        if preprocess is None and labels is None:
            return made
        return replace(
            made,
            preprocess=preprocess or made.preprocess,
            labels=made.labels if labels is None else class_names(labels),
            input_size=made.input_size if preprocess is None else None,
        )
    name = str(name) if isinstance(name, Path) else name
    if name is not None and not isinstance(name, str):
        raise ModelError(f"model: got {type(name).__name__}, expected a name, an nn.Module or a cnnviz.Model")
    if weights is not None and str(weights) != "DEFAULT" and not Path(weights).is_file():
        raise ModelError(f"weights file '{weights}' does not exist; give a file, 'DEFAULT', or None for random weights")
    if name is None:
        loaded = _embedded() if str(weights) == "DEFAULT" else _torchvision(EMBEDDED, weights)
    elif Path(name).suffix == ".safetensors":
        loaded = _style_network(name, weights)
    elif name.startswith("timm:"):
        loaded = _timm(name.removeprefix("timm:"), weights, preprocess)
    elif ":" in name:
        loaded = _imported(name, weights)
    else:
        loaded = _torchvision(name, weights)
    return Model(
        loaded.module.eval().to(device),
        name=loaded.name,
        preprocess=preprocess or loaded.preprocess,
        labels=loaded.labels if labels is None else class_names(labels),
        input_size=loaded.input_size if preprocess is None else None,
        source=loaded.source,
    )


def _embedded() -> Model:
    # As below: torchvision is imported only where a model is loaded.
    from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

    with torch.device("meta"):  # initial weights are not drawn, as they would be overwritten
        module = mobilenet_v2(weights=None)
    with as_file(files("cnnviz.models") / "weights" / _WEIGHTS) as path:
        _fill(module, _read(path), EMBEDDED, f"'{path}'", assign=True)
    preprocess = Preprocess(resize=256, crop=(224, 224), mean=_IMAGENET[0], std=_IMAGENET[1])
    labels = tuple(MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])
    return Model(
        module, EMBEDDED, preprocess, labels, (224, 224), "embedded (torchvision IMAGENET1K_V1, half precision)"
    )


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _torchvision(name: str, weights: str | Path | None) -> Model:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise ModelError(
            f"no model '{name}' in torchvision{nearest(name, known)}; timm's are 'timm:NAME', your own "
            "'module:function', and none at all gives the embedded MobileNetV2"
        )
    default = models.get_model_weights(name)
    entry = getattr(default, "DEFAULT", None)
    if str(weights) == "DEFAULT":
        module = _as_published(name, entry)
    else:
        state = None if weights is None else _read(Path(weights))
        module = models.get_model(name, weights=None, **_settings(name, state))
        if state is not None:
            _fill(module, state, name, f"'{weights}'")
    preprocess = _preset(entry.transforms() if entry is not None else None)
    labels = tuple(entry.meta.get("categories", ())) if entry is not None and weights is not None else ()
    return Model(
        module,
        name,
        preprocess,
        labels or None,
        source=f"torchvision {_version('torchvision')}, " + _told(weights),
    )


def _as_published(name: str, entry: Any) -> nn.Module:
    """Return a network of torchvision's with the weights that are published for it."""
    from torchvision import models

    cache = f"{torch.hub.get_dir()}/checkpoints"
    try:
        if entry is not None:  # torchvision would run what a file holds that lies in its cache already
            entry.get_state_dict(weights_only=True, check_hash=True)
        made: nn.Module = models.get_model(name, weights="DEFAULT")
    except OSError as error:  # urllib's errors among them
        raise ModelError(
            f"the weights of '{name}' could not be downloaded ({error}); put {_file(entry)} into {cache}, give "
            "weights='file.safetensors', or weights=None for random ones; load_model() without a name needs no network"
        ) from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"the weights of '{name}' in {cache} are damaged, or hold more than tensors, which only running code from "
            f"them could load; delete {_file(entry)} there"
        ) from error
    except RuntimeError as error:  # as of a file that was put there by hand
        raise ModelError(
            f"the weights of '{name}' in {cache} do not fit it; delete {_file(entry)} there, or download it again"
        ) from error
    return made


_HEADS = {  # that only some weights have: what a builder calls them, and how their names begin
    "aux_loss": ("aux_classifier.",),
    "aux_logits": ("aux1.", "AuxLogits."),
}


def _settings(name: str, state: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """Return how to build a network of torchvision's so that it is as with weights of its own, which are filled in."""
    import inspect

    from torchvision import models

    parameters = inspect.signature(models.get_model_builder(name)).parameters
    made: dict[str, Any] = {"weights_backbone": None} if "weights_backbone" in parameters else {}
    known = {*parameters, *(("aux_logits",) if name in _NORMALISING else ())}  # theirs are among **kwargs
    if state is not None:
        made |= {key: any(at.startswith(heads) for at in state) for key, heads in _HEADS.items() if key in known}
    if name in _NORMALISING:
        # They warn until they are told whether to draw their (slow) initial weights.
        made |= {"init_weights": state is None, "transform_input": state is not None}
    return made


_NORMALISING = ("googlenet", "inception_v3")
"""Whose weights are for other units than all others': the networks themselves change to these."""


def _file(entry: Any) -> str:
    return "the file " + entry.url.rpartition("/")[2] if entry is not None else "its file"


def _preset(preset: Any) -> Preprocess:
    """Read a torchvision weight's preprocessing; what has neither size nor mean becomes plain [0, 1]."""
    resize = getattr(preset, "resize_size", None)
    crop = getattr(preset, "crop_size", None)
    mean, std = getattr(preset, "mean", None), getattr(preset, "std", None)
    interpolation = getattr(preset, "interpolation", None)
    return Preprocess(
        resize=resize[0] if resize and len(resize) == 1 else tuple(resize) if resize else None,
        crop=(crop[0], crop[-1]) if crop else None,
        mean=tuple(mean) if mean else (0.0,) * 3,
        std=tuple(std) if std else (1.0,) * 3,
        interpolation=interpolation.value if interpolation is not None else "bilinear",
    )


def _style_network(path: str, weights: str | Path | None) -> Model:
    if weights is not None and str(weights) != "DEFAULT":
        raise ModelError(f"weights: the style network '{path}' has its own; leave them out")
    from .style_network import StyleNetwork

    return Model(StyleNetwork.load(path), Path(path).stem, Preprocess(), source=f"style network {path}")


_CROPS = ("center", "squash")


def _timm(name: str, weights: str | Path | None, preprocess: Preprocess | None) -> Model:
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"'timm:{name}' needs timm; pip install 'cnnviz[timm]'") from error
    if not timm.is_model(name.partition(".")[0]):
        raise ModelError(f"no model '{name}' in timm{nearest(name, timm.list_models())}")
    try:
        module = timm.create_model(name, pretrained=str(weights) == "DEFAULT")
    except Exception as error:  # the hub's client has a dozen ways to say that there is no network
        raise ModelError(
            f"the weights of 'timm:{name}' could not be had ({error}); give weights='file.safetensors', or weights=None"
        ) from error
    if weights is not None and str(weights) != "DEFAULT":
        _fill(module, _read(Path(weights)), name, f"'{weights}'")
    config: dict[str, Any] = timm.data.config.resolve_model_data_config(module)  # type: ignore[no-untyped-call]
    _, height, width = config["input_size"]
    if config["crop_mode"] not in _CROPS and preprocess is None:
        raise ModelError(f"'timm:{name}' crops by '{config['crop_mode']}', which is not known here; give preprocess=…")
    side = int(height / config["crop_pct"]), int(width / config["crop_pct"])
    read = Preprocess(
        resize=side if config["crop_mode"] == "squash" else min(side),
        crop=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )
    labels: tuple[str, ...] | None = None
    if weights is not None and module.num_classes == 1000:
        info = timm.data.imagenet_info.ImageNetInfo("imagenet-1k")
        labels = tuple(info.index_to_description(i).split(",")[0] for i in range(1000))
    return Model(
        module, f"timm:{name}", preprocess or read, labels, source=f"timm {timm.__version__}, " + _told(weights)
    )


def _imported(name: str, weights: str | Path | None) -> Model:
    place, _, function = name.partition(":")
    try:
        build = getattr(importlib.import_module(place), function)
    except Exception as error:  # whatever a stranger's module raises
        raise ModelError(f"'{name}' cannot be imported ({error}); expected 'package.module:function'") from error
    if not callable(build):
        raise ModelError(f"'{name}' is {type(build).__name__}, expected a function that returns an nn.Module")
    try:
        built = build()
    except Exception as error:  # whatever a stranger's code raises
        raise ModelError(f"'{name}' failed: {error!r}") from error
    if not isinstance(built, (nn.Module, Model)):
        raise ModelError(f"'{name}' returned {type(built).__name__}, expected an nn.Module or a cnnviz.Model")
    made = built if isinstance(built, Model) else Model(built, name)
    if weights is not None and str(weights) != "DEFAULT":
        _fill(made.module, _read(Path(weights)), name, f"'{weights}'")
        return replace(made, source=f"{name}, {_told(weights)}")
    return replace(made, source=f"{name}, weights as it made them")


def _fill(module: nn.Module, state: Mapping[str, Tensor], name: str, source: str, *, assign: bool = False) -> None:
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    # Batch counters matter to training alone, and some converters leave them out.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    misshapen = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if missing or unexpected or misshapen:
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", sorted(misshapen))]
        told = "; ".join(f"{len(keys)} {word} ({', '.join(keys[:3])}…)" for word, keys in parts if keys)
        raise ModelError(f"{source} does not fit '{name}': {told}; give the weights of this architecture")
    module.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()}, strict=False, assign=assign)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"'{path}' is no weights file that can be read safely: it is damaged, or holds more than tensors, which "
            "only running code from it could load; expected .safetensors, or a state dict saved by torch.save"
        ) from error
    except Exception as error:  # a damaged file fails in whatever part of it is read
        raise ModelError(
            f"'{path}' is no weights file that can be read safely ({error}); expected .safetensors, or a state dict "
            "saved by torch.save"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ModelError(f"'{path}' holds {type(state).__name__}, expected a state dict (name to tensor)")
    return state


def _told(weights: str | Path | None) -> str:
    return "random weights" if weights is None else f"weights {weights}"


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)
