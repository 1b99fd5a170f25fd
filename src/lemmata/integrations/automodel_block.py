"""DeepSeek-V4's blocks of NeMo AutoModel, whose streams are mixed by ``lemmata.mhc_post``.

A block reads its streams, computes attention of them, mixes the result into them, and does the same again with its experts.
The layers that predict further tokens do so too. Where the streams are in bf16, the block asks its hyper-connections for the
sum of the streams, so that these run on ``lemmata.mhc_pre``; and the mixing is ``lemmata.mhc_post``. Else it is torch's, as
AutoModel has it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import lemmata

from ..reference.mhc import MHC_POST
from .automodel_hyper_connection import collapsed, hyper_connection
from .automodel_originals import blocks, patched
from .calls import PLAIN
from .paths import OWN, took

_BF16 = torch.bfloat16
_SHARDING = "torch.distributed.fsdp"  # whose hooks gather parameters and change dtypes, whatever is passed and returned


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _altered(self: Any, name: str) -> str | None:
    """Return whether the forward that ours replaces is patched, as a reason, or None."""
    return patched("mhc_post", (f"{name}.forward", self.lemmata_original.forward))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _collapses(connection: Any) -> bool:
    """Return whether a hyper-connection can be asked for the sum of the streams, and nobody else sees what it returns."""
    inner = getattr(connection, "_checkpoint_wrapped_module", connection)
    every = (hooks for m in (connection, inner) for hooks in (m._forward_hooks, m._forward_pre_hooks))
    others = (hook for hooks in every for hook in hooks.values() if not str(hook.__module__).startswith(_SHARDING))
    back = (m._backward_hooks or m._backward_pre_hooks or "forward" in vars(m) for m in (connection, inner))
    plain = inner is connection or any(c.__name__ == "CheckpointWrapper" for c in type(connection).__mro__)
    return plain and getattr(type(inner), "forward", None) is hyper_connection and not any(back) and not any(others)


def _read(connection: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what comes next reads of the streams, ``[B, S, hidden]``, and the weights post and comb."""
    if x.dtype == _BF16 and _collapses(connection):
        total, post, comb = connection(x, lemmata_collapse=True)
        return total.to(x.dtype), post, comb
    pre, post, comb = connection(x)
    return collapsed(x, pre), post, comb


def _unfit(x: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> str | None:
    """Return why ``lemmata.mhc_post`` does not take these, or None."""
    for name, tensor, dtype in (("streams", x, _BF16), ("a result", y, _BF16), ("weights", post, torch.float32)):
        if tensor.dtype != dtype:
            return f"{name} in {tensor.dtype}, where the operator takes {dtype}"
    for tensor in (x, y, post, comb):
        if type(tensor) not in PLAIN:
            return f"a tensor of type {type(tensor).__name__}"
    if x.ndim != 4 or y.shape != (*x.shape[:2], x.shape[3]):
        return f"streams of shape {tuple(x.shape)} and a result of shape {tuple(y.shape)}"
    for name, value in zip(("hc", "hidden"), x.shape[2:], strict=True):
        if not MHC_POST.statics[name].admits(value):
            return f"{name} is {value}, where the operator takes {MHC_POST.statics[name].pretty}"
    return None


def _mixed(x: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> tuple[Tensor, str | None]:
    """Return the streams after y was computed of them, and None, or why no operator did but what a block does itself."""
    reason = _unfit(x, y, post, comb)
    if reason is None:
        return lemmata.mhc_post(x, y, post, comb), None
    added = post.to(x.dtype).unsqueeze(-1) * y.unsqueeze(-2)
    return added + torch.matmul(comb.transpose(-1, -2).to(x.dtype), x), reason


def block(
    self: Any,
    x: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    position_ids: Tensor | None = None,
    position_embeddings_compress: tuple[Tensor, Tensor] | None = None,
    rotary_compress: Any = None,
    attention_mask: Tensor | None = None,
    padding_mask: Tensor | None = None,
    input_ids: Tensor | None = None,
    vision_token_types: Tensor | None = None,
    **attn_kwargs: Any,
) -> Tensor:
    """Compute the forward of ``DeepseekV4Block``, streams ``[B, S, n, hidden]`` to streams."""
    of_attention: dict[str, Any] = {
        "position_embeddings": position_embeddings,
        "attention_mask": attention_mask,
        "position_embeddings_compress": position_embeddings_compress,
        "rotary_compress": rotary_compress,
        "position_ids": position_ids,
        "vision_token_types": vision_token_types,
        **attn_kwargs,
    }
    altered = _altered(self, "DeepseekV4Block")
    if altered is not None:
        took(self, OWN, altered)
        own = {"padding_mask": padding_mask, "input_ids": input_ids}
        return self.lemmata_original.forward(self, x, **of_attention, **own)  # type: ignore[no-any-return]
    if attention_mask is not None and padding_mask is None and attention_mask.dim() == 2:
        padding_mask = attention_mask.bool().logical_not()
    read, *weights = _read(self.attn_hc, x)
    result, _ = self.self_attn(hidden_states=self.input_layernorm(read), **of_attention)
    x, first = _mixed(x, result, *weights)
    read, *weights = _read(self.ffn_hc, x)
    theirs, gate = blocks(), getattr(self.mlp, "gate", None)
    if isinstance(gate, theirs.DeepseekV4VisionGate):
        gate.set_routing_context(input_ids, vision_token_types)
    elif self.is_hash_routing_layer and isinstance(gate, theirs.DeepseekV4HashGate):
        gate.set_input_ids(input_ids)
    x, second = _mixed(x, self.mlp(self.post_attention_layernorm(read), padding_mask), *weights)
    reason = first or second
    took(self, "mhc_post" if reason is None else OWN, reason)
    return x


def further_block(
    self: Any,
    hidden_states: Tensor,
    *,
    embed_input: Tensor,
    input_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    padding_mask: Tensor | None = None,
    **attn_kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Compute the forward of ``DeepseekV4MTPBlock``: streams, ``[B, S, n, hidden]``, and what predicts, ``[B, S, hidden]``."""
    altered = _altered(self, "DeepseekV4MTPBlock")
    if altered is None and hidden_states.ndim != 4:
        altered = f"streams of {hidden_states.ndim} dimensions"
    if altered is not None:
        took(self, OWN, altered)
        own = {"embed_input": embed_input, "input_ids": input_ids, "position_ids": position_ids}
        own |= {"attention_mask": attention_mask, "padding_mask": padding_mask, **attn_kwargs}
        return self.lemmata_original.forward(self, hidden_states, **own)  # type: ignore[no-any-return]
    x = self.e_proj(self.enorm(embed_input)).unsqueeze(2) + self.h_proj(self.hnorm(hidden_states))
    if position_ids is None:
        B, S = embed_input.shape[:2]
        position_ids = torch.arange(S, device=embed_input.device).unsqueeze(0).expand(B, -1)
    of_attention: dict[str, Any] = {
        "position_embeddings": self._rotary_emb(embed_input, position_ids),
        "attention_mask": attention_mask,
        "position_embeddings_compress": self._rotary_emb_compress(embed_input, position_ids),
        "rotary_compress": self._rotary_emb_compress,
        "position_ids": position_ids,
        **attn_kwargs,
    }
    read, *weights = _read(self.attn_hc, x)
    result, _ = self.self_attn(hidden_states=self.input_layernorm(read), **of_attention)
    x, first = _mixed(x, result, *weights)
    read, *weights = _read(self.ffn_hc, x)
    tell = getattr(self.mlp.gate, "set_routing_context", None)
    if tell is not None:
        tell(input_ids, None)
    x, second = _mixed(x, self.mlp(self.post_attention_layernorm(read), padding_mask), *weights)
    reason = first or second
    took(self, "mhc_post" if reason is None else OWN, reason)
    return x, self.norm(self.hc_head(x))
