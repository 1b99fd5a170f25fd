"""Nothing is silent: which code each module ran, what a patched original does, and what a strict swap refuses."""

import copy
import functools
import logging
import pickle
import re

import pytest
import torch

pytest.importorskip("transformers")

from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

from lemmata.integrations.observe import Choices, Dispatches, Double
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import SWAPS, FallbackError, apply_to, paths, swapped, undo

BF16 = torch.bfloat16
IDS = torch.randint(1, 256, (2, 40), generator=torch.Generator().manual_seed(0))
LAYERS = [f"model.layers.{layer}" for layer in range(4)]
ATTENTION = [f"{layer}.self_attn" for layer in LAYERS]


@pytest.fixture
def model():
    return tiny_model().to(BF16)


@pytest.fixture(scope="module")
def plain():
    return logits(tiny_model().to(BF16))


@torch.no_grad()
def logits(model, **kwargs):
    return model(IDS, use_cache=False, **kwargs).logits


def lasts(model, part):
    return {path.last for name, path in paths(model).items() if name.endswith(part)}


def test_what_each_module_ran(model):
    assert paths(model) == {}
    apply_to(model)
    assert {path.last for path in paths(model).values()} == {None}
    logits(model)
    logits(model)
    found = paths(model)
    assert len(found) == 8 + 4 + 1 + 3 + 2 + 4
    assert [found[name].last for name in ATTENTION] == ["swa", "csa", "hca", "csa"]
    assert found[ATTENTION[0]].calls == {"swa": 2}
    assert {path.reason for path in found.values()} == {None}
    assert lasts(model, "indexer") == {"indexer_topk"}
    assert lasts(model, "_hc") == {"mhc_pre"}
    assert {found[name].last for name in LAYERS} == {"mhc_post"}
    assert found["model.hc_head"].last == "mhc_head"
    assert lasts(model, "compressor") == {"compress"}
    logits(model.float())
    assert lasts(model, "_hc") == {"sinkhorn"}
    found = paths(model)[ATTENTION[0]]
    assert (found.last, found.calls) == ("own", {"swa": 2, "own": 1})
    assert found.reason == "hidden states in torch.float32, where the operators take bfloat16"
    assert paths(undo(model)) == {}


def test_a_fallback_is_said_once_for_each_reason(model, caplog):
    apply_to(model)
    with caplog.at_level(logging.WARNING, "lemmata"):
        logits(model)
        assert not caplog.records
        for _ in range(2):
            logits(model, output_attentions=True)
            logits(copy.deepcopy(model), output_attentions=True)  # which knows what was said
    (message,) = caplog.messages
    assert message == (
        "attention: model.layers.0.self_attn runs the module's own code: output_attentions "
        "(said once; lemmata.integrations.transformers.paths(model) has every module)"
    )


def test_strict_raises_instead(model):
    logits(apply_to(model, strict=True))
    for each in (model, copy.deepcopy(model)):
        with pytest.raises(FallbackError, match=r"attention: expected model.layers.0.self_attn to run on lemmata, got"):
            logits(each, output_attentions=True)
    logits(apply_to(model), output_attentions=True)  # no longer strict


def test_what_is_remembered_travels(model):
    logits(apply_to(model, strict=True))
    layer = model.model.layers[0]
    assert paths(pickle.loads(pickle.dumps(layer.self_attn))) == paths(layer.self_attn)
    assert paths(copy.deepcopy(model)) == paths(model)


def altered(function):
    """The function with other results: a patch of the user's."""

    @functools.wraps(function)
    def patched(*args, **kwargs):
        out = function(*args, **kwargs)
        if isinstance(out, tuple):
            return tuple(o if o is None else o / 2 for o in out)
        return out // 2 if out.dtype == torch.long else -out / 2

    return patched


OWNER = {
    "DeepseekV4HyperConnection.forward": "_hc",
    "DeepseekV4DecoderLayer.forward": r"layers\.\d",
    "DeepseekV4HyperHead.forward": "hc_head",
    "DeepseekV4UnweightedRMSNorm.forward": "hc_head",  # a hyper-connection calls it, around sinkhorn
    "DeepseekV4Indexer.forward": "indexer",
    "DeepseekV4IndexerScorer.forward": "indexer",
    "DeepseekV4Attention.forward": "self_attn",
    "eager_attention_forward": "self_attn",
    "apply_rotary_pos_emb": "self_attn",
    "DeepseekV4CSACompressor.forward": r"1\.self_attn",
    "DeepseekV4HCACompressor.forward": r"2\.self_attn",
}
MHC = {"_hc": "mhc_pre", OWNER["DeepseekV4DecoderLayer.forward"]: "mhc_post", "hc_head": "mhc_head"}


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", OWNER)
def test_a_patched_original_runs_and_is_said(model, plain, monkeypatch, caplog, name, late):
    """As Liger, unsloth and axolotl patch classes, before the swap or after it."""
    if late:
        logits(apply_to(model))
    *path, attribute = name.split(".")
    owner = getattr(modeling, path[0]) if path else modeling
    monkeypatch.setattr(owner, attribute, altered(getattr(owner, attribute)))
    untouched = logits(tiny_model().to(BF16))
    assert not torch.equal(untouched, plain)
    apply_to(model)
    with caplog.at_level(logging.WARNING, "lemmata"):
        ours = logits(model)
    assert any(f"{name} is patched" in message for message in caplog.messages)
    said = [path for module, path in paths(model).items() if re.search(f"{OWNER[name]}$", module)]
    assert said
    assert {(path.last, path.reason) for path in said} == {("own", f"{name} is patched")}
    if OWNER[name] in MHC:  # the rest runs on the operators, which round otherwise
        undo(model, only={swap.op for swap in SWAPS} - {MHC[OWNER[name]]})
        assert torch.equal(logits(model), untouched)
    else:
        undo(model, only=MHC.values())
        only_own = {"attention", "indexer"} if OWNER[name] == "self_attn" else {"indexer"}
        undo(model, only={"attention", "indexer"} - only_own)
    assert ours.isfinite().all()
    monkeypatch.undo()
    assert "own" not in lasts(apply_to(undo(model)), "") | {p.last for p in paths(model).values()}


def test_a_patch_that_is_not_noticed_is_noticed_here(model, plain, monkeypatch):
    """The planted error: were patches not looked for, the operators would go on."""
    from lemmata.integrations import hyper_connection

    right = modeling.DeepseekV4HyperConnection.forward
    monkeypatch.setattr(modeling.DeepseekV4HyperConnection, "forward", altered(right))
    untouched = logits(tiny_model().to(BF16))
    apply_to(model, only=["mhc_pre"])
    assert torch.equal(logits(model), untouched)
    monkeypatch.setattr(hyper_connection, "patched", lambda *functions: None)
    assert not torch.allclose(logits(model), untouched, atol=0.1)


def test_another_function_registered_as_eager(model, monkeypatch):
    right = modeling.eager_attention_forward
    monkeypatch.setitem(
        modeling.ALL_ATTENTION_FUNCTIONS._local_mapping,
        "eager",
        lambda *args, **kwargs: altered(right)(*args, **kwargs),
    )
    untouched = logits(model)
    apply_to(model, only=["attention"])
    assert torch.equal(logits(model), untouched)
    assert {p.reason for p in paths(model).values()} == {"another function is registered as 'eager' attention"}


class Mine(modeling.DeepseekV4HyperConnection):
    def forward(self, hidden_streams):
        return super().forward(2 * hidden_streams)


def test_a_subclass_with_its_own_forward_is_named(model, caplog):
    model.model.layers[2].ffn_hc.__class__ = Mine
    untouched = copy.deepcopy(model)
    with caplog.at_level(logging.WARNING, "lemmata"):
        apply_to(model)
    assert "model.layers.2.ffn_hc" in caplog.text
    assert "a subclass of DeepseekV4HyperConnection with a forward of its own" in caplog.text
    assert type(model.model.layers[2].ffn_hc) is Mine
    assert len(swapped(model)["mhc_pre"]) == 7
    before = [type(module) for module in untouched.modules()]
    with pytest.raises(FallbackError, match=r"expected model\.layers\.2\.ffn_hc to run on lemmata"):
        apply_to(untouched, strict=True)
    assert [type(module) for module in untouched.modules()] == before


CONFIGS = {
    "one stream": ({"hc_mult": 1}, "hc_mult is 1"),
    "nine streams": ({"hc_mult": 9}, "hc_mult is 9"),
    "no eps": ({"hc_eps": 0.0}, "hc_eps is 0.0"),
    "many iterations": ({"hc_sinkhorn_iters": 101}, "hc_sinkhorn_iters is 101"),
    "no iterations": ({"hc_sinkhorn_iters": 0}, None),
    "many entries": ({"index_topk": 4096}, None),
    "another width of keys": ({"index_head_dim": 16}, None),
}
DTYPES = [torch.float32, BF16, torch.float16, torch.float64]


def within(model, ours, run=logits):
    """Whether the swapped model is as near to the untouched one as two roundings are, with the same choices."""
    choices = Choices()
    with choices.record(model):
        plain = run(model)
    exact = copy.deepcopy(model).double()
    with choices.keep(exact), Double():
        right = run(exact)
    with choices.keep(ours):
        got = run(ours)
    limit = 2 * (plain - right).abs().max() + torch.finfo(plain.dtype).eps * plain.abs().max()
    return bool((got - plain).abs().max() <= limit)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_any_configuration_in_any_dtype(name, dtype):
    config, reason = CONFIGS[name]
    model, op = tiny_model(**config).to(dtype), "indexer" if "index" in next(iter(config)) else "mhc_pre"
    ours = apply_to(copy.deepcopy(model), only=[op])
    assert within(model, ours)
    found = paths(ours).values()
    assert {path.last == "own" for path in found} == {reason is not None or (op, dtype) == ("mhc_pre", torch.float64)}
    if reason is not None:
        assert torch.equal(logits(ours), logits(model))
        assert all(path.reason.startswith(reason) for path in found)


@torch.no_grad()
def test_more_entries_than_are_taken_at_once():
    """Once there are more than 2048 entries to choose more than 2048 from, the module's own code does."""
    rates = {"compressed_sparse_attention": 1, "heavily_compressed_attention": 16}
    plain = tiny_model(index_topk=4096, compress_rates=rates).to(BF16).model.layers[1].self_attn.compressor.indexer
    ours = apply_to(copy.deepcopy(plain))
    hidden = torch.randn(1, 2060, 64, generator=torch.Generator().manual_seed(1)).to(BF16)
    for tokens, last in ((2040, "indexer_scores, topk"), (2060, "own")):
        args = hidden[:, :tokens], hidden[:, :tokens, :32], torch.arange(tokens)[None], None, 1
        assert torch.equal(ours(*args).sort(-1).values, plain(*args).sort(-1).values)
        assert paths(ours)[""].last == last
    assert "index_topk is 4096" in paths(ours)[""].reason


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, BF16), (torch.float32, torch.float16), (BF16, BF16)], ids=str
)
def test_under_autocast(dtype, autocast):
    model = tiny_model().to(dtype)
    ours, calls = apply_to(copy.deepcopy(model)), Dispatches()

    def run(model):
        with torch.autocast("cpu", autocast):
            return logits(model)

    with calls:
        run(ours)
    attention = {op: n for op, n in calls.calls.items() if op in ("swa", "csa", "hca")}
    assert attention == ({"swa": 1, "csa": 2, "hca": 1} if autocast == BF16 else {})
    connections = {op: calls.calls[op] for op in ("mhc_pre", "mhc_post", "mhc_head", "sinkhorn") if op in calls.calls}
    assert connections == ({"mhc_pre": 8, "mhc_post": 8, "mhc_head": 1} if autocast == BF16 else {"sinkhorn": 8})
    choices = Choices()
    with choices.record(model):
        plain = run(model)
    exact = tiny_model().double()
    with choices.keep(exact), Double():
        right = logits(exact)
    with choices.keep(ours):
        got = run(ours)
    assert (got - plain).abs().max() <= 2 * (plain - right).abs().max()
