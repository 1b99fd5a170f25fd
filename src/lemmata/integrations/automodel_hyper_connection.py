"""DeepSeek-V4's hyper-connections of NeMo AutoModel on ``lemmata.sinkhorn``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lemmata

from ..reference.sinkhorn import FORWARD
from .automodel_originals import modeling, patched
from .paths import OWN, took


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _fallback(self: Any) -> str | None:
    """Return why the operator does not compute what this module does, or None."""
    altered = patched("sinkhorn", ("DeepseekV4HyperConnection.compute_weights", type(self).compute_weights))
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


def hyper_connection(self: Any, hidden_streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the forward of ``DeepseekV4HyperConnection``, ``[B, S, n, hidden]``: its weights pre, post and comb."""
    reason = _fallback(self)
    if reason is not None:
        took(self, OWN, reason)
        return self.lemmata_original.forward(self, hidden_streams)  # type: ignore[no-any-return]
    n = self.hc_mult
    flat = modeling()._rms_norm_last_dim(hidden_streams.flatten(2).float(), self.norm_eps)
    weights = F.linear(flat, self.fn.float())
    pre, post, comb = weights.split([n, n, n * n], dim=-1)  # type: ignore[no-untyped-call]
    pre_base, post_base, comb_base = self.base.float().split([n, n, n * n])
    pre_scale, post_scale, comb_scale = self.scale.float().unbind()
    pre = torch.sigmoid(pre * pre_scale + pre_base) + self.hc_eps
    post = 2 * torch.sigmoid(post * post_scale + post_base)
    logits = (comb * comb_scale + comb_base).unflatten(-1, (n, n))
    took(self, "sinkhorn")
    return pre, post, lemmata.sinkhorn(logits, iterations=_steps(self), eps=self.hc_eps)
