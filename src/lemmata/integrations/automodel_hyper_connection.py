"""DeepSeek-V4's hyper-connections and head of NeMo AutoModel on ``lemmata.mhc_pre`` and ``mhc_head``, or ``sinkhorn``.

AutoModel's module returns pre, post and comb, and its block sums the streams with pre. ``mhc_pre`` does both at once. So a
block of ours asks for the sum in the place of pre, by a keyword; whoever else calls the module gets what it always returned,
computed around ``lemmata.sinkhorn``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lemmata

from ..reference.mhc import MHC_HEAD, MHC_PRE
from ..reference.sinkhorn import FORWARD
from .automodel_originals import modeling, patched
from .calls import PLAIN
from .paths import OWN, took

_BF16 = torch.bfloat16
_NORM = "_rms_norm_last_dim"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _fallback(self: Any) -> str | None:
    """Return why ``lemmata.sinkhorn`` does not compute what this module does, or None."""
    altered = patched("mhc_pre", ("DeepseekV4HyperConnection.compute_weights", type(self).compute_weights))
    if altered:
        return altered
    settings = {"n": ("hc_mult", self.hc_mult), "iterations": ("hc_sinkhorn_iters", _steps(self))}
    settings["eps"] = "hc_eps", self.hc_eps
    for name, (theirs, value) in settings.items():
        if not FORWARD.statics[name].admits(value):
            return f"{theirs} is {value}, where the operator takes {FORWARD.statics[name].pretty}"
    return None


def _steps(self: Any) -> int:
    """Return how often the module normalises columns: once at least, whatever its configuration says."""
    return max(int(self.hc_sinkhorn_iters), 1)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _other_norm() -> str | None:
    """Return whether the norm that the operators repeat is patched, as a reason, or None."""
    return patched("mhc_head")


def _unfit(streams: Tensor, *parameters: Tensor) -> str | None:
    """Return why no operator takes these streams, ``[B, S, hc, hidden]``, and these parameters, or None."""
    for tensor in (streams, *parameters):
        if type(tensor) not in PLAIN:
            return f"a tensor of type {type(tensor).__name__}"
    if streams.ndim != 4:
        return f"streams of {streams.ndim} dimensions"
    for name, value in zip(("hc", "hidden"), streams.shape[2:], strict=True):
        if not MHC_PRE.statics[name].admits(value):
            return f"{name} is {value}, where the operator takes {MHC_PRE.statics[name].pretty}"
    return None


def hyper_connection(self: Any, hidden_streams: Tensor, *, lemmata_collapse: bool = False) -> tuple[Tensor, ...]:
    """Compute the forward of ``DeepseekV4HyperConnection``: its weights pre, post and comb.

    Args:
        self: the module.
        hidden_streams: ``[B, S, n, hidden]``.
        lemmata_collapse: return the sum of the streams with pre, ``[B, S, hidden]``, in the place of pre. The streams then
            are numbers of bf16, in whatever dtype FSDP2 made of them for this module.
    """
    reason = _fallback(self)
    if reason is not None:
        took(self, OWN, reason)
        weights = self.lemmata_original.forward(self, hidden_streams)
    elif lemmata_collapse and _by_one_operator(self, hidden_streams):
        took(self, "mhc_pre")
        how: dict[str, Any] = {"iterations": _steps(self), "eps": self.hc_eps, "norm_eps": self.norm_eps}
        parameters = self.fn.float(), self.scale.float(), self.base.float()
        return lemmata.mhc_pre(hidden_streams.to(_BF16), *parameters, **how)
    else:
        took(self, "sinkhorn")
        weights = _around_sinkhorn(self, hidden_streams)
    return (collapsed(hidden_streams, weights[0]), *weights[1:]) if lemmata_collapse else weights


def _by_one_operator(self: Any, streams: Tensor) -> bool:
    limits = MHC_PRE.statics["norm_eps"]
    unfit = _unfit(streams, self.fn, self.scale, self.base) or _other_norm()
    return unfit is None and streams.dtype in (_BF16, torch.float32) and limits.admits(self.norm_eps)


def collapsed(streams: Tensor, pre: Tensor) -> Tensor:
    """Return the sum of the streams with these weights, ``[B, S, hidden]``, as AutoModel's blocks compute it."""
    return (pre.unsqueeze(-1) * streams).sum(2).to(streams.dtype)


def _around_sinkhorn(self: Any, hidden_streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return pre, post and comb by the module's own norm and projection, in any dtype."""
    n = self.hc_mult
    flat = modeling()._rms_norm_last_dim(hidden_streams.flatten(2).float(), self.norm_eps)
    weights = F.linear(flat, self.fn.float())
    pre, post, comb = weights.split([n, n, n * n], dim=-1)  # type: ignore[no-untyped-call]
    pre_base, post_base, comb_base = self.base.float().split([n, n, n * n])
    pre_scale, post_scale, comb_scale = self.scale.float().unbind()
    pre = torch.sigmoid(pre * pre_scale + pre_base) + self.hc_eps
    post = 2 * torch.sigmoid(post * post_scale + post_base)
    logits = (comb * comb_scale + comb_base).unflatten(-1, (n, n))
    return pre, post, lemmata.sinkhorn(logits, iterations=_steps(self), eps=self.hc_eps)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _other_head(self: Any) -> str | None:
    """Return why the operator does not compute what this head does, whatever its streams, or None."""
    altered = patched("mhc_head", ("DeepseekV4HyperHead.forward", self.lemmata_original.forward))
    if altered:
        return altered
    for name, theirs, value in (("eps", "hc_eps", self.eps), ("norm_eps", "rms_norm_eps", self.norm_eps)):
        if not MHC_HEAD.statics[name].admits(value):
            return f"{theirs} is {value}, where the operator takes {MHC_HEAD.statics[name].pretty}"
    return None


def hyper_head(self: Any, x: Tensor) -> Tensor:
    """Compute the forward of ``DeepseekV4HyperHead``, streams ``[B, S, n, hidden]`` to ``[B, S, hidden]``."""
    weights = self.hc_fn, self.hc_scale, self.hc_base
    reason = _other_head(self) or _unfit(x, *weights)
    if reason is None and x.dtype != _BF16:
        reason = f"streams in {x.dtype}, of which the module's sum is not rounded to bfloat16"
    if reason is not None:
        took(self, OWN, reason)
        return self.lemmata_original.forward(self, x)  # type: ignore[no-any-return]
    took(self, "mhc_head")
    return lemmata.mhc_head(x, *(w.float() for w in weights), eps=self.eps, norm_eps=self.norm_eps)
