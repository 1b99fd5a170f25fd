"""What is claimed of the kernels of CSA and HCA where several splits share the keys (kernels/sparse_attention.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import torch

from ..kernels.sparse_attention_config import Config
from ..reference.attention import Keys, as_values, logits
from .engine.execution.contents import Contents, Write
from .engine.execution.symbolic import Execution
from .engine.forms import normal_form as nf
from .engine.forms.entailment import Facts
from .engine.forms.extended import Value
from .engine.forms.normal_form import ONE, ZERO, Form


def sums_in_split(
    q: Any, parts: tuple[Keys, Keys], sink: Any, cfg: Config, y: Any, entries: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Σ exp(z) k and Σ exp(z) over split ``y`` of the tiles of keys: what a kernel of several splits computes.

    Args:
        q: the queries.
        parts: the window's keys, and the entries as keys.
        sink: of which the dtype is used.
        cfg: the static parameters.
        y: the split.
        entries: for how many entries there are tiles, of each query or of all alike.
    """
    tiles = cfg.window_tiles + (entries + (cfg.tile - 1)) // cfg.tile
    first, end = tiles * y // cfg.splits, tiles * (y + 1) // cfg.splits
    wide = q.type_as(sink)

    def part(keys: Keys, before: int) -> tuple[torch.Tensor, torch.Tensor]:
        number = torch.arange(keys.seen.shape[-1], device=keys.seen.device) // cfg.tile + before
        inside = Keys(keys.rows, keys.seen & (number >= first) & (number < end))
        e = logits(wide, inside, cfg.scale).exp()
        return e @ as_values(inside, wide), e.sum(-1)

    (weighted, mass), more = part(parts[0], 0), part(parts[1], cfg.window_tiles)
    return weighted + more[0], mass + more[1]


def meanings(cfg: Config, done: Execution, known: Facts) -> Mapping[str, Callable[[Write], Value | None]]:
    """Return, by output, what a write says of the reference's element: of the only split its value.

    A kernel of several splits says of Σ exp(z) k and Σ exp(z) that they are exp(m) acc and exp(m) row_sum, m = scale row_max.
    """
    if cfg.splits == 1:
        return dict.fromkeys(("out", "stats"), attrgetter("value"))
    stats = Contents("stats")
    for write in done.writes.get("stats", []):
        stats.write(write)

    def scaled(value: Value, b: Form, y: Form, s: Form, head: Form) -> Value:
        return Value(nf.exp(stats.read((b, y, ZERO, s, head), known).real) * value.real)

    def weighted(write: Write) -> Value:
        return scaled(write.value, *write.index[:4])

    def mass(write: Write) -> Value | None:
        b, y, number, s, head = write.index
        return scaled(write.value, b, y, s, head) if number is ONE else None

    return {"out": weighted, "stats": mass}
