"""The benchmark of hyper-connections in a layer: all contenders make the same of the same, and how shares are computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lemmata
import pages
from lemmata.bench import layer as bench

pytest.importorskip("transformers")
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 8,
    "head_dim": 64,
    "partial_rotary_factor": 8 / 64,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 16,
    "sliding_window": 8,
    "index_n_heads": 8,
    "index_head_dim": 32,
    "index_topk": 4,
}


@cache
def small() -> dict[str, bench.Contender]:
    return bench.contenders("cpu", 48, width=8, **SMALL)


def test_all_layers_make_the_same_of_their_streams() -> None:
    """Streams, and the gradients of streams and parameters: one by one and fused are the nearest."""
    found = small()
    assert list(found) == ["transformers", "one by one", "fused", bench.NONE]
    bench.check(found)
    out = {name: of.run(of.given) for name, of in found.items()}
    grad = torch.randn(out["fused"].shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    grads = {name: bench.gradients(found[name], out[name], grad) for name in ("transformers", "one by one", "fused")}
    assert bench.distance(out["fused"], out["one by one"]) <= 2.0**-8
    for near, far in (("one by one", 2.0**-5), ("transformers", 2.0**-3)):
        for got, wanted in zip(grads["fused"], grads[near], strict=True):
            assert (got is None) == (wanted is None)
            if got is not None and wanted is not None:
                assert got.dtype == wanted.dtype
                assert bench.distance(got, wanted) <= far
    assert out[bench.NONE].shape == (1, 48, 64)
    assert sum(g is not None for g in grads["fused"]) > 20


WRONG: dict[str, tuple[str, Callable[..., Any]]] = {
    "comb transposed": ("mhc_post", lambda of, x, y, post, comb: of(x, y, post, comb.mT)),
    "no weight of the norm": ("mhc_post_pre", lambda of, *t, **how: of(*t[:-1], torch.ones_like(t[-1]), **how)),
    "the streams before the layer": ("mhc_post_pre", lambda of, x, *t, **how: (x, *of(x, *t, **how)[1:])),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_operator_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, change = WRONG[name]
    right: Callable[..., Any] = getattr(lemmata, op)
    monkeypatch.setattr(lemmata, op, lambda *tensors, **how: change(right, *tensors, **how))
    with pytest.raises(
        RuntimeError, match=r"(one by one|fused): expected the streams of transformers, got some that differ by"
    ):
        bench.check(small())


COSTS = {
    "transformers": bench.Cost(10.0, 40.0),
    "one by one": bench.Cost(8.0, 25.0),
    "fused": bench.Cost(5.0, 20.0),
    bench.NONE: bench.Cost(4.0, 16.0),
}


def test_shares_are_what_the_layer_without_streams_does_not_take() -> None:
    rows = {row["connections"]: row for row in bench.rows(COSTS)}
    shares = {name: (row["forward_share"], row["step_share"]) for name, row in rows.items()}
    assert shares == {
        "transformers": (0.6, 0.6),
        "one by one": (0.5, 0.36),
        "fused": (0.2, 0.2),
        bench.NONE: (0.0, 0.0),
    }
    assert (rows["one by one"]["forward_ms"], rows["one by one"]["step_ms"]) == (8.0, 25.0)


def test_the_page_has_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    assert pages.layer() == "Not measured on a card yet."
    (folder := tmp_path / "bench" / "results" / "layer").mkdir(parents=True)
    record = {"device": "A card", "versions": {}, "tokens": 4096, "rows": bench.rows(COSTS)}
    (folder / "a-card.json").write_text(json.dumps(record))
    assert pages.layer().splitlines()[3] == "| A card | 4096 | one by one | 8.00 ms, 50.0% | 25.00 ms, 36.0% |"


def test_without_a_gpu_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="expected a CUDA device, got none"):
        bench.main()


def test_the_experts_stand_in_is_gated() -> None:
    dense = bench.Dense(8, 3)
    x = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(0))
    gate, up, down = (part.weight for part in (dense.gate, dense.up, dense.down))
    wanted: Tensor = (torch.nn.functional.silu(x @ gate.mT) * (x @ up.mT)) @ down.mT
    torch.testing.assert_close(dense(x), wanted)
    assert not torch.allclose(dense(x), wanted * 1.01)
