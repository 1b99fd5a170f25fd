"""How many floating-point operations a call takes, from its shapes: what ``torch.utils.flop_counter`` adds up.

A multiplication and an addition are one each, so that a product of vectors of length D counts 2 D. Entries that a query
does not see count like the others, as in torch's own count of masked attention: shapes do not tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Shape = tuple[int, ...]
Formula = Callable[..., int]
"""From the shapes of an operator's tensors and its other arguments, in the order of its schema."""


def none(*_: Any, **__: Any) -> int:
    """Return 0: comparisons are no arithmetic."""
    return 0


def sinkhorn(logits: Shape, iterations: int, eps: float, **_: Any) -> int:
    """Return 4 ``iterations`` for each element: a sum and a division in the softmax and in 2 ``iterations - 1`` steps."""
    elements = 1
    for size in logits:
        elements *= size
    return 4 * iterations * elements


def sinkhorn_bwd(grad_out: Shape, logits: Shape, iterations: int, eps: float, **_: Any) -> int:
    """Return three times the forward's: its steps again, and for each a product, a sum, a difference and a division."""
    return 3 * sinkhorn(logits, iterations, eps)


def pooling(kv: Shape, *_: Any, **__: Any) -> int:
    """Return 4 for each channel of each token: a bias, a sum of weights, and a product that is added up."""
    count = 4
    for size in kv:
        count *= size
    return count


def pooling_bwd(grad_out: Shape, *args: Any, **more: Any) -> int:
    """Return twice the forward's, and its own again: weights, and products for both gradients."""
    return 3 * pooling(*args, **more)


def scores(q: Shape, k: Shape, *_: Any, **__: Any) -> int:
    """Return 2 B S T H (D + 1): the product of query and key, its weight, and the sum over the heads."""
    B, S, H, D = q
    return 2 * B * S * k[1] * H * (D + 1)


def scores_bwd(grad_out: Shape, q: Shape, k: Shape, *_: Any, **__: Any) -> int:
    """Return 2 B S T H (3 D + 2): the products again, those into both gradients, and weights and their gradients."""
    B, S, H, D = q
    return 2 * B * S * k[1] * H * (3 * D + 2)


def select(
    q: Shape,
    k: Shape,
    weights: Shape,
    k_scale: Shape | None,
    offset: Shape,
    ratio: int,
    topk: int,
    workspace: int,
    unscored: int = 0,
    **_: Any,
) -> int:
    """Return those of the scores of the queries that are scored: none where T is at most ``topk``."""
    B, S, H, D = q
    return scores((B, S - unscored, H, D), k) if k[1] > topk else 0


def indexer_loss(names: tuple[str, ...], products: int) -> Formula:
    """Return 2 B S N (core_H core_D + ``products`` H D), with N the candidates of a query: its indices, or all entries.

    Args:
        names: the names of the operator's tensors, in the order of its schema.
        products: how many products of vectors each query, head and candidate of the indexer takes: 1 forward, 3 backward.
    """

    def formula(*args: Any, **_: Any) -> int:
        shapes: dict[str, Shape] = dict(zip(names, args, strict=False))
        (B, S, H, D), (core_H, core_D) = shapes["q"], shapes["core_q"][2:]
        candidates = shapes["indices"][2] if "indices" in shapes else shapes["k"][1]
        return 2 * B * S * candidates * (core_H * core_D + products * H * D)

    return formula


def attention(names: tuple[str, ...], products: int) -> Formula:
    """Return 2 ``products`` B S H D N, with N the rows that a query has: those of its window, and entries or indices.

    Args:
        names: the names of the operator's tensors, in the order of its schema; ``window`` is the last but one argument.
        products: how many products of vectors of length D each query, head and row takes: 2 forward, 5 backward.
    """

    def formula(*args: Any, **_: Any) -> int:
        shapes: dict[str, Shape] = dict(zip(names, args, strict=False))
        B, S, H, D = shapes["q"]
        window: int = min(args[-2], shapes["window_kv"][1])
        entries = shapes["indices"][2] if "indices" in shapes else shapes.get("compressed_kv", (B, 0))[1]
        return 2 * products * B * S * H * D * (window + entries)

    return formula


def packed(names: tuple[str, ...], formula: Formula) -> Formula:
    """Return the count of an operator on packed documents: as if they were one, as shapes do not tell where one ends.

    Args:
        names: the names of the operator's tensors, in the order of its schema.
        formula: the count of the operator on a batch.
    """

    def count(*args: Any, **more: Any) -> int:
        shapes = dict(zip(names, args, strict=False))
        of_batch = [(1, *shape) for name, shape in shapes.items() if not name.startswith("cu_")]
        return formula(*of_batch, *args[len(names) :], **more)

    return count
