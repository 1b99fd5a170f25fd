"""DeepSeek-V4's hyper-connections of transformers on ``lemmata.sinkhorn``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lemmata

from ..reference.sinkhorn import FORWARD
from .originals import patched
from .paths import OWN, took


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _fallback(self: Any) -> str | None:
    """Return why the operator does not compute what this module does, or None."""
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


def hyper_connection(self: Any, hidden_streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the forward of ``DeepseekV4HyperConnection``."""
    reason = _fallback(self)
    if reason is not None:
        took(self, OWN, reason)
        return self.lemmata_original.forward(self, hidden_streams)  # type: ignore[no-any-return]
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
