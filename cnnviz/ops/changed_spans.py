"""Where patches differ noticeably from the map that they lie on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _check
from ._operator import Operator
from .crop_patches import _crop_patches


def changed_spans(base: Tensor, patch: Tensor, patch_yx: Tensor, spans: Tensor, share: float) -> Tensor:
    """Return the smallest spans that hold all that differs from the base by a share of what differs most, or by more.

    (1, C, H, W), (K, C, h, w), (K, 2), (K, 2, 2) -> (K, 2, 2). A pixel differs by what the channel does that differs
    most; what is no number differs most of all. Where nothing differs, spans are empty, and begin where they did.

    Args:
        base: (1, C, H, W); float32, float64, float16 or bfloat16.
        patch: (K, C, h, w) of the same type.
        patch_yx: (K, 2) int64, first row and column of each patch within the base; on the CPU, otherwise it is fetched.
        spans: (K, 2, 2) int64, of rows and columns the first and the last but one that are looked at, inside of patch
            and base; likewise.
        share: of what differs most of a patch's pixels within its spans, in [0, 1].

    Raises:
        ValueError: shapes or types do not fit, a span reaches out of its patch, or the share is none.
    """
    _check.patches("changed_spans", base, patch)
    patch_yx = _check.corners("changed_spans", "patch_yx", patch_yx, len(patch))
    spans = _check.integers("changed_spans", "spans", spans, (len(patch), 2, 2))
    _check.have_values("changed_spans", base, patch_yx=patch_yx, spans=spans)
    if not 0 <= share <= 1:
        raise ValueError(f"changed_spans: share is {share}, expected 0 to 1")
    if _check.has_values(spans):
        _inside(patch_yx, spans, (patch.shape[2], patch.shape[3]), (base.shape[2], base.shape[3]))
    if base.dtype in (torch.float16, torch.bfloat16):
        base, patch = base.float(), patch.float()
    return _forward(base, patch, patch_yx, spans, float(share))


def _inside(patch_yx: Tensor, spans: Tensor, size: tuple[int, int], whole: tuple[int, int]) -> None:
    """Require spans that are empty or lie inside of their patches and of the base."""
    first, stop = spans.unbind(2)
    last = torch.minimum(patch_yx + torch.tensor(size, device="cpu"), torch.tensor(whole, device="cpu"))
    wrong = (first < stop) & ((first < patch_yx.clamp(min=0)) | (stop > last))
    if bool(wrong.any()):
        k = int(wrong.any(1).nonzero()[0])
        raise ValueError(
            f"changed_spans: spans[{k}] is {spans[k].tolist()}, expected spans inside of a patch of {size[0]} x "
            f"{size[1]} at {patch_yx[k].tolist()} and of a base of {whole[0]} x {whole[1]}"
        )


@torch.library.custom_op("cnnviz::changed_spans", mutates_args=())
def _changed_spans(base: Tensor, patch: Tensor, patch_yx: Tensor, spans: Tensor, share: float) -> Tensor:
    if not patch.numel():
        return spans[:, :, :1].expand_as(spans).clone()
    height, width = patch.shape[2:]
    under = _crop_patches(base, patch_yx.new_zeros(len(patch)), patch_yx, [height, width], 0.0)
    differs = (patch - under).abs().amax(1).nan_to_num(nan=math.inf, posinf=math.inf).cpu()
    axes = [patch_yx[:, axis, None] + torch.arange(size, device="cpu") for axis, size in enumerate((height, width))]
    within = [(spans[:, i, :1] <= axis) & (axis < spans[:, i, 1:]) for i, axis in enumerate(axes)]
    looked_at = within[0][:, :, None] & within[1][:, None, :]
    most = differs.masked_fill(~looked_at, 0).amax((1, 2), keepdim=True)
    counts = looked_at & (differs >= (share * most).nan_to_num(nan=math.inf, posinf=math.inf))
    made = []
    for i, axis in enumerate(axes):
        line = counts.any(2 - i)
        first = axis.masked_fill(~line, torch.iinfo(axis.dtype).max).amin(1)
        stop = axis.masked_fill(~line, -1).amax(1) + 1
        made.append(torch.stack([first, stop], 1))
    nothing = spans[:, :, :1].expand_as(spans)
    return torch.where(most > 0, torch.stack(made, 1), nothing)


@_changed_spans.register_fake
def _(base: Tensor, patch: Tensor, patch_yx: Tensor, spans: Tensor, share: float) -> Tensor:
    return torch.empty_like(spans)


_forward = Operator(_changed_spans)
