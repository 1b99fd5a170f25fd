"""What a wrong call is told: the argument, both values that were compared, and what to do where one thing would do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import lemmata

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
Q, ROWS, ENTRIES = (
    torch.zeros(1, 4, 8, 64, dtype=BF16),
    torch.zeros(1, 4, 64, dtype=BF16),
    torch.zeros(1, 3, 64, dtype=BF16),
)
INDICES, SINK = torch.zeros(1, 4, 2, dtype=torch.int32), torch.zeros(8)
INDEX_Q, KEYS, WEIGHTS = torch.zeros(1, 4, 8, 32), torch.zeros(1, 3, 32), torch.zeros(1, 4, 8)

TOLD: list[tuple[str, Callable[[], object]]] = [
    (
        "csa: indices: expected int32, got int64; .int() converts it",
        lambda: lemmata.csa(Q, ROWS, ENTRIES, INDICES.long(), SINK),
    ),
    (
        "csa: q: expected bfloat16, got float32; .bfloat16() converts it",
        lambda: lemmata.csa(Q.float(), ROWS, ENTRIES, INDICES, SINK),
    ),
    (
        "hca: sink: expected float32, got bfloat16; .float() converts it",
        lambda: lemmata.hca(Q, ROWS, ENTRIES, SINK.to(BF16)),
    ),
    (
        "swa: window_kv: expected shape [B, P+S, D] with P in [0, 1073741823], got [1, 3, 64], where B = 1, S = 4, D = 64",
        lambda: lemmata.swa(Q, ROWS[:, :3], SINK),
    ),
    (
        "csa: compressed_kv: expected shape [B, T, D], got [1, 3, 32], where B = 1, T = 3, D = 64",
        lambda: lemmata.csa(Q, ROWS, ENTRIES[..., :32], INDICES, SINK),
    ),
    (
        "sinkhorn: logits: expected shape [..., n, n], got [3, 4, 5], where count = 3, n = 4",
        lambda: lemmata.sinkhorn(torch.zeros(3, 4, 5)),
    ),
    (
        "topk: lengths: expected shape [R], got [3], where R = 2",
        lambda: lemmata.topk(torch.zeros(2, 5), k=2, lengths=torch.zeros(3, dtype=torch.int32)),
    ),
    ("topk: k: expected a value in [1, 2048], got 3000", lambda: lemmata.topk(torch.zeros(2, 5), k=3000)),
    (
        "indexer_scores: k_scale: expected a tensor, got None",
        lambda: lemmata.indexer_scores(INDEX_Q.to(FP8), KEYS.to(FP8), WEIGHTS),
    ),
    (
        "indexer_topk: k_scale: expected None beside bfloat16, got Tensor",
        lambda: lemmata.indexer_topk(INDEX_Q.to(BF16), KEYS.to(BF16), WEIGHTS, topk=2, k_scale=WEIGHTS),
    ),
]


@pytest.mark.parametrize(("words", "call"), TOLD, ids=[words.split(": expected")[0] for words, _ in TOLD])
def test_a_wrong_call_is_told(words: str, call: Callable[[], object]) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        call()
    assert str(raised.value) == words


def test_what_would_not_convert_is_not_advised() -> None:
    with pytest.raises(TypeError, match=r"got int64$"):
        lemmata.sinkhorn(torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"got float8_e4m3fn$"):
        lemmata.csa(Q.to(FP8), ROWS, ENTRIES, INDICES, SINK)


@pytest.mark.parametrize("integer", [int, np.int32, np.int64])
def test_integers_of_numpy_are_as_pythons(integer: type) -> None:
    right = lemmata.topk(torch.arange(10.0).view(2, 5), k=2)
    assert torch.equal(lemmata.topk(torch.arange(10.0).view(2, 5), k=integer(2)), right)
    out, _ = lemmata.hca(Q, ROWS, ENTRIES, SINK, ratio=integer(4), window=integer(3), offset=integer(3))
    assert torch.equal(out, lemmata.hca(Q, ROWS, ENTRIES, SINK, ratio=4, window=3, offset=3)[0])
