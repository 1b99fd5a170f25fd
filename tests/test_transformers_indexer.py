"""The indexer of transformers' DeepSeek-V4 on lemmata: which entries it takes, and by which operator."""

import copy
from contextlib import contextmanager
from importlib.metadata import version

import pytest
import torch
from packaging.version import Version

import lemmata

pytest.importorskip("transformers")

from lemmata import demo
from lemmata.demo import default_text, passages
from lemmata.integrations.compare import compare, decode_apart
from lemmata.integrations.observe import Dispatches
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, swapped

LENGTH, STEPS = 48, 3
DTYPES = [torch.float32, torch.bfloat16]
OPS = {torch.float32: "topk", torch.bfloat16: "indexer_topk"}
ALONE = {torch.float32: {"topk": 1}, torch.bfloat16: {"indexer_scores": 1, "topk": 1}}
MHC = {torch.float32: {"sinkhorn": 8}, torch.bfloat16: {"mhc_pre": 8, "mhc_post": 8, "mhc_head": 1, "compress": 3}}
ATTENTION = {torch.float32: {}, torch.bfloat16: {"swa": 1, "csa": 2, "hca": 1}}


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def ids():
    return passages(default_text(), LENGTH)


def indexers(model):
    return [module for name, module in model.named_modules() if name.endswith("indexer")]


@contextmanager
def seen(module, what):
    """What the module was called with and what it returned, call by call."""
    handle = module.register_forward_hook(lambda module, args, output: what.append((args, output)))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def taken(model, ids, positions=None):
    """For each indexer: its arguments in a prefill, at these positions, its own scores of them, and what it takes."""
    for indexer in indexers(model):
        calls, scores = [], []
        with seen(indexer, calls):
            model(ids, use_cache=False)
        hidden, residual, usual, cache, layer = calls[0][0]
        args = hidden, residual, usual if positions is None else positions, cache, layer
        with seen(indexer.scorer, scores):
            picked = indexer(*args)
        yield indexer, args, scores[0][1], picked


def first(scores, positions, k):
    """The k first of each row by score, then by index, among the entries seen from its position, ascending, then -1."""
    rows = []
    for row, position in zip(scores.flatten(0, 1).tolist(), positions.expand(len(scores), -1).flatten(), strict=True):
        order = sorted(range(min(len(row), (int(position) + 1) // 4)), key=lambda j: (-row[j], j))
        rows.append(sorted(order[:k]) + [-1] * (k - len(order[:k])))
    return torch.tensor(rows).view(*scores.shape[:2], k)


def at(scores, picked):
    return torch.where(picked < 0, float("-inf"), scores.gather(-1, picked.clamp(min=0))).sort(-1).values


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_entries_of_the_highest_scores(model, ids, dtype):
    ties = 0
    for indexer, args, scores, theirs in taken(model.to(dtype), ids):
        calls = Dispatches()
        with calls, torch.no_grad():
            ours = apply_to(indexer)(*args)
        assert calls.calls == ALONE[dtype]  # a module of which nobody knows that its positions count up
        assert ours.dtype == theirs.dtype == torch.int64
        assert torch.equal(ours, first(scores, args[2], indexer.index_topk))
        assert torch.equal(at(scores, ours), at(scores, theirs))  # where they differ, between equal scores
        ties += int((ours.sort(-1).values != theirs.sort(-1).values).sum())
    assert ties > 0


def test_positions_that_do_not_count_up(model, ids):
    """Left padding and packing: no single offset says what such rows see, so that scores and lengths serve them."""
    padded = torch.arange(LENGTH).expand(2, -1).clone()
    padded[0] = (padded[0] - 7).clamp(min=0)
    padded[1, 20:] -= 20
    for indexer, args, scores, theirs in taken(model.bfloat16(), ids, padded):
        calls = Dispatches()
        with calls, torch.no_grad():
            ours = apply_to(indexer)(*args)
        assert calls.calls == {"indexer_scores": 1, "topk": 1}
        assert torch.equal(ours, first(scores, padded, indexer.index_topk))
        assert torch.equal(at(scores, ours), at(scores, theirs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_keep_their_scorer(ids, dtype):
    model, calls = apply_to(tiny_model().to(dtype), only=["indexer"]), Dispatches()
    with calls, torch.no_grad():
        model.model(ids, use_cache=False)
    assert calls.calls == {"topk": 2}


def test_sizes_that_the_operator_refuses_keep_their_scorer(ids):
    model = tiny_model(index_n_heads=4, index_head_dim=16).bfloat16()
    assert {phase.calls.get("topk", 0) > 0 for phase in compare(model, copy.deepcopy(model).double(), ids, STEPS)} == {
        True
    }


def test_a_hook_on_the_scorer_is_heeded(model, ids):
    """Tensor parallelism sums the scores over the devices in such a hook."""
    for indexer, args, scores, _ in taken(model.bfloat16(), ids):
        indexer.scorer.register_forward_hook(lambda module, args, output: -output)
        with torch.no_grad():
            assert torch.equal(apply_to(indexer)(*args), first(-scores, args[2], indexer.index_topk))


def wrong(op, change):
    right = getattr(lemmata, op)
    return op, lambda *args, **kwargs: change(right, args, kwargs)


def with_lengths(by):
    return lambda f, a, kw: f(*a, **kw | {"lengths": kw["lengths"] + by})


WRONG = {
    "the smallest": wrong("topk", lambda f, a, kw: f(-a[0], **kw)),
    "an entry too many seen": wrong("topk", with_lengths(1)),
    "an entry too few seen": wrong("topk", with_lengths(-1)),
    "one fewer": wrong(
        "topk", lambda f, a, kw: torch.nn.functional.pad(f(*a, **kw | {"k": kw["k"] - 1}), (0, 1), value=-1)
    ),
    "another sign": wrong("indexer_topk", lambda f, a, kw: f(*a[:2], -a[2], **kw)),
    "weights left out": wrong("indexer_topk", lambda f, a, kw: f(*a[:2], a[2].abs(), **kw)),
    "a position late": wrong("indexer_topk", lambda f, a, kw: f(*a, **kw | {"offset": kw["offset"] + 1})),
    "heads out of order": wrong("indexer_topk", lambda f, a, kw: f(a[0].flip(2), *a[1:], **kw)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_operator_is_noticed(model, ids, monkeypatch, name):
    op, function = WRONG[name]
    monkeypatch.setattr(lemmata, op, function)
    model.to(next(dtype for dtype, called in OPS.items() if called == op))
    phases = [phase for phase in compare(model, copy.deepcopy(model).double(), ids, STEPS) if phase.calls.get(op)]
    assert {"prefill", "decode", "generate"} <= {phase.name for phase in phases}
    for phase in phases:
        assert phase.choices_moved > 2 * demo.MOVED * phase.choices, phase


def test_decode_agrees_with_prefill(model, ids):
    untouched, ours = decode_apart(model, ids, LENGTH // 2)
    prefill, decode, *_ = compare(model, copy.deepcopy(model).double(), ids, LENGTH // 2)
    assert ours <= prefill.bound + decode.bound < 1e-4
    assert untouched > 0.1
    assert not swapped(model)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_model_can_be_swapped_again(model, ids, tmp_path, dtype):
    if dtype == torch.bfloat16 and Version(version("transformers")) < Version("5.20"):
        pytest.skip("a model that this transformers loads in bf16 does not run, untouched either")
    apply_to(model.to(dtype)).save_pretrained(tmp_path)
    again = type(model).from_pretrained(
        tmp_path, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    )
    assert not swapped(again)
    assert swapped(apply_to(again.eval())) == swapped(model)
    calls = Dispatches()
    with torch.no_grad(), calls:
        logits = again(ids, use_cache=False).logits
    assert calls.calls == MHC[dtype] | {OPS[dtype]: 2} | ATTENTION[dtype]
    assert logits.isfinite().all()
    if dtype == torch.float32:  # in bf16, from_pretrained keeps some parameters in fp32
        with torch.no_grad():
            assert torch.equal(logits, model(ids, use_cache=False).logits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_indices_carry_no_gradient(model, ids, dtype):
    calls = Dispatches()
    with calls:
        apply_to(model.to(dtype))(ids, labels=ids, use_cache=False).loss.backward()
    differentiable = MHC[dtype] | ATTENTION[dtype]
    assert calls.calls == differentiable | {f"{op}_bwd": n for op, n in differentiable.items()} | {OPS[dtype]: 2}
    none = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert none == {name for name, _ in model.named_parameters() if ".indexer." in name}


@pytest.mark.parametrize("dtype", DTYPES)
def test_generate_with_left_padding(model, ids, dtype):
    model.to(dtype)
    prompt = ids.clone()
    prompt[0, :5] = 0
    mask = torch.ones_like(prompt)
    mask[0, :5] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    calls = Dispatches()
    with calls:
        out = apply_to(model).generate(prompt, **settings)
    assert out.shape == (2, LENGTH + 4)
    assert calls.calls["topk"] == (2 if dtype == torch.bfloat16 else 8)  # in bf16: the padded prefill alone
    assert calls.calls["indexer_topk"] == (6 if dtype == torch.bfloat16 else 0)
