"""The benchmark of a decode step: both models read the same, and every call of lemmata is timed once, by its function."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lemmata
import pages
from lemmata.bench import decode_step as bench
from test_bench_layer import SMALL

pytest.importorskip("transformers")
CALLS = {"mhc_pre": 8, "mhc_post": 8, "mhc_head": 1, "swa": 1, "csa": 2, "hca": 1, "indexer_topk": 2}


def test_a_step_of_both_models() -> None:
    """What lemmata runs of four layers; the logits of both are nearer to one another than to those of another token."""
    with torch.inference_mode():
        found = bench.decoders(bench.models("cpu", **SMALL, moe_intermediate_size=32), 41)
        taken = bench.steps(found, "cpu", 2)
        theirs, ours = (decode(torch.ones(1, 1, dtype=torch.int64)).float() for decode in found.values())
        other = found["lemmata"](torch.full((1, 1), 7)).float()
    assert list(found) == ["transformers", "lemmata"]
    assert 2 * (ours - theirs).norm() < (other - theirs).norm()
    assert all(step.ms > 0 for steps in taken.values() for step in steps)
    assert all(step.inside == {} for step in taken["transformers"])
    for step in taken["lemmata"]:
        assert {name: len(times) for name, times in step.inside.items() if name != "compress"} == CALLS
        assert 0 < 1e3 * sum(map(sum, step.inside.values())) < step.ms


def test_what_a_call_calls_is_not_timed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    functions: Any = lemmata  # two of which are replaced
    monkeypatch.setattr(lemmata, "hca", lambda: functions.swa())
    monkeypatch.setattr(lemmata, "swa", lambda: None)
    with bench.timed() as found:
        functions.hca()
        functions.swa()
    assert {name: len(times) for name, times in found.items()} == {"hca": 1, "swa": 1}


def test_a_row_has_medians() -> None:
    steps = [bench.Step(ms, inside) for ms, inside in ((5.0, {"csa": [1e-3]}), (1.0, {}), (3.0, {"csa": [4e-3, 2e-3]}))]
    wanted: dict[str, Any] = {
        "model": "m",
        "step_ms": 3.0,
        "inside_ms": 1.0,
        "calls": {"csa": {"calls": 1, "host_us": 2e3}},
    }
    assert bench.row("m", steps) == wanted
    assert bench.row("m", steps[:2]) != wanted


def test_the_page_has_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    assert pages.decode_step() == "Not measured on a card yet."
    (folder := tmp_path / "bench" / "results" / "decode_step").mkdir(parents=True)
    rows = [
        bench.row("transformers", [bench.Step(30.0, {})]),
        bench.row("lemmata", [bench.Step(20.0, {"csa": [5e-4]})]),
    ]
    record = {"device": "A card", "versions": {}, "tokens": 4096, "rows": rows}
    (folder / "a-card.json").write_text(json.dumps(record))
    assert pages.decode_step().splitlines()[2] == "| A card | 4096 | 30.0 ms | 20.0 ms | 0.50 ms in 1 calls |"


def test_without_a_gpu_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="expected a CUDA device, got none"):
        bench.main()
