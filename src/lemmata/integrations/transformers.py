"""DeepSeek-V4 of Hugging Face transformers, running on lemmata's operators.

Usage::

    model = DeepseekV4ForCausalLM.from_pretrained(...)
    apply_to(model)  # from here on, prefill, decode, generate and training use lemmata
    undo(model)  # the very classes it had before

Only this model's modules change class; parameters, hooks and every other model stay as they were. The model itself
records what was swapped, so both functions may be called any number of times.

The indexer keeps the model's precision. In bf16, scores and selection are ``lemmata.indexer_topk``, which holds no matrix
of all scores. In any other dtype, and where that operator does not reach (other sizes than it takes, positions that do
not count up by one within a row, a scorer with hooks), the module's own scorer computes fp32 scores and ``lemmata.topk``
selects. Either way equal scores go to the smaller index, in prefill and in decode alike. In the untouched model
``torch.topk`` breaks ties as it likes, and otherwise in rows of another width.

Attention is ``lemmata.swa``, ``lemmata.csa`` or ``lemmata.hca``, by the kind of layer, in bf16, where the mask and the
positions say what these operators see; see ``attention``. Every other call is the module's own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from packaging.specifiers import SpecifierSet
from torch import Tensor, nn

import lemmata

from ..reference.indexer import SELECT
from .attention import attention
from .compressor import compressed_keys, hooked

Model = TypeVar("Model", bound=nn.Module)

KNOWN = SpecifierSet(">=5.10,<5.24", prereleases=True)
"""The transformers versions whose modules are known to compute what the forwards below compute."""

_MODELING = "transformers.models.deepseek_v4.modeling_deepseek_v4"


def _hyper_connection(self: Any, hidden_streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = self.hc_mult
    weights = F.linear(self.input_norm(hidden_streams.flatten(2).float()), self.fn.float())
    pre, post, comb = weights.split([n, n, n * n], dim=-1)  # type: ignore[no-untyped-call]
    pre_base, post_base, comb_base = self.base.split([n, n, n * n])
    pre_scale, post_scale, comb_scale = self.scale.unbind()
    pre = (pre * pre_scale + pre_base).sigmoid() + self.hc_eps
    post = 2 * (post * post_scale + post_base).sigmoid()
    logits = (comb * comb_scale + comb_base).unflatten(-1, (n, n))
    comb = lemmata.sinkhorn(logits, iterations=self.hc_sinkhorn_iters, eps=self.hc_eps)
    collapsed = (pre.unsqueeze(-1) * hidden_streams).sum(2).to(hidden_streams.dtype)
    return post, comb, collapsed


def _computes(scorer: nn.Module, q: Tensor, k: Tensor, position_ids: Tensor) -> bool:
    """Whether `lemmata.indexer_topk` computes this scorer's scores, without a loss of precision."""
    if not q.dtype == k.dtype == torch.bfloat16:
        return False
    if not all(SELECT.statics[name].admits(size) for name, size in zip("HD", q.shape[2:], strict=True)):
        return False
    # tensor parallelism completes the scores in a hook, each device having summed over its heads
    if hooked(scorer) or type(scorer).__name__ != "DeepseekV4IndexerScorer":
        return False
    if position_ids.shape[1] == 1:
        return True
    # padding and packing interrupt the positions. This waits for the device, once a prefill; a traced graph cannot ask.
    return not torch.compiler.is_compiling() and bool((position_ids.diff() == 1).all())


def _indexer(
    self: Any, hidden_states: Tensor, q_residual: Tensor, position_ids: Tensor, past_key_values: Any, layer_idx: int
) -> Tensor:
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import apply_rotary_pos_emb

    batch, queries, _ = hidden_states.shape
    layer = None if past_key_values is None else past_key_values.layers[layer_idx]
    k = compressed_keys(self, hidden_states, layer, "indexer")
    rotary = self.rotary_emb(hidden_states, position_ids=position_ids, layer_type=self.rope_layer_type)
    q = self.q_b_proj(q_residual).unflatten(-1, (-1, self.head_dim))
    q = apply_rotary_pos_emb(q.transpose(1, 2), *rotary).transpose(1, 2)
    scorer, positions = self.scorer, position_ids.expand(batch, -1)
    if _computes(scorer, q, k, position_ids):
        weights = scorer.weights_proj(hidden_states).float() * (scorer.softmax_scale * scorer.weights_scaling)
        taken = lemmata.indexer_topk(
            q, k, weights, topk=self.index_topk, ratio=self.compress_rate, offset=positions[:, 0].int()
        )
    else:
        scores = scorer(q, k, hidden_states).flatten(0, 1)
        visible = ((positions + 1) // self.compress_rate).flatten().int()
        taken = lemmata.topk(scores, k=self.index_topk, lengths=visible).view(batch, queries, -1)
    return taken[..., : k.shape[1]].long()


@dataclass(frozen=True)
class Swap:
    """One place in the model: its name, the class that computes it, and the forward that calls lemmata instead."""

    op: str
    replaces: str
    forward: Callable[..., Any]

    @property
    def name(self) -> str:
        """The name of the class that modules are rebound to."""
        return f"Lemmata{self.replaces}"


SWAPS = (
    Swap("sinkhorn", "DeepseekV4HyperConnection", _hyper_connection),
    Swap("indexer", "DeepseekV4Indexer", _indexer),
    Swap("attention", "DeepseekV4Attention", attention),
)
"""Every swap `apply_to` makes. Attention is one, though each kind of layer has an operator of its own."""


@cache
def _classes(swap: Swap) -> tuple[type[nn.Module], type[nn.Module]]:
    """The class in transformers, and its subclass that differs in ``forward`` alone."""
    original: type[nn.Module] = getattr(importlib.import_module(_MODELING), swap.replaces)
    return original, type(swap.name, (original,), {"forward": swap.forward, "__module__": __name__})


def __getattr__(name: str) -> type[nn.Module]:
    # Pickle looks a class up by name: a saved model loads in a process that never called apply_to.
    for swap in SWAPS:
        if swap.name == name:
            return _classes(swap)[1]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _selected(only: Iterable[str] | None) -> list[Swap]:
    ops = {swap.op for swap in SWAPS}
    wanted = ops if only is None else set(only)
    if not wanted <= ops:
        raise ValueError(f"only: expected operators among {sorted(ops)}, got {sorted(wanted - ops)}")
    return [swap for swap in SWAPS if swap.op in wanted]


class UnknownVersionError(RuntimeError):
    """The installed transformers is not one that the swaps were checked against."""


def check_version() -> None:
    """Raise `UnknownVersionError`, in one line, unless the installed transformers is in `KNOWN`."""
    try:
        installed = version("transformers")
    except PackageNotFoundError:
        raise UnknownVersionError("transformers: expected it installed, got none: pip install 'lemmata[hf]'") from None
    if installed not in KNOWN:
        raise UnknownVersionError(f"transformers: expected a version in {KNOWN}, the ones checked, got {installed}")


def _rebind(changes: list[tuple[str, nn.Module, type[nn.Module]]]) -> None:
    for name, module, _ in changes:
        if "forward" in vars(module):  # so do accelerate's hooks
            raise RuntimeError(f"model: expected no instance attribute forward, got one in {name}: unhook it first")
    for _, module, new in changes:
        module.__class__ = new


def apply_to(model: Model, *, only: Iterable[str] | None = None) -> Model:
    """Make the DeepSeek-V4 modules inside ``model`` compute with lemmata's operators.

    Args:
        model: a transformers DeepSeek-V4 model, or any module that contains parts of one.
        only: the operators to use, all by default. `SWAPS` names them.

    Returns:
        The same model. Modules that were swapped before stay as they are.

    Raises:
        UnknownVersionError: this version of transformers is not in `KNOWN`.
        RuntimeError: a module carries a ``forward`` of its own, which would go on calling the old class.
        ValueError: ``only`` names no operator, or the model has none of the modules to swap.
    """
    check_version()
    changes: list[tuple[str, nn.Module, type[nn.Module]]] = []
    absent: list[str] = []
    for swap in _selected(only):
        original, ours = _classes(swap)
        found = [(name, module) for name, module in model.named_modules() if type(module) in (original, ours)]
        absent += [] if found else [swap.replaces]
        changes += [(name, module, ours) for name, module in found if type(module) is original]
    if absent and len(absent) == len(_selected(only)):
        raise ValueError(f"model: expected a {' or '.join(absent)} inside, got none in {type(model).__name__}")
    _rebind(changes)
    return model


def undo(model: Model, *, only: Iterable[str] | None = None) -> Model:
    """Give every module that `apply_to` swapped its class back, and return the model.

    Raises:
        RuntimeError: a module carries a ``forward`` of its own, which would go on calling lemmata.
        ValueError: ``only`` names no operator.
    """
    ours = {swap.name for swap in _selected(only)}
    _rebind([(n, m, type(m).__bases__[0]) for n, m in model.named_modules() if type(m).__name__ in ours])
    return model


def swapped(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The names of the modules that run on lemmata now, by operator."""
    names = {swap.op: tuple(n for n, m in model.named_modules() if type(m).__name__ == swap.name) for swap in SWAPS}
    return {op: modules for op, modules in names.items() if modules}
