"""What the queries of a call see, told once for all layers of a model, before the first.

The operators know no mask: which keys a query sees follows from its position. A model's mask says the same where no
token is hidden but padding on the left. Else the rows that each query sees are read off the mask (``Sight.offset`` is
None), which any causal mask of the window allows: padding anywhere, packed documents.

To look at a mask is to wait for the device, so it happens once in a forward, before the layers. What torch.compile, a
CUDA graph or fake tensors keep from being looked at is read off the mask without looking.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from .originals import from_a_library, modeling, state

ARGUMENT = "lemmata_sight"
"""The keyword under which layers are told."""
_NAMES = "input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds"  # as arguments stand
_PIECE = 2**22  # elements of a mask that are looked at together
_ROWS, _OTHER = -(2**30), -(2**31)  # what a look returns besides offsets


class Sight(NamedTuple):
    """What the queries of a call see.

    Attributes:
        offset: the position of the first query of each sequence, int32 ``[B]``, from which positions count up, each query
            seeing the window of tokens at positions from 0 on; None if that must be read off the mask.
        lowest: the least of the offsets.
        past: how many tokens came before.
    """

    offset: Tensor | None
    lowest: int
    past: int


def may_look(*tensors: Tensor | None) -> bool:
    """Return whether the elements of these tensors can be asked for now."""
    if torch.compiler.is_compiling():
        return False
    given = [t for t in tensors if t is not None]
    if any(t.is_meta or isinstance(t, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(t) for t in given):
        return False
    return not (any(t.is_cuda for t in given) and torch.cuda.is_current_stream_capturing())


def held(layer: Any, window: int) -> tuple[int, int] | None:
    """Return how many tokens a layer of the cache has seen and how many it shows to a call, or None if that is unknown."""
    from transformers.cache_utils import DynamicSlidingWindowLayer

    known = DynamicSlidingWindowLayer, modeling().DeepseekV4HCACache, modeling().DeepseekV4CSACache
    if type(layer) not in known:
        return None
    past = layer.cumulative_length
    return past, min(layer.keys.shape[-2], window - 1) if layer.is_initialized else 0


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _trusted(model: Any) -> bool:
    """Return whether the mask made of the arguments is the causal window less padding and other documents."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    config = model.config
    if config._attn_implementation != "eager" or not getattr(config, "is_causal", True):
        return False
    makers = modeling().create_sliding_window_causal_mask, ALL_MASK_ATTENTION_FUNCTIONS["eager"]
    return state("DeepseekV4Model.forward", type(model).forward) == "known" and all(map(from_a_library, makers))


def tell(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tell the layers of a ``DeepseekV4Model`` what the queries of this call see: a forward pre-hook."""
    sight = _of_call(model, dict(zip(_NAMES, args, strict=False)) | kwargs)
    return args, kwargs if sight is None else kwargs | {ARGUMENT: sight}


def _of_call(model: Any, given: dict[str, Any]) -> Sight | None:
    """Return what the queries of a call see, or None if the layers must look for themselves."""
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    cache = given.get("cache", given.get("past_key_values"))
    inputs = given.get("inputs_embeds") if given.get("input_ids") is None else given["input_ids"]
    flat = (mask is None or _flat(mask)) and (positions is None or _flat(positions))
    if inputs is None or not flat or given.get("is_causal") is False or not _trusted(model):
        return None
    window, layers = model.config.sliding_window, [] if cache is None else cache.layers
    found = held(layers[0], window) if layers else ((0, 0) if cache is None else None)
    if found is None:
        return None
    (past, kept), (batch, queries) = found, inputs.shape[:2]
    if positions is None:
        positions = past + torch.arange(queries, device=inputs.device).unsqueeze(0)
        if mask is None:
            return Sight(torch.full((batch,), past, dtype=torch.int32, device=inputs.device), past, past)
    if mask is not None and mask.shape[1] != past + queries:
        return Sight(None, 0, past)
    ratios = model.config.compress_rates.values()
    if not may_look(mask, positions):
        return Sight(None, 0, past)
    with _disable_current_modes():
        lowest = int(_lowest(mask, positions, kept, min(ratios, default=1)))
    return Sight(None, 0, past) if lowest == _ROWS else Sight(_offsets(positions, batch), lowest, past)


def _flat(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.ndim == 2


def _offsets(positions: Tensor, batch: int) -> Tensor:
    """Return the position of each first query, were all to count up to the last; below 0 where padding comes first."""
    return (positions[:, -1] - (positions.shape[1] - 1)).int().expand(batch)


def _counts_up(positions: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
    """Return the offsets, [B, 1], and whether all positions are those, or on padding such that no entry is seen."""
    first = positions[:, -1:] - (positions.shape[1] - 1)
    expected = first + torch.arange(positions.shape[1], device=positions.device)
    return first, torch.where(expected >= 0, positions == expected, positions < ratio - 1).all()


def _lowest(mask: Tensor | None, positions: Tensor, kept: int, ratio: int) -> Tensor:
    """Return the lowest offset, or `_ROWS`; the mask is the one of two dimensions that the model was given."""
    first, agrees = _counts_up(positions, ratio)
    row = first - kept + torch.arange(kept + positions.shape[1], device=positions.device)
    shown = True if mask is None else mask[:, -row.shape[1] :].bool()
    agrees = agrees & ((row >= 0) == shown).all()
    return torch.where(agrees, first.min(), _ROWS)


_SEEN = WeakTensorKeyDictionary()  # what was seen in masks; the layers of a model share theirs


def of_mask(self: Any, mask: Tensor, positions: Tensor, past: int, kept: int) -> Sight | None:
    """Return what the queries of an attention's call see by its mask, or None if it is not one of the window.

    For a layer that nobody told.
    """
    ratio = min(self.config.compress_rates.values())
    seen = of_window(mask, positions, kept, self.sliding_window, ratio)
    return None if seen is None else seen._replace(past=past)


def of_window(mask: Tensor, positions: Tensor, kept: int, window: int, ratio: int) -> Sight | None:
    """Return what the queries of a call see by a mask ``[B, 1, S, rows]``, or None if it is not one of the window.

    The first query stands in row ``kept``. The looking is hidden from dispatch modes, so that a recomputation in which
    the answer is known already runs the same operators.
    """
    with _disable_current_modes():
        seen = _seen(mask, positions, kept, window, ratio)
    if seen == _OTHER:
        return None
    return Sight(None, 0, kept) if seen == _ROWS else Sight(_offsets(positions, -1), seen, kept)


def _seen(mask: Tensor, positions: Tensor, *sizes: int) -> int:
    if mask.is_inference() or positions.is_inference():  # which may change unnoticed
        return int(_lowest_of_mask(mask, positions, *sizes))
    now = mask._version, positions._version, *sizes
    if mask in _SEEN:
        of, then, seen = _SEEN[mask]
        if of() is positions and then == now:
            return seen  # type: ignore[no-any-return]
    seen = int(_lowest_of_mask(mask, positions, *sizes))
    _SEEN[mask] = weakref.ref(positions), now, seen
    return seen


def _lowest_of_mask(mask: Tensor, positions: Tensor, kept: int, window: int, ratio: int) -> Tensor:
    """Return the lowest offset, `_ROWS`, or `_OTHER` if the mask shows other keys than the window's or shifts logits."""
    S, rows = mask.shape[2:]
    (first, agrees), row = _counts_up(positions, ratio), torch.arange(rows, device=mask.device)
    within, hidden = torch.ones_like(agrees), torch.finfo(mask.dtype).min
    step = max(_PIECE // rows, 1)
    for start in range(0, S, step):
        part = mask[:, 0, start : start + step]
        age = torch.arange(start, start + part.shape[1], device=mask.device).unsqueeze(-1) + kept - row
        band = (age >= 0) & (age < window)
        within = within & ((part <= hidden) | (band & (part == 0))).all()
        agrees = agrees & ((part == 0) == (band & (first.unsqueeze(-1) - kept + row >= 0))).all()
    return torch.where(within, torch.where(agrees, first.min(), _ROWS), _OTHER)


def rows_seen(mask: Tensor, batch: int, kept: int, window: int) -> Tensor:
    """Return the rows of the window that each query sees by a mask of the window: int32 ``[B, S, window]``, -1 for none."""
    S = mask.shape[2]
    query = torch.arange(S, device=mask.device).unsqueeze(-1) + kept
    row = query - torch.arange(min(window, kept + S), device=mask.device)
    seen = mask[:, 0].gather(-1, row.clamp(min=0).expand(mask.shape[0], -1, -1)) == 0
    return torch.where(seen & (row >= 0), row, -1).int().expand(batch, -1, -1)
