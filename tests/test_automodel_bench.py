"""The benchmark of AutoModel's training step, as far as no GPU is needed to tell: the same program on a small model."""

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("nemo_automodel", reason="needs NeMo AutoModel: make test-automodel")

import automodel_models  # noqa: F401 - AutoModel compiles nothing
from lemmata.bench import automodel as bench

SIZES = bench.SMALL | {"vocab_size": 64, "compress_ratios": [4, 16]}


def test_a_small_model_on_a_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = tmp_path / "found.json"
    assert bench.main(["--tokens", "48", "--steps", "2", "--out", str(found)]) == 0
    ours, tilelang, torchs = json.loads(found.read_text())["steps"]
    assert ours["ran"] == {
        "compress": 3,
        "csa": 2,
        "hca": 1,
        "indexer_topk": 2,
        "mhc_head": 1,
        "mhc_post": 4,
        "mhc_pre": 8,
        "swa": 1,
    }
    assert (torchs["ran"], torchs["error"]) == ({}, None)
    assert tilelang["error"].startswith("RuntimeError: dsv4 sparse attention TileLang backend was requested")
    assert abs(ours["loss"] - torchs["loss"]) <= bench.AGREE * torchs["loss"]
    assert all(step["ms"] > 0 and step["gradient"] > 0 for step in (ours, torchs))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["lemmata", "AutoModel, TileLang", "AutoModel, torch"]


def test_a_wrong_model_is_noticed():
    """A planted error: a model that reads its rows one token late."""
    builders = bench.contenders(SIZES, "cpu")
    right = {name: builders[name] for name in ("lemmata", "AutoModel, torch")}

    def wrong():
        model = builders["lemmata"]()
        model.lm_head.weight.data = model.lm_head.weight.roll(1, 0)
        return model

    tokens = torch.randint(0, 64, (1, 32), generator=torch.Generator().manual_seed(0))
    assert bench.disagreements(bench.measure(right, tokens, 1)) == []
    assert len(builders["lemmata"]().model.layers) == 2
    (line,) = bench.disagreements(bench.measure(right | {"lemmata": wrong}, tokens, 1))
    assert line.startswith("loss: expected ")


def test_what_fails_is_said():
    done, failed = bench.Step("AutoModel, torch", loss=1.0), bench.Step("lemmata", error="RuntimeError: no")
    assert bench.disagreements([failed, done]) == ["lemmata: expected a step, got RuntimeError: no"]
    ours = bench.Step("lemmata", loss=1.0)
    assert bench.disagreements([ours, replace(failed, contender="AutoModel, torch")]) == [
        "expected another contender to compare with, got none"
    ]
    assert bench.disagreements([replace(ours, loss=float("nan")), done]) != []


def test_the_wide_sizes_are_those_of_the_model():
    from nemo_automodel.components.models.deepseek_v4.config import DeepseekV4Config

    theirs = DeepseekV4Config()
    for name in ("num_attention_heads", "head_dim", "qk_rope_head_dim", "q_lora_rank", "o_lora_rank", "o_groups"):
        assert bench.WIDE[name] == getattr(theirs, name)
    for name in ("sliding_window", "index_head_dim", "index_n_heads", "index_topk"):
        assert bench.WIDE[name] == getattr(theirs, name)
