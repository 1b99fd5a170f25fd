"""The attention of transformers' DeepSeek-V4 on lemmata: each kind of layer alone, and a model at the true ratios."""

import copy
from collections import Counter
from functools import partial

import pytest
import torch

import lemmata

pytest.importorskip("transformers")

from transformers import DynamicCache

from attention_layers import (
    BF16,
    HIDDEN,
    KINDS,
    LEFT,
    LENGTH,
    PADDED,
    RATIO,
    SIZES,
    agrees,
    one_layer,
    run,
    three,
    watched,
)
from lemmata.demo import default_text, passages
from lemmata.integrations.observe import Choices, Dispatches, Double
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, swapped, undo


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("op", KINDS)
@torch.no_grad()
def test_each_kind_of_layer(op, sizes):
    plain, right, got, calls = three(one_layer(op), partial(run, sizes=sizes))
    assert calls == {op: len(sizes)}
    assert agrees(plain, right, got)


@pytest.mark.parametrize("op", KINDS)
@torch.no_grad()
def test_positions_that_begin_later(op):
    plain, right, got, calls = three(one_layer(op), partial(run, start=9))
    assert calls == {op: 1}
    assert agrees(plain, right, got)


@pytest.mark.parametrize("op", KINDS)
@torch.no_grad()
def test_left_padding(op):
    """Positions tell the padding from the rest of the window, in prefill and decode."""
    sizes = (30, *[1] * 40)
    plain, right, got, calls = three(one_layer(op), partial(run, sizes=sizes, mask=LEFT))
    held_back = 0
    if op == "hca":  # whose module lets a single query see all entries, its position held back or not: by rows then
        held_back = sum((t - PADDED + 1) // RATIO != (t + 1) // RATIO for t in range(30, LENGTH))
        assert 0 < held_back < 40
    assert +calls == +Counter({op: len(sizes) - held_back, "csa": held_back} if held_back else {op: len(sizes)})
    assert agrees(plain, right, got)


@pytest.mark.parametrize("sizes", [(LENGTH,), (57, *[1] * 13)])
@torch.no_grad()
def test_the_indices_are_those_that_the_indexer_took(sizes):
    model, taken = apply_to(one_layer("csa")), []
    model.model.layers[0].self_attn.compressor.indexer.register_forward_hook(lambda *call: taken.append(call[2]))
    with watched("csa") as calls:
        run(model, sizes)
    end = 0
    for ((q, window_kv, entries, indices, _), kwargs), theirs, size in zip(calls, taken, sizes, strict=True):
        past, end = end, end + size
        assert indices.dtype == torch.int32
        assert torch.equal(indices, theirs.int())
        assert (indices == -1).any() or past  # at first there are fewer than it may take
        assert q.shape == (2, size, 8, 64)
        assert window_kv.shape == (2, min(past, 7) + size, 64)
        assert entries.shape == (2, end // 4, 64)
        assert kwargs["offset"].tolist() == [past, past]


def gradients(model):
    hidden = HIDDEN.to(model.dtype).requires_grad_()
    g = torch.randn(2, LENGTH, 64, generator=torch.Generator().manual_seed(2)).to(model.dtype)
    (run(model, hidden=hidden) * g).sum().backward()
    named = dict(model.model.layers[0].self_attn.named_parameters())
    return {name: p.grad for name, p in named.items() if p.grad is not None} | {"hidden": hidden.grad}


@pytest.mark.parametrize("op", KINDS)
def test_gradients(op):
    model = one_layer(op)
    plain, right, got, calls = three(model, gradients)
    assert calls == {op: 1, f"{op}_bwd": 1}
    assert plain.keys() == got.keys() > {"sinks", "q_b_proj.weight", "kv_proj.weight", "hidden"}
    assert ("compressor.position_bias" in got) == (op != "swa")
    for name, gradient in got.items():
        assert agrees(plain[name], right[name], gradient), name


@pytest.mark.parametrize("op", KINDS)
@torch.no_grad()
def test_undo_restores_the_module(op):
    model, calls = one_layer(op), Dispatches()
    plain = run(model)
    apply_to(model, only=["attention"])
    assert swapped(model) == {"attention": ("model.layers.0.self_attn",)}
    assert not torch.equal(run(model), plain)
    undo(model)
    with calls:
        assert torch.equal(run(model), plain)
    assert not calls.calls


def wrong(change):
    return lambda f, args, kwargs: f(*args, **kwargs | {name: by(kwargs[name]) for name, by in change.items()})


def with_sink(by):
    return lambda f, args, kwargs: f(*args[:-1], by(args[-1]), **kwargs)


def own_rows(f, args, kwargs):
    return f(args[0], args[1][:, -args[0].shape[1] :], *args[2:], **kwargs)


EVERY = {
    "a key fewer": wrong({"window": lambda n: n - 1}),
    "a key more": wrong({"window": lambda n: n + 1}),
    "another scale": wrong({"scale": lambda s: 2 * s}),
    "no sink": with_sink(lambda sink: torch.full_like(sink, -torch.inf)),
    "sinks out of order": with_sink(lambda sink: sink.flip(0)),
}
CSA = {
    "the entries before": lambda f, args, kwargs: f(*args[:3], args[3] - 1, *args[4:], **kwargs),
    "no entries": lambda f, args, kwargs: f(*args[:3], args[3] * 0 - 1, *args[4:], **kwargs),
}
HCA = {
    "entries too late": wrong({"ratio": lambda n: 2 * n}),
    "entries too early": wrong({"offset": lambda n: n + RATIO}),
}
DECODE = {"the past left out": own_rows, "from the beginning": wrong({"offset": lambda n: 0 * n})}
WRONG = [
    *((op, "prefill", name) for op in KINDS for name in EVERY),
    *(("csa", "prefill", name) for name in CSA),
    *(("hca", "prefill", name) for name in HCA),
    *((op, "decode", name) for op in KINDS for name in DECODE),
]


@pytest.mark.parametrize(("op", "sizes", "name"), WRONG)
@torch.no_grad()
def test_a_wrong_operator_is_noticed(op, sizes, name, monkeypatch):
    change, right = (EVERY | CSA | HCA | DECODE)[name], getattr(lemmata, op)
    monkeypatch.setattr(lemmata, op, lambda *args, **kwargs: change(right, args, kwargs))
    plain, exact, got, calls = three(one_layer(op), partial(run, sizes=SIZES[sizes]))
    assert calls
    assert not agrees(plain, exact, got)


def true_ratios(**config):
    """A layer of each kind, with the window and the ratios of the large model."""
    settings = {
        "num_hidden_layers": 3,
        "layer_types": list(KINDS.values()),
        "mlp_layer_types": ["moe"] * 3,
        "sliding_window": 128,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
        "max_position_embeddings": 16384,
    }
    return tiny_model(**settings | config).to(BF16)


def prefill(model, ids):
    return model(ids, use_cache=False).logits


def prefill_in_chunks(model, ids, size):
    cache = DynamicCache(config=model.config)
    return torch.cat([model(part, past_key_values=cache, use_cache=True).logits for part in ids.split(size, 1)], 1)


def in_chunks(choices, size):
    """The same choices for a run in chunks."""
    parts = Choices()
    for name, recorded in choices._recorded.items():
        parts._recorded[name] = [part for whole in recorded for part in whole.split(size, whole.ndim - 2)]
    return parts


def logits_agree(model, ids, size, compressors):
    """Prefill in one go, untouched and swapped; in fp64 in chunks, as otherwise it would take too much memory."""
    choices, calls = Choices(), Dispatches()
    with choices.record(model):
        plain = prefill(model, ids)
    exact = copy.deepcopy(model).double()
    with in_chunks(choices, size).keep(exact) as exactly, Double():
        right = prefill_in_chunks(exact, ids, size)
    ours = apply_to(copy.deepcopy(model))
    with choices.keep(ours) as rows, calls:
        got = prefill(ours, ids)
    assert calls.calls == {
        "mhc_pre": 6,
        "mhc_post": 6,
        "mhc_head": 1,
        "compress": compressors,
        "swa": 1,
        "csa": 1,
        "hca": 1,
        "indexer_topk": 1,
    }
    assert rows["differed"] <= 2 * exactly["differed"]
    assert agrees(plain, right, got)
    for op in KINDS:
        with pytest.MonkeyPatch.context() as patch, choices.keep(ours):
            f = getattr(lemmata, op)
            patch.setattr(lemmata, op, lambda *args, f=f, **kwargs: EVERY["another scale"](f, args, kwargs))
            assert not agrees(plain, right, prefill(ours, ids)), op


@torch.no_grad()
def test_the_true_ratios():
    ids = passages(default_text(), 1024)[:1]
    logits_agree(true_ratios(index_topk=64), ids, 256, compressors=2)  # the indexer's rows are too narrow for its own


def peak(model, ids):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    prefill(model, ids)
    return torch.cuda.max_memory_allocated()


@pytest.mark.gpu
@torch.no_grad()
def test_the_true_sizes_and_their_memory(capsys):
    """64 heads of width 512 read 8192 tokens; the rest of the model is small."""
    heads = {"num_attention_heads": 64, "head_dim": 512, "partial_rotary_factor": 64 / 512, "o_groups": 8}
    indexer = {"index_n_heads": 64, "index_head_dim": 128, "index_topk": 512}
    model = true_ratios(**heads, **indexer).cuda()
    ids = passages(default_text(), 8192)[:1].cuda()
    untouched = peak(model, ids)
    ours = peak(apply_to(model), ids)
    undo(model)
    with capsys.disabled():
        print(f"\npeak memory at 8192 tokens: untouched {untouched / 2**30:.2f} GiB, swapped {ours / 2**30:.2f} GiB")
    assert ours < untouched
    logits_agree(model, ids, 2048, compressors=3)
