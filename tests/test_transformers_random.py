"""Random configurations and calls of DeepSeek-V4 in bf16: all attention on the operators, within the bound."""

import random
from functools import partial

import pytest

pytest.importorskip("transformers")

from attention_layers import KINDS
from batches import BF16, CALLS, compared, decode, gradient, of_attention, prefill
from lemmata.integrations import attention
from lemmata.integrations.tiny import tiny_model

SETTINGS = {
    "num_attention_heads": (8, 16),
    "head_dim": (64, 128),
    "o_groups": (1, 2),
    "sliding_window": (2, 3, 8, 64),
    "index_topk": (1, 4, 64),
    "index_n_heads": (8, 16),
    "index_head_dim": (16, 32, 64),
    "hc_mult": (2, 4),
    "hc_sinkhorn_iters": (1, 20),
    "q_lora_rank": (16, 32),
    "num_hidden_layers": (1, 2, 3),
}


def drawn(seed):
    """A model, and a call of it."""
    draw = random.Random(seed)
    config = {name: draw.choice(values) for name, values in SETTINGS.items()}
    layers, kinds = config["num_hidden_layers"], list(KINDS.values())
    model = tiny_model(
        seed,
        **config,
        layer_types=[draw.choice(kinds) for _ in range(layers)],
        mlp_layer_types=[draw.choice(("hash_moe", "moe")) for _ in range(layers)],
        compress_rates={kinds[1]: draw.choice((1, 2, 4, 7)), kinds[2]: draw.choice((1, 5, 16, 128))},
        partial_rotary_factor=draw.choice((8, 16)) / config["head_dim"],
    )
    how = draw.choice([how for how, _ in CALLS.values()])
    return model.to(BF16), partial(draw.choice((prefill, prefill, decode, gradient)), **how), layers


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(4, 60))])
def test_any_configuration(seed):
    model, run, layers = drawn(seed)
    distance, limit, calls = compared(model, run)
    assert distance <= limit
    assert sum(of_attention(calls).values()) == layers * (7 if run.func is decode else 1)


def test_a_window_of_another_width_is_noticed(monkeypatch):
    """The planted error: a row of the window too few, in some of the same cases."""
    right = attention.rows_seen
    monkeypatch.setattr(attention, "rows_seen", lambda mask, *sizes: right(mask, *sizes)[..., :-1])
    distance, limit, _ = compared(tiny_model().to(BF16), partial(prefill, **CALLS["packed"][0]))
    assert distance > limit
