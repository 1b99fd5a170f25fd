"""The attention of transformers' DeepSeek-V4 on lemmata: each kind of layer alone, and a model at the true ratios."""

import copy
from contextlib import contextmanager
from functools import partial

import pytest
import torch

import lemmata

pytest.importorskip("transformers")

from transformers import DynamicCache
from transformers.masking_utils import create_sliding_window_causal_mask

from lemmata.demo import default_text, passages
from lemmata.integrations import attention as integration
from lemmata.integrations.observe import Choices, Dispatches, Double
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, swapped, undo

KINDS = {"swa": "sliding_attention", "csa": "compressed_sparse_attention", "hca": "heavily_compressed_attention"}
LENGTH, PADDED, RATIO = 70, 5, 16  # the ratio of HCA
SIZES = {"prefill": (LENGTH,), "chunks": (33, 5, 32), "decode": (57, *[1] * 13), "from one": (1,) * 20}
BF16 = torch.bfloat16
HIDDEN = torch.randn(2, LENGTH, 64, generator=torch.Generator().manual_seed(1))
ALL = torch.ones(2, LENGTH, dtype=torch.long)
LEFT = ALL.clone()
LEFT[0, :PADDED] = 0


def one_layer(op, **config):
    """A model of one layer, of the kind that the operator serves."""
    return tiny_model(num_hidden_layers=1, layer_types=[KINDS[op]], mlp_layer_types=["moe"], **config).to(BF16)


def run(model, sizes=(LENGTH,), hidden=HIDDEN, mask=ALL, start=0, edit=lambda mask: mask):
    """The outputs of the layer's attention on chunks of these sizes, with a cache if there is more than one."""
    inner, attention = model.model, model.model.layers[0].self_attn
    cache = DynamicCache(config=model.config) if len(sizes) > 1 else None
    positions, outputs, at = (mask.cumsum(-1) - 1).clamp(min=0) + start, [], 0  # as generate has them
    for size in sizes:
        x, position_ids = hidden[:, at : at + size].to(model.dtype), positions[:, at : at + size]
        at += size
        seen = create_sliding_window_causal_mask(
            config=model.config, inputs_embeds=x, attention_mask=mask[:, :at], past_key_values=cache
        )
        rotary = {
            kind: inner.rotary_emb(x, position_ids=position_ids, layer_type=kind) for kind in ("main", "compress")
        }
        outputs.append(attention(x, rotary, position_ids, edit(seen), past_key_values=cache)[0])
    return torch.cat(outputs, 1)


def on_lemmata(model):
    """The same model, whose indexer stays as it is."""
    return apply_to(copy.deepcopy(model), only=["attention"])


def three(model, call):
    """What the call gives untouched, in fp64 and swapped, all with the same entries; and the operators called."""
    choices, calls = Choices(), Dispatches()
    with choices.record(model):
        plain = call(model)
    exact, ours = copy.deepcopy(model).double(), on_lemmata(model)
    with choices.keep(exact), Double():
        right = call(exact)
    with choices.keep(ours), calls:
        got = call(ours)
    return plain, right, got, calls.calls


def bound(plain, right):
    """As for the logits: twice the error of the untouched module, and one rounding."""
    return 2 * (plain - right).abs().max() + torch.finfo(BF16).eps * plain.abs().max()


def agrees(plain, right, got):
    limit = bound(plain, right)
    assert limit < 0.2 * plain.abs().max()
    return bool((got - plain).abs().max() <= limit)


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
    """The padded prefill is the module's own; in decode, positions tell the padding from the rest of the window."""
    sizes = (30, *[1] * 40)
    plain, right, got, calls = three(one_layer(op), partial(run, sizes=sizes, mask=LEFT))
    steps = range(30, LENGTH)
    if op == "hca":  # whose module lets a single query see all entries, its position held back or not
        steps = [t for t in steps if (t - PADDED + 1) // RATIO == (t + 1) // RATIO]
        assert 0 < len(steps) < 40
    assert calls == {op: len(steps)}
    assert torch.equal(got[:, :30], plain[:, :30])
    assert agrees(plain, right, got)


@contextmanager
def watched(op):
    """The arguments of each call of the operator."""
    calls, right = [], getattr(lemmata, op)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lemmata, op, lambda *args, **kwargs: calls.append((args, kwargs)) or right(*args, **kwargs))
        yield calls


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


@torch.no_grad()
def test_the_mask_is_looked_at_once_in_a_forward(monkeypatch):
    model, looked, right = apply_to(tiny_model().to(BF16)), [], integration._lowest
    monkeypatch.setattr(integration, "_lowest", lambda *args: looked.append(args) or right(*args))
    for _ in range(2):
        model(ALL, use_cache=False)
    assert len(looked) == 2
    with torch.inference_mode():
        model(ALL, use_cache=False)
    assert len(looked) == 2 + 4


def hidden_key(mask):
    """One key more is hidden from one query of one sequence."""
    mask = mask.clone()
    mask[1, 0, 40, 38] = torch.finfo(mask.dtype).min
    return mask


MASKS = {
    "none": lambda mask: None,
    "a key hidden": hidden_key,
    "all seen": torch.zeros_like,
    "a bias": lambda mask: mask - 1,
    "a wider window": lambda mask: torch.where(mask.roll(-1, 2) == 0, 0.0, mask),
    "of booleans": lambda mask: mask == 0,
}


def same_alone(model, **how):
    """The swapped module computes what the untouched one does, bit for bit, and by no operator."""
    calls, ours = Dispatches(), on_lemmata(model)
    torch.manual_seed(0)
    plain = run(model, **how)
    torch.manual_seed(0)
    with calls:
        got = run(ours, **how)
    assert not calls.calls
    assert torch.equal(got, plain)


@pytest.mark.parametrize("edit", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("op", KINDS)
@torch.no_grad()
def test_other_masks_are_the_modules_own(op, edit):
    same_alone(one_layer(op), edit=edit)


@torch.no_grad()
def test_a_mask_edited_in_place_is_looked_at_again():
    model, calls = on_lemmata(one_layer("swa")), Dispatches()
    mask = []

    def edited(seen):
        return mask[0] if mask else mask.append(seen) or seen

    with calls:
        run(model, edit=edited)
        mask[0].zero_()
        run(model, edit=edited)
    assert calls.calls == {"swa": 1}


def hook(model):
    model.model.layers[0].self_attn.compressor.register_forward_hook(lambda *call: None)


def mine(model):
    model.config._attn_implementation = "mine"


OTHERS = {
    "fp32": ({}, lambda model: model.float(), {}),
    "fp16": ({}, lambda model: model.half(), {}),
    "four heads": ({"num_attention_heads": 4}, None, {}),
    "another width": ({"head_dim": 32, "partial_rotary_factor": 8 / 32}, None, {}),
    "a window too wide": ({"sliding_window": 513}, None, {}),
    "dropout": ({"attention_dropout": 0.5}, lambda model: model.train(), {}),
    "a hook": ({}, hook, {}),
    "another function": ({}, mine, {}),
    "padding": ({}, None, {"mask": LEFT}),
}


@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op in KINDS for name in OTHERS if (op, name) != ("swa", "a hook")]
)
@torch.no_grad()
def test_other_calls_are_the_modules_own(op, name):
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

    AttentionInterface.register("mine", modeling.eager_attention_forward)
    AttentionMaskInterface.register("mine", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    config, change, how = OTHERS[name]
    model = one_layer(op, **config)
    if change is not None:
        change(model)
    same_alone(model, **how)


@pytest.mark.parametrize("by_config", [False, True])
@torch.no_grad()
def test_attentions_are_returned(by_config):
    model = apply_to(tiny_model().to(BF16))
    model.config.output_attentions = by_config
    calls = Dispatches()
    with calls:
        out = model(ALL, use_cache=False, **({} if by_config else {"output_attentions": True}))
    assert not calls.calls.keys() & set(KINDS)
    assert [a.shape[:3] for a in out.attentions] == [(2, 8, LENGTH)] * 4


@pytest.mark.parametrize("op", KINDS)
@torch.no_grad()
def test_compiled_it_is_the_modules_own(op):
    model = one_layer(op)
    plain, ours = run(model), on_lemmata(model)
    attention = ours.model.layers[0].self_attn
    attention.forward = torch.compile(attention.forward, backend="eager", fullgraph=True)
    with watched(op) as calls:
        assert torch.equal(run(ours), plain)
    assert not calls


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


def logits_agree(model, ids, size):
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
    assert calls.calls == {"sinkhorn": 6, "swa": 1, "csa": 1, "hca": 1, "indexer_topk": 1}
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
    logits_agree(true_ratios(index_topk=64), ids, 256)


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
    logits_agree(model, ids, 2048)
