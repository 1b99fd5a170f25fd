"""The main job: a DeepSeek-V4 from transformers reads real text, untouched and then on lemmata's operators.

The bound. In fp32 the untouched model and the swapped one are two roundings of the same formula, so neither may be held
to the other. Each phase therefore also runs in fp64, with the same parameters: |untouched - fp64| is what fp32 costs this
model on this text, and a swapped model that is as exact differs from the untouched one by at most twice that, plus one
rounding of the largest logit for texts on which that error happens to vanish. All three runs pick the same experts and
compressed entries (`Choices`); the share that rounding alone would have moved must stay small, and is printed.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .integrations.observe import Choices, Dispatches, Double
from .integrations.tiny import tiny_model
from .integrations.transformers import apply_to, swapped, undo

BACKENDS = {"cpu": "reference", "cuda": "tilelang"}
MOVED = 0.01  # the share of choices that near ties may account for


@dataclass(frozen=True)
class Phase:
    """One way of running the model, untouched and swapped."""

    name: str
    tokens: int
    calls: dict[str, int]
    difference: float
    fp32_error: float
    bound: float
    choices: int
    choices_moved: int
    first_token_apart: int | None
    seconds_untouched: float
    seconds_swapped: float


@dataclass(frozen=True)
class Report:
    """What the main job found; `failures` says in one line each what does not hold."""

    device: str
    text: str
    swapped: dict[str, tuple[str, ...]]
    backends: dict[str, str]
    phases: tuple[Phase, ...]
    failures: tuple[str, ...]


def default_text() -> Path:
    """The documentation of Python's own syntax, which is part of every CPython."""
    spec = find_spec("pydoc_data.topics")
    if spec is None or spec.origin is None:
        raise RuntimeError("text: expected a file, got none, and this Python has no pydoc_data")
    return Path(spec.origin)


def passages(text: Path, length: int) -> Tensor:
    """The bytes of two passages of the file, its beginning and its middle, as token ids ``[2, length]``."""
    data = text.read_bytes()
    if len(data) < 2 * length:
        raise ValueError(f"text: expected at least {2 * length} bytes, got {len(data)} in {text}")
    return torch.tensor([list(data[start : start + length]) for start in (0, len(data) // 2)])


@dataclass(frozen=True)
class _Run:
    """The logits, and the token ids that the model was given to reach them."""

    logits: Tensor
    ids: Tensor


def _prefill(model: Any, ids: Tensor) -> _Run:
    return _Run(model(ids, use_cache=False).logits, ids)


def _decode(model: Any, ids: Tensor, prompt: int) -> _Run:
    """The prompt at once, then one token at a time."""
    out = model(ids[:, :prompt], use_cache=True)
    logits = [out.logits[:, -1:]]
    for t in range(prompt, ids.shape[1]):
        out = model(ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    return _Run(torch.cat(logits, 1), ids)


def _generate(model: Any, ids: Tensor, steps: int) -> _Run:
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=steps,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return _Run(torch.stack(out.logits, 1), out.sequences)


def _seconds(run: Callable[[], _Run]) -> float:
    start = time.perf_counter()
    run().logits.sum().item()  # waits for the device
    return time.perf_counter() - start


def _apart(a: _Run, b: _Run) -> tuple[float, int | None]:
    """The largest difference of logits reached from equal tokens, and the first token that differs."""
    apart = (a.ids != b.ids).any(0).nonzero()
    first = int(apart[0]) if len(apart) else None
    compared = a.logits.shape[1] if first is None else first - (a.ids.shape[1] - a.logits.shape[1]) + 1
    return (a.logits - b.logits)[:, :compared].abs().max().item(), first


def _compare(name: str, run: Callable[[Any], _Run], forced: Callable[[Any, Tensor], _Run], model: Any, exact: Any) -> tuple[Phase, Counter[tuple[str, str]]]:
    choices, untouched, ours = Choices(), Dispatches(), Dispatches()
    with choices.record(model), untouched:
        plain = run(model)
    if untouched.calls:
        raise RuntimeError(f"model: expected no lemmata operator before apply_to, got {dict(untouched.calls)}")
    with choices.keep(exact), Double():
        truth = forced(exact, plain.ids)
    seconds_untouched = _seconds(lambda: run(model))
    apply_to(model)
    with choices.keep(model) as rows, ours:
        result = run(model)
    seconds_swapped = _seconds(lambda: run(model))
    undo(model)
    error = (plain.logits - truth.logits).abs().max().item()
    difference, first = _apart(plain, result)
    calls: Counter[str] = Counter()
    for (op, _), count in ours.calls.items():
        calls[op] += count
    phase = Phase(
        name=name,
        tokens=plain.logits.shape[:2].numel(),
        calls=dict(calls),
        difference=difference,
        fp32_error=error,
        bound=2 * error + torch.finfo(torch.float32).eps * plain.logits.abs().max().item(),
        choices=rows["made"],
        choices_moved=rows["differed"],
        first_token_apart=first,
        seconds_untouched=seconds_untouched,
        seconds_swapped=seconds_swapped,
    )
    return phase, ours.calls
