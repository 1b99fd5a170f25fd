"""The same DeepSeek-V4, untouched and on lemmata's operators: how far apart its logits are, and how far they may be.

In fp32 or bf16 the untouched model and the swapped one are two roundings of one formula: neither is the truth for the
other. Each phase therefore also runs in fp64 with the same parameters. |untouched - fp64| is what the dtype costs this
model on this text, and a swapped model that is as exact differs from the untouched one by at most twice that. One
rounding of the largest logit is added for texts on which that error happens to vanish. All three runs pick the same
experts and compressed entries (see `Choices`); how many the swapped model would have picked otherwise is reported,
and how many fp64, which says how many rounding moves: of choices too, a model as exact moves at most twice as many.

Decode is compared with decode: in transformers itself it differs from prefill, by tied scores that ``torch.topk``
breaks differently in rows of different width. `decode_apart` measures that, and that it is gone when swapped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .observe import Choices, Dispatches, Double
from .paths import paths
from .transformers import apply_to, undo


@dataclass(frozen=True)
class Phase:
    """One way of running the model: the two runs compared."""

    name: str
    dtype: str
    positions: int
    """How many positions have logits to compare."""
    calls: dict[str, int]
    """How often the swapped model dispatched each operator."""
    devices: dict[str, str]
    """The device that each operator ran on."""
    paths: dict[str, int]
    """How many modules ran each path last; ``own`` is the module's own code."""
    reasons: tuple[str, ...]
    """Why modules ran their own code."""
    difference: float
    """The largest difference of two logits reached from the same tokens."""
    error: float
    """The largest error of the untouched model against fp64."""
    bound: float
    """What ``difference`` may be."""
    choices: int
    choices_tied: int
    """How many of them fell otherwise between exactly equal scores."""
    choices_moved: int
    """How many others fell otherwise."""
    choices_inexact: int
    """How many of the untouched model's own fall otherwise in fp64, between scores that are not equal."""
    first_token_apart: int | None
    """Which generated token is the first to differ, if one does."""
    seconds_untouched: float
    seconds_swapped: float


@dataclass(frozen=True)
class _Run:
    """The token ids that the model read or wrote, and the logits of the last of them."""

    ids: Tensor
    logits: Tensor

    @property
    def start(self) -> int:
        return self.ids.shape[1] - self.logits.shape[1]


def _prefill(model: Any, ids: Tensor, mask: Tensor | None = None) -> _Run:
    return _Run(ids, model(ids, mask, use_cache=False).logits)


def _padded(ids: Tensor, tokens: int) -> Tensor:
    """Return a mask that makes padding of the first tokens of the first sequence, and of the last of all others."""
    mask = torch.ones_like(ids)
    mask[0, :tokens], mask[1:, -tokens:] = 0, 0
    return mask


def _decode(model: Any, ids: Tensor, prompt: int) -> _Run:
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)  # transformers 5.10 returns none that it made itself
    chunks = [ids[:, :prompt], *(ids[:, t : t + 1] for t in range(prompt, ids.shape[1]))]
    # by its place: from transformers 5.24 on, past_key_values is called cache
    logits = [model(chunk, None, None, cache, use_cache=True).logits[:, -1:] for chunk in chunks]
    return _Run(ids, torch.cat(logits, 1))


def _generate(model: Any, prompt: Tensor, steps: int) -> _Run:
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=steps,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return _Run(out.sequences, torch.stack(out.logits, 1))


def _seconds(run: Callable[[Any], _Run], model: Any) -> float:
    start = time.perf_counter()
    run(model).logits.sum().item()  # waits for the device
    return time.perf_counter() - start


def _apart(a: _Run, b: _Run) -> tuple[float, int | None]:
    tokens = (a.ids != b.ids).any(0).nonzero()
    first = int(tokens[0]) - a.start if len(tokens) else None
    same = None if first is None else first + 1  # the logits that chose that token still came from equal ones
    return (a.logits - b.logits)[:, :same].abs().max().item(), first


def _phase(
    name: str, run: Callable[[Any], _Run], forced: Callable[[Any, Tensor], _Run], model: Any, exact: Any
) -> Phase:
    """Compare one phase; ``forced`` runs a model over the tokens that ``run`` ended with."""
    choices, untouched, ours = Choices(), Dispatches(), Dispatches()
    with choices.record(model), untouched:
        plain = run(model)
    if untouched.calls:
        raise RuntimeError(f"model: expected an untouched one, got {sum(untouched.calls.values())} calls of lemmata")
    with choices.keep(exact) as exactly, Double():
        error = (plain.logits - forced(exact, plain.ids).logits).abs().max().item()
    seconds_untouched = _seconds(run, model)
    try:
        apply_to(model)
        with choices.keep(model) as rows, ours:
            swapped = run(model)
        taken = paths(model).values()
        seconds_swapped = _seconds(run, model)
    finally:
        undo(model)
    difference, first = _apart(plain, swapped)
    return Phase(
        name=name,
        dtype=str(model.dtype).removeprefix("torch."),
        positions=plain.logits.shape[:2].numel(),
        calls=dict(ours.calls),
        devices=ours.devices,
        paths=dict(Counter(path.last for path in taken if path.last is not None)),
        reasons=tuple(sorted({path.reason for path in taken if path.reason is not None})),
        difference=difference,
        error=error,
        bound=2 * error + torch.finfo(model.dtype).eps * plain.logits.abs().max().item(),
        choices=rows["made"],
        choices_tied=rows["tied"],
        choices_moved=rows["differed"],
        choices_inexact=exactly["differed"],
        first_token_apart=first,
        seconds_untouched=seconds_untouched,
        seconds_swapped=seconds_swapped,
    )


@torch.no_grad()
def compare(model: Any, exact: Any, ids: Tensor, steps: int) -> tuple[Phase, ...]:
    """Run prefill, decode, ``generate`` and a padded prefill, each untouched and swapped; the model ends untouched.

    Args:
        model: an untouched ``DeepseekV4ForCausalLM``, in fp32 or bf16.
        exact: an fp64 copy of it.
        ids: token ids ``[B, S]``. Prefill reads all of them, decode the last ``steps`` one by one, and ``generate``
            continues the others by as many. As many are padding in the padded prefill.
        steps: from 1 to S - 1.
    """
    prompt, mask = ids.shape[1] - steps, _padded(ids, steps)
    return (
        _phase("prefill", lambda m: _prefill(m, ids), _prefill, model, exact),
        _phase("decode", lambda m: _decode(m, ids, prompt), lambda m, i: _decode(m, i, prompt), model, exact),
        _phase(
            "generate",
            lambda m: _generate(m, ids[:, :prompt], steps),
            lambda m, i: _decode(m, i[:, :-1], prompt),
            model,
            exact,
        ),
        _phase("padded", lambda m: _prefill(m, ids, mask), lambda m, i: _prefill(m, i, mask), model, exact),
    )


@torch.no_grad()
def decode_apart(model: Any, ids: Tensor, steps: int) -> tuple[float, float]:
    """Return how far the logits of step-by-step decode are from those of prefill: untouched, and swapped.

    Args:
        model: an untouched ``DeepseekV4ForCausalLM``, and so it ends.
        ids: token ids ``[B, S]``, of which decode reads the last ``steps`` one by one.
        steps: from 1 to S - 1.
    """

    def apart() -> float:
        decoded = _decode(model, ids, ids.shape[1] - steps).logits
        return (decoded - _prefill(model, ids).logits[:, -steps - 1 :]).abs().max().item()

    untouched = apart()
    try:
        apply_to(model)
        return untouched, apart()
    finally:
        undo(model)
