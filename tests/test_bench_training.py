"""The benchmark of a training step trains both models on the same, and lemmata's is lemmata's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lemmata
from lemmata.bench import training
from lemmata.integrations.transformers import paths

pytest.importorskip("transformers")
SMALL = {
    "num_attention_heads": 8,
    "index_n_heads": 8,
    "hidden_size": 64,
    "q_lora_rank": 32,
    "moe_intermediate_size": 32,
    "o_groups": 2,
    "o_lora_rank": 16,
    "experts_implementation": "eager",
}
TOKENS = torch.arange(160).mul(37).remainder(256).unsqueeze(0)


def losses(models: dict[str, object], steps: int) -> dict[str, list[float]]:
    each = {name: training.step_of(model, TOKENS) for name, model in models.items()}
    return {name: [step().item() for _ in range(steps)] for name, step in each.items()}


def test_both_models_learn_the_same() -> None:
    torch.manual_seed(0)
    models = training.models("cpu", **SMALL)
    found = losses(models, 3)
    assert found["lemmata"] == pytest.approx(found["transformers"], rel=2e-3)
    assert found["lemmata"][0] > found["lemmata"][1] > found["lemmata"][2]
    ran = {str(path.last) for path in paths(models["lemmata"]).values()}
    assert ran == {"csa", "hca", "swa", "mhc_pre", "mhc_post", "mhc_head", "compress", "compress, indexer_topk"}


def test_another_result_is_another_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted error: the heads of attention in another order."""
    for op in ("csa", "hca", "swa"):
        monkeypatch.setattr(lemmata, op, backwards(getattr(lemmata, op)))
    found = losses(training.models("cpu", **SMALL), 1)
    assert found["lemmata"] != pytest.approx(found["transformers"], rel=2e-3)


def backwards(attention: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def call(*args: object, **named: object) -> tuple[Tensor, Tensor]:
        out, lse = attention(*args, **named)
        return out.flip(2), lse

    return call
