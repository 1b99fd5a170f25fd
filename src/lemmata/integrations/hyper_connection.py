"""DeepSeek-V4's hyper-connections of transformers on ``lemmata.mhc_pre``, ``mhc_post`` and ``mhc_head``.

The operators take streams in bf16, and those that bf16 autocast rounds to it where a layer mixes them. Of others the module
computes its coefficients around ``lemmata.sinkhorn``; a layer and the head are their own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lemmata

from ..reference.mhc import MHC_HEAD, MHC_POST, MHC_PRE
from ..reference.sinkhorn import FORWARD
from .calls import PLAIN, hooked, narrows
from .originals import patched
from .paths import OWN, took

_BF16 = torch.bfloat16
_NORM = "DeepseekV4UnweightedRMSNorm"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _fallback(self: Any) -> str | None:
    """Return why ``lemmata.sinkhorn`` does not compute what this hyper-connection does, or None."""
    altered = patched(("DeepseekV4HyperConnection.forward", self.lemmata_original.forward))
    if altered:
        return altered
    settings = {"n": ("hc_mult", self.hc_mult), "iterations": ("hc_sinkhorn_iters", _steps(self))}
    settings["eps"] = "hc_eps", self.hc_eps
    for name, (theirs, value) in settings.items():
        if not FORWARD.statics[name].admits(value):
            return f"{theirs} is {value}, where the operator takes {FORWARD.statics[name].pretty}"
    if torch.float64 in (self.fn.dtype, self.base.dtype):
        return "parameters in float64, where the operator computes in float32"
    return None


def _steps(self: Any) -> int:
    """Return how often the module normalises columns: once at least, whatever its configuration says."""
    return max(int(self.hc_sinkhorn_iters), 1)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _other_norm(module: Any) -> str | None:
    """Return why the norm inside is not the one that the operators repeat, or None."""
    norm, limits = module.input_norm, MHC_PRE.statics["norm_eps"]
    if type(norm).__name__ != _NORM:
        return f"a norm of class {type(norm).__name__}"
    if not limits.admits(norm.eps):
        return f"norm_eps is {norm.eps}, where the operator takes {limits.pretty}"
    return patched((f"{_NORM}.forward", type(norm).forward)) or hooked(norm)


def _unfit(streams: Tensor, *parameters: Tensor) -> str | None:
    """Return why no operator takes these streams, ``[B, S, hc, hidden]``, and these parameters, or None."""
    if streams.dtype != _BF16 and not narrows(streams):
        return f"streams in {streams.dtype}, where the operator takes bfloat16"
    if any(p.dtype == torch.float64 for p in parameters):
        return "parameters in float64, where the operator computes in float32"
    for tensor in (streams, *parameters):
        if type(tensor) not in PLAIN:
            return f"a tensor of type {type(tensor).__name__}"
    if streams.ndim != 4:
        return f"streams of {streams.ndim} dimensions"
    for name, value in zip(("hc", "hidden"), streams.shape[2:], strict=True):
        if not MHC_POST.statics[name].admits(value):
            return f"{name} is {value}, where the operator takes {MHC_POST.statics[name].pretty}"
    return None


def hyper_connection(self: Any, hidden_streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the forward of ``DeepseekV4HyperConnection``: post, comb, and the input of what comes next."""
    reason = _fallback(self)
    if reason is not None:
        took(self, OWN, reason)
        return self.lemmata_original.forward(self, hidden_streams)  # type: ignore[no-any-return]
    weights = self.fn, self.scale, self.base
    if _unfit(hidden_streams, *weights) is None and _other_norm(self) is None:
        took(self, "mhc_pre")
        of_call: dict[str, Any] = {"iterations": _steps(self), "eps": self.hc_eps, "norm_eps": self.input_norm.eps}
        collapsed, post, comb = lemmata.mhc_pre(hidden_streams.to(_BF16), *(w.float() for w in weights), **of_call)
        return post, comb, collapsed.to(hidden_streams.dtype)
    return _around_sinkhorn(self, hidden_streams)


def _around_sinkhorn(self: Any, hidden_streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same by the module's own norm and projection, in any dtype."""
    n = self.hc_mult
    weights = F.linear(self.input_norm(hidden_streams.flatten(2).float()), self.fn.float())
    pre, post, comb = weights.split([n, n, n * n], dim=-1)  # type: ignore[no-untyped-call]
    pre_base, post_base, comb_base = self.base.split([n, n, n * n])
    pre_scale, post_scale, comb_scale = self.scale.unbind()
    pre = (pre * pre_scale + pre_base).sigmoid() + self.hc_eps
    post = 2 * (post * post_scale + post_base).sigmoid()
    logits = (comb * comb_scale + comb_base).unflatten(-1, (n, n))
    # under autocast the linear map is in half precision; its results are exact in fp32
    comb = lemmata.sinkhorn(logits.float(), iterations=_steps(self), eps=self.hc_eps)
    took(self, "sinkhorn")
    collapsed = (pre.unsqueeze(-1) * hidden_streams).sum(2).to(hidden_streams.dtype)
    return post, comb, collapsed


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _altered(self: Any, name: str) -> str | None:
    """Return whether the forward that ours replaces is patched, as a reason, or None."""
    return patched((f"{name}.forward", self.lemmata_original.forward))


def decoder_layer(self: Any, hidden_states: Tensor, input_ids: Tensor | None = None, **kwargs: Any) -> Tensor:
    """Compute the forward of ``DeepseekV4DecoderLayer``, streams ``[B, S, hc, hidden]`` to streams."""
    reason = _altered(self, "DeepseekV4DecoderLayer") or _unfit(hidden_states)
    if reason is not None:
        took(self, OWN, reason)
        return self.lemmata_original.forward(self, hidden_states, input_ids, **kwargs)  # type: ignore[no-any-return]
    post, comb, collapsed = self.attn_hc(hidden_states)
    result, _ = self.self_attn(self.input_layernorm(collapsed), **kwargs)
    streams, first = _mixed(hidden_states, result, post, comb)
    post, comb, collapsed = self.ffn_hc(streams)
    result = self.mlp(self.post_attention_layernorm(collapsed), input_ids=input_ids)
    streams, second = _mixed(streams, result, post, comb)
    reason = first or second
    took(self, "mhc_post" if reason is None else OWN, reason)
    return streams


def _mixed(x: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> tuple[Tensor, str | None]:
    """Return the streams after y was computed of them, and None, or why no operator did but what a layer does itself."""
    reason = _unfit(x, post, comb)
    if reason is None and not ((y.dtype == _BF16 or narrows(y)) and type(y) in PLAIN):
        reason = f"a result of type {type(y).__name__} in {y.dtype}, where the operator takes bfloat16"
    if reason is None:
        return lemmata.mhc_post(x.to(_BF16), y.to(_BF16), post.float(), comb.float()).to(x.dtype), None
    added = post.to(x.dtype).unsqueeze(-1) * y.unsqueeze(-2)
    return added + torch.matmul(comb.to(x.dtype).transpose(-1, -2), x), reason


def hyper_head(self: Any, x: Tensor) -> Tensor:
    """Compute the forward of ``DeepseekV4HyperHead``, streams ``[B, S, hc, hidden]`` to ``[B, S, hidden]``."""
    weights, limits = (self.hc_fn, self.hc_scale, self.hc_base), MHC_HEAD.statics["eps"]
    reason = _altered(self, "DeepseekV4HyperHead") or _other_norm(self) or _unfit(x, *weights)
    if reason is None and not limits.admits(self.eps):
        reason = f"hc_eps is {self.eps}, where the operator takes {limits.pretty}"
    if reason is not None:
        took(self, OWN, reason)
        return self.lemmata_original.forward(self, x)  # type: ignore[no-any-return]
    took(self, "mhc_head")
    fn, scale, base = (w.float() for w in weights)
    return lemmata.mhc_head(x.to(_BF16), fn, scale, base, eps=self.eps, norm_eps=self.input_norm.eps).to(x.dtype)
