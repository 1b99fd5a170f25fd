"""A layer of each kind of transformers' DeepSeek-V4 alone: untouched, in fp64 and with its attention on lemmata."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import lemmata
from lemmata.integrations.observe import Choices, Dispatches, Double
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to

KINDS = {"swa": "sliding_attention", "csa": "compressed_sparse_attention", "hca": "heavily_compressed_attention"}
LENGTH, PADDED, RATIO = 70, 5, 16  # the ratio of HCA
SIZES = {"prefill": (LENGTH,), "chunks": (33, 5, 32), "decode": (57, *[1] * 13), "from one": (1,) * 20}
BF16 = torch.bfloat16
HIDDEN = torch.randn(2, LENGTH, 64, generator=torch.Generator().manual_seed(1))
ALL = torch.ones(2, LENGTH, dtype=torch.long)
LEFT = ALL.clone()
LEFT[0, :PADDED] = 0


def one_layer(op: str, **config: Any) -> Any:
    """A model of one layer, of the kind that the operator serves."""
    return tiny_model(num_hidden_layers=1, layer_types=[KINDS[op]], mlp_layer_types=["moe"], **config).to(BF16)


def run(
    model: Any,
    sizes: tuple[int, ...] = (LENGTH,),
    hidden: Tensor = HIDDEN,
    mask: Tensor = ALL,
    start: int = 0,
    edit: Callable[[Tensor], Tensor | None] = lambda mask: mask,
) -> Tensor:
    """The outputs of the layer's attention on chunks of these sizes, with a cache if there is more than one.

    Args:
        model: of one layer.
        sizes: of the chunks.
        hidden: what the layer reads.
        mask: 0 where there is padding.
        start: the first position.
        edit: makes another mask of the one that the model would make.
    """
    from transformers import DynamicCache
    from transformers.masking_utils import create_sliding_window_causal_mask

    inner, attention = model.model, model.model.layers[0].self_attn
    cache = DynamicCache(config=model.config) if len(sizes) > 1 else None
    positions, outputs, at = (mask.cumsum(-1) - 1).clamp(min=0) + start, [], 0  # as generate has them
    for size in sizes:
        x, position_ids = hidden[:, at : at + size].to(model.dtype), positions[:, at : at + size]
        at += size
        seen = create_sliding_window_causal_mask(
            config=model.config, inputs_embeds=x, attention_mask=mask[:, :at], past_key_values=cache
        )
        rotary = {
            kind: inner.rotary_emb(x, position_ids=position_ids, layer_type=kind) for kind in ("main", "compress")
        }
        outputs.append(attention(x, rotary, position_ids, edit(seen), past_key_values=cache)[0])
    return torch.cat(outputs, 1)


def on_lemmata(model: Any) -> Any:
    """The same model, whose indexer stays as it is."""
    return apply_to(copy.deepcopy(model), only=["attention"])


def three(model: Any, call: Callable[[Any], Any]) -> tuple[Any, Any, Any, Counter[str]]:
    """What the call gives untouched, in fp64 and swapped, all with the same entries; and the operators called."""
    choices, calls = Choices(), Dispatches()
    with choices.record(model):
        plain = call(model)
    exact, ours = copy.deepcopy(model).double(), on_lemmata(model)
    with choices.keep(exact), Double():
        right = call(exact)
    with choices.keep(ours), calls:
        got = call(ours)
    return plain, right, got, calls.calls


def bound(plain: Tensor, right: Tensor) -> Tensor:
    """As for the logits: twice the error of the untouched module, and one rounding."""
    return 2 * (plain - right).abs().max() + torch.finfo(BF16).eps * plain.abs().max()


def agrees(plain: Tensor, right: Tensor, got: Tensor) -> bool:
    """Whether the swapped module is as near to the untouched one as two roundings are."""
    limit = bound(plain, right)
    assert limit < 0.2 * plain.abs().max()
    return bool((got - plain).abs().max() <= limit)


@contextmanager
def watched(op: str) -> Iterator[list[Any]]:
    """The arguments of each call of the operator."""
    calls: list[Any] = []
    right = getattr(lemmata, op)

    def watch(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return right(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lemmata, op, watch)
        yield calls
