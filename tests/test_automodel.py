"""A training step of AutoModel's DeepSeek-V4: swapped, it computes what its own torch path does, and on which operators."""

import copy

import pytest
import torch

pytest.importorskip("nemo_automodel", reason="needs NeMo AutoModel: make test-automodel")

from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from automodel_models import BF16, CALLS, IDS, Picks, beyond, counted, exact, of_attention, run, tiny
from lemmata.integrations.automodel import apply_to, paths

CONNECTIONS = "mhc_pre", "mhc_post", "mhc_head"


def of_connections(calls):
    return {op: calls[op] for op in CONNECTIONS}


def untouched(model, **how):
    """An untouched model's results, those in fp64 with its choices, and the choices."""
    picks = Picks()
    with picks.record(model):
        plain = run(model, **how)
    return plain, exact(copy.deepcopy(model).double().cpu(), picks, **how), picks


@pytest.mark.parametrize("name", CALLS)
def test_a_step_in_bf16(name, device):
    how, expected = CALLS[name]
    model = tiny(BF16).to(device)
    plain, right, picks = untouched(model, **how)
    ours = apply_to(copy.deepcopy(model), strict=True)
    with picks.keep(ours) as rows:
        got, calls = counted(ours, **how)
    assert beyond(got, plain, right) == {}
    assert rows["moved"] < rows["made"] / 10
    assert of_attention(calls) == expected
    assert {op: calls[f"{op}_bwd"] for op in expected} == expected
    assert of_connections(calls) == {"mhc_pre": 8, "mhc_post": 8, "mhc_head": 1}
    assert {op: calls[f"{op}_bwd"] for op in CONNECTIONS} == of_connections(calls)
    assert calls["compress"] == calls["compress_bwd"] == 3
    chosen = {"indexer_topk": 2} if expected["csa"] == 2 else {"indexer_scores": 2, "topk": 2}
    assert {op: calls[op] for op in ("indexer_topk", "indexer_scores", "topk") if calls[op]} == chosen


def test_a_step_in_fp32():
    """No operator of attention is for the dtype: the others run, and logits do not move by a bit."""
    model = tiny()
    plain, right, picks = untouched(model)
    ours = apply_to(copy.deepcopy(model))
    with picks.keep(ours) as rows:
        got, calls = counted(ours)
    assert beyond(got, plain, right) == {}
    assert (rows["moved"], torch.equal(got["logits"], plain["logits"])) == (0, True)
    assert calls == {"sinkhorn": 8, "sinkhorn_bwd": 8, "topk": 2}
    assert {path.last for n, path in paths(ours).items() if n.endswith("self_attn")} == {"own"}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_entries_are_chosen(name):
    """From equal inputs in bf16 the scores differ by rounding in fp32 alone, and in this model no two are that near."""
    how, model, picks = CALLS[name][0], tiny(BF16), Picks()
    ours = apply_to(copy.deepcopy(model), only=["indexer"], strict=True)
    with picks.record(model):
        plain = run(model, **how)
    with picks.keep(ours) as rows:
        got = run(ours, **how)
    assert dict(rows) == {"made": 2 * IDS.numel(), "moved": 0}
    assert all(torch.equal(got[n], plain[n]) for n in plain)


def test_it_runs_whatever_backend_the_model_was_built_for():
    """AutoModel's TileLang backend needs a GPU; on lemmata the model trains on a CPU too."""
    model = apply_to(tiny(BF16, attn="tilelang"), strict=True)
    same = apply_to(tiny(BF16), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(run(model).values(), run(same).values(), strict=True))


@pytest.mark.parametrize("name", ["nothing said", "packed"])
@pytest.mark.parametrize("order", ["swap last", "swap first"])
def test_checkpointed_blocks(name, order):
    """Recomputation runs the same operators on the same numbers: not a bit of a gradient differs."""
    how, expected = CALLS[name]
    plain, ours = apply_to(tiny(BF16), strict=True), tiny(BF16)
    if order == "swap first":
        apply_to(ours, strict=True)
    for number, block in ours.model.layers.items():
        ours.model.layers[number] = checkpoint_wrapper(block)
    got, calls = counted(apply_to(ours, strict=True), **how)
    assert all(torch.equal(a, b) for a, b in zip(got.values(), run(plain, **how).values(), strict=True))
    assert of_attention(calls) == {op: 2 * n for op, n in expected.items()}


def test_two_steps_are_equal_bit_for_bit():
    model = apply_to(tiny(BF16), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(run(model).values(), run(model).values(), strict=True))


@pytest.mark.parametrize("wrong", ["sinks", "gradient"])
def test_a_wrong_swap_is_noticed(wrong):
    """Planted errors: sinks in another order, and a gradient that is a tenth too large."""
    model = tiny(BF16)
    plain, right, picks = untouched(model)
    ours = apply_to(copy.deepcopy(model), strict=True)
    attention = ours.model.layers["0"].self_attn
    if wrong == "sinks":
        attention.sinks_param.weight.data = attention.sinks_param.weight.flip(0)
    else:
        attention.wkv.register_full_backward_hook(lambda module, into, out: (1.1 * into[0],))
    with picks.keep(ours):
        assert beyond(run(ours), plain, right) != {}
