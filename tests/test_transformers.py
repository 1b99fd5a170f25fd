import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lemmata
from lemmata.integrations import transformers as integration

pytest.importorskip("transformers")

from lemmata import demo
from lemmata.demo import default_text, passages
from lemmata.integrations.compare import compare
from lemmata.integrations.observe import Choices, Dispatches, Double
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, swapped, undo
from lemmata.reference.sinkhorn import COLUMN, ROW

SITES = 8  # two hyper-connections in each of four layers
MHC = {"mhc_pre": SITES, "mhc_post": SITES, "mhc_head": 1}
INDEXERS = 2  # of which two are sparse
ATTENTION = {"swa": 1, "csa": INDEXERS, "hca": 1}
LENGTH, STEPS = 48, 3


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def ids():
    return passages(default_text(), LENGTH)


def classes(model):
    return [type(module) for module in model.modules()]


def double(model):
    return copy.deepcopy(model).double()


@pytest.mark.parametrize(("dtype", "op", "limit"), [("float32", "topk", 1e-4), ("bfloat16", "indexer_topk", 1)])
def test_prefill_decode_and_generate_agree(model, ids, dtype, op, limit):
    model.to(getattr(torch, dtype))
    phases = compare(model, double(model), ids, STEPS)
    forwards = {"prefill": 1, "decode": STEPS + 1, "generate": STEPS}
    for phase in phases:
        assert phase.dtype == dtype
        once = {"sinkhorn": SITES, op: INDEXERS} if dtype == "float32" else MHC | ATTENTION | {op: INDEXERS}
        if phase.name == "padded" and dtype == "bfloat16":
            once = MHC | {"indexer_scores": INDEXERS, "topk": INDEXERS, "csa": 4}
        calls = {op: n * forwards.get(phase.name, 1) for op, n in once.items()}
        if dtype == "bfloat16":  # the last token of decode ends a window of every layer
            once["compress"] = 3
            calls["compress"] = 6 if phase.name == "decode" else 3
        assert phase.calls == calls
        assert phase.difference <= phase.bound < limit
        assert phase.devices == dict.fromkeys(once, "cpu")
        assert phase.choices > phase.choices_tied >= (phase.name != "padded")
        assert phase.choices_moved <= 2 * phase.choices_inexact
        assert not list(demo._failures(phase))
    assert not swapped(model)


def test_compare_wants_an_untouched_model(model, ids):
    with pytest.raises(RuntimeError, match="expected an untouched one, got 10 calls"):
        compare(apply_to(model), double(model), ids, STEPS)


def rows_last(logits, *, iterations, eps):
    x = logits.softmax(ROW) + eps
    for axis in [ROW] + [COLUMN, ROW] * (iterations - 1):
        x = x / (x.sum(axis, keepdim=True) + eps)
    return x


def with_sinkhorn(change):
    def wrong(logits, *, iterations, eps, right=lemmata.sinkhorn):
        return change(right, logits, iterations, eps)

    return wrong


WRONG = {
    "rows last": rows_last,
    "result transposed": with_sinkhorn(lambda f, x, i, e: f(x, iterations=i, eps=e).mT),
    "one iteration fewer": with_sinkhorn(lambda f, x, i, e: f(x, iterations=i - 1, eps=e)),
    "no eps": with_sinkhorn(lambda f, x, i, e: f(x, iterations=i, eps=1e-12)),
    "nan": with_sinkhorn(lambda f, x, i, e: f(x * torch.nan, iterations=i, eps=e)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_operator_is_noticed(model, ids, monkeypatch, wrong):
    monkeypatch.setattr(lemmata, "sinkhorn", WRONG[wrong])
    for phase in compare(model, double(model), ids, STEPS):
        assert not phase.difference <= 10 * phase.bound, phase


def gradient(model, ids):
    model.zero_grad()
    model(ids, labels=ids, use_cache=False).loss.backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def test_gradients_agree(model, ids):
    choices, calls = Choices(), Dispatches()
    exact = double(model)
    with choices.record(model):
        plain = gradient(model, ids)
    with choices.keep(exact), Double():
        error = (gradient(exact, ids) - plain).abs().max()
    with choices.keep(apply_to(model)), calls:
        ours = gradient(model, ids)
    assert calls.calls == {"sinkhorn": SITES, "sinkhorn_bwd": SITES, "topk": INDEXERS}
    assert (ours - plain).abs().max() <= 2 * error
    assert error < 1e-4 * plain.abs().max()


def test_apply_to_is_idempotent_and_undone_exactly(model):
    before, state = classes(model), {k: v.clone() for k, v in model.state_dict().items()}
    assert apply_to(model) is model
    once = classes(model)
    assert sum(a is not b for a, b in zip(before, once, strict=True)) == SITES + 4 + 1 + 3 + INDEXERS + 4
    assert classes(apply_to(model)) == once
    modules = {"mhc_pre": SITES, "mhc_post": 4, "mhc_head": 1, "compressor": 3, "indexer": INDEXERS, "attention": 4}
    assert {op: len(names) for op, names in swapped(model).items()} == modules
    assert swapped(model)["mhc_pre"][0] == "model.layers.0.attn_hc"
    assert classes(undo(model)) == before == classes(undo(model))
    assert swapped(model) == {}
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_other_models_are_left_alone(model):
    other = copy.deepcopy(model)
    apply_to(model)
    assert not swapped(other)
    layers = tiny_model().model.layers
    connections = {"mhc_pre": ("attn_hc", "ffn_hc"), "mhc_post": ("",), "attention": ("self_attn",)}
    assert swapped(apply_to(layers[0])) == connections
    assert swapped(apply_to(layers[1])) == connections | {
        "compressor": ("self_attn.compressor",),
        "indexer": ("self_attn.compressor.indexer",),
    }


def test_a_swapped_model_can_be_copied_and_pickled(model):
    apply_to(model)
    assert swapped(copy.deepcopy(model)) == swapped(model)
    attention = model.model.layers[1].self_attn
    layer = model.model.layers[0]
    for module in (
        layer.attn_hc,
        layer,
        model.model.hc_head,
        attention.compressor,
        attention.compressor.indexer,
        attention,
    ):
        assert type(pickle.loads(pickle.dumps(module))) is type(module)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        integration.nothing  # noqa: B018


def test_only_selects_operators(model):
    assert list(swapped(apply_to(model, only=["mhc_pre"]))) == ["mhc_pre"]
    assert list(swapped(undo(model, only=[]))) == ["mhc_pre"]
    assert list(swapped(undo(apply_to(model), only=["mhc_pre"]))) == [
        "mhc_post",
        "mhc_head",
        "compressor",
        "indexer",
        "attention",
    ]
    known = r"\['attention', 'compressor', 'indexer', 'mhc_head', 'mhc_post', 'mhc_pre'\]"
    with pytest.raises(ValueError, match=rf"only: expected operators among {known}, got \['softmax'\]"):
        apply_to(model, only=["softmax"])


def test_a_model_without_such_modules_is_refused():
    known = "HyperConnection", "DecoderLayer", "HyperHead", "CSACompressor", "HCACompressor", "Indexer", "Attention"
    expected = f"a {' or '.join(f'DeepseekV4{name}' for name in known)} inside, got none in Linear"
    with pytest.raises(ValueError, match=f"model: expected {expected}"):
        apply_to(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model: expected a DeepseekV4Indexer inside, got none in"):
        apply_to(tiny_model().model.layers[0], only=["indexer"])


@pytest.mark.parametrize("act", [apply_to, undo])
def test_a_module_with_a_forward_of_its_own_is_refused(model, act):
    if act is undo:
        apply_to(model)
    layer = model.model.layers[3].ffn_hc
    layer.forward = lambda streams: None
    before = classes(model)
    with pytest.raises(
        RuntimeError, match=r"got one in model.layers.3.ffn_hc: .* remove_hook_from_submodules\(model\)"
    ):
        act(model)
    assert classes(model) == before


def test_kept_choices_are_the_recorded_ones(model, ids):
    choices, other = Choices(), copy.deepcopy(model)
    for layer in other.model.layers[1:]:
        layer.mlp.gate.e_score_correction_bias.neg_()  # picks other experts; changes nothing else
    with torch.no_grad():
        with choices.record(model):
            logits = model(ids, use_cache=False).logits
        assert not torch.allclose(other(ids, use_cache=False).logits, logits)
        with choices.keep(other) as rows:
            assert torch.allclose(other(ids, use_cache=False).logits, logits, atol=1e-5)
    assert 0 < rows["differed"] < rows["made"]


def test_double_leaves_no_fp32(model, ids):
    seen = set()

    class Dtypes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            seen.update(x.dtype for x in tree_leaves(out) if isinstance(x, torch.Tensor))
            return out

    exact = double(model)
    with torch.no_grad(), Double(), Dtypes():
        exact(ids, use_cache=False)
    assert {dtype for dtype in seen if dtype.is_floating_point} == {torch.float64}
