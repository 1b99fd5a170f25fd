"""Nothing is silent in AutoModel's DeepSeek-V4 either: which code each module ran, what is refused, and what stays alone."""

import copy
import logging
import pickle
import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

pytest.importorskip("nemo_automodel", reason="needs NeMo AutoModel: make test-automodel")

from nemo_automodel.components.models.deepseek_v4 import layers, optimized_kernels
from packaging.requirements import Requirement
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from automodel_models import BF16, counted, packed, run, tiny
from fingerprints import of_automodel
from lemmata.integrations import automodel, automodel_indexer, automodel_originals
from lemmata.integrations.automodel import FallbackError, UnknownVersionError, apply_to, paths, swapped, undo
from lemmata.integrations.automodel_fingerprints import FUNCTIONS, RELEASES
from lemmata.integrations.automodel_originals import ORIGINALS, SEAMS

ATTENTION = [f"model.layers.{layer}.self_attn" for layer in range(4)]
ALL = {"mhc_pre": 8, "mhc_post": 4, "mhc_head": 1, "compressor": 3, "indexer": 2, "attention": 4}


@pytest.fixture
def model():
    return tiny(BF16)


def counts(model):
    return {op: len(names) for op, names in swapped(model).items()}


def kinds(model):
    return [type(module) for module in model.modules()]


def reasons(model):
    return {path.reason for path in paths(model).values()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_what_each_module_ran(model):
    assert paths(model) == {}
    assert {path.last for path in paths(apply_to(model)).values()} == {None}
    run(model)
    run(model, **packed([20, 44], [32, 32]))
    found = paths(model)
    assert len(found) == sum(ALL.values())
    assert [found[name].last for name in ATTENTION] == ["swa by rows", "csa by rows", "hca by rows", "csa by rows"]
    assert [set(found[name].calls.values()) for name in ATTENTION] == [{1}] * 4
    assert found[ATTENTION[2]].calls == {"hca": 1, "hca by rows": 1}
    assert found[f"{ATTENTION[1]}.compressor.indexer"].calls == {"indexer_topk": 1, "indexer_scores, topk": 1}
    assert found["model.layers.0.attn_hc"].calls == {"mhc_pre": 2}
    assert found["model.layers.0"].calls == {"mhc_post": 2}
    assert found["model.hc_head"].calls == {"mhc_head": 2}
    assert reasons(model) == {None}
    assert paths(undo(model)) == {}


def test_swapped_and_back(model):
    before, plain = kinds(model), run(model)
    assert counts(apply_to(model)) == ALL
    after, ours = kinds(model), run(model)
    assert kinds(apply_to(model)) == after
    assert same(run(model), ours)
    assert kinds(undo(undo(model))) == before
    assert same(run(model), plain)
    assert counts(apply_to(model, only=["mhc_pre"])) == {"mhc_pre": 8}
    with pytest.raises(ValueError, match="only: expected operators among"):
        apply_to(model, only=["moe"])
    with pytest.raises(ValueError, match="model: expected a DeepseekV4HyperConnection or"):
        apply_to(nn.Linear(2, 2))


def test_two_models_do_not_influence_each_other(model):
    other, seams = copy.deepcopy(model), {n: automodel_originals.named(n) for n in ORIGINALS["attention"]}
    plain = run(other)
    apply_to(model, strict=True)
    assert same(run(other), plain)
    assert counted(other)[1] == {}
    assert seams == {n: automodel_originals.named(n) for n in seams}
    assert not same(run(model), plain)


def test_copies_and_pickles(model):
    ours = run(apply_to(model, strict=True))
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert kinds(again) == kinds(model)
        assert same(run(again), ours)
        undo(again)
    assert counts(model) == ALL
    assert pickle.loads(pickle.dumps(type(model.model.layers["0"].self_attn))) is automodel.LemmataDeepseekV4Attention
    with pytest.raises(AttributeError, match=r"module 'lemmata.integrations.automodel' has no attribute 'nothing'"):
        automodel.nothing  # noqa: B018


def with_dropout(model):
    for name in ATTENTION:
        model.get_submodule(name).attention_dropout = 0.5


def with_many_iterations(model):
    model.model.layers["0"].attn_hc.hc_sinkhorn_iters = 107


def with_a_wide_window(model):
    model.model.layers["0"].self_attn.sliding_window = 513


WINDOW = torch.ones(64, 64, dtype=torch.bool).tril().triu(-7)
OTHER = torch.zeros(2, 1, 64, 64, dtype=BF16).masked_fill(~WINDOW, torch.finfo(BF16).min)
OTHER[0, 0, 30, 3] = 0
FALLBACKS = {
    "attention dropout": (with_dropout, {}),
    "a mask of another kind than the causal window": (lambda model: None, {"attention_mask": OTHER}),
    "hc_sinkhorn_iters is 107, where the operator takes [1, 100]": (with_many_iterations, {}),
    "window is 513, where the operators take [1, 512]": (with_a_wide_window, {}),
}


@pytest.mark.parametrize("reason", FALLBACKS)
def test_a_fallback_is_said_once_with_its_reason(model, reason, caplog):
    change, how = FALLBACKS[reason]
    change(model)
    copied = copy.deepcopy(model)
    with caplog.at_level(logging.WARNING, "lemmata"):
        apply_to(model)
        for _ in range(2):
            torch.manual_seed(0)
            ours = run(model, **how)
    (message,) = caplog.messages
    assert f"runs the module's own code: {reason} (said once; lemmata.integrations.automodel.paths(model)" in message
    assert reasons(model) == {None, reason}
    assert all(torch.isfinite(x).all() for x in ours.values())
    with pytest.raises(FallbackError, match=re.escape(f"to run on lemmata, got a call that does not: {reason}")):
        run(apply_to(copied, strict=True), **how)


def test_a_fallback_computes_what_the_untouched_model_does(model):
    plain = run(model, attention_mask=OTHER)
    assert same(run(apply_to(model, only=["attention"]), attention_mask=OTHER), plain)


def test_the_whole_window_as_a_mask_of_four_dimensions(model):
    plain = run(apply_to(model, strict=True))
    mask = torch.zeros(1, 1, 64, 64, dtype=BF16).masked_fill(~WINDOW, torch.finfo(BF16).min)
    assert same(run(model, attention_mask=mask), plain)


def test_a_layer_without_a_mask_is_its_own(model):
    """Alone, the torch path sees every key: no operator does."""
    attention = copy.deepcopy(model.model.layers["0"].self_attn)
    hidden, at = torch.randn(1, 12, 64, dtype=BF16), torch.arange(12)[None]
    how = {"position_embeddings": model.model.rotary_emb(hidden, at), "position_ids": at}
    plain = attention(hidden, **how)[0]
    assert torch.equal(apply_to(attention)(hidden, **how)[0], plain)
    assert reasons(attention) == {"no mask of floating point numbers and four dimensions"}


def test_what_is_compiled_looks_at_no_mask(model):
    """Traced, a layer cannot ask what its mask holds, and is its own; hyper-connections do not need to."""
    apply_to(model)
    hidden, at = torch.randn(1, 16, 64, dtype=BF16), torch.arange(16)[None]
    layer, streams = model.model.layers["0"], torch.randn(1, 16, 4, 64, dtype=BF16)
    how = {"position_embeddings": model.model.rotary_emb(hidden, at), "position_ids": at}
    how["attention_mask"] = layers.build_causal_padding_mask(None, 16, BF16, hidden.device, sliding_window=8)
    with torch.compiler.set_stance("default"):
        out = torch.compile(layer.self_attn, backend="eager")(hidden, **how)[0]
        weights = torch.compile(layer.attn_hc, backend="eager", fullgraph=True)(streams)
    assert torch.equal(out, layer.self_attn.lemmata_original.forward(layer.self_attn, hidden, **how)[0])
    assert all(map(torch.equal, weights, layer.attn_hc(streams)))
    assert reasons(layer) == {None, "a mask that cannot be looked at now"}


def test_scores_in_pieces(model, monkeypatch):
    """However few scores are held at a time, the same entries are chosen."""
    plain = run(apply_to(model, strict=True), **packed([20, 44], [32, 32]))
    monkeypatch.setattr(automodel_indexer, "_HELD", 2 * 16 * 5)
    assert same(run(model, **packed([20, 44], [32, 32])), plain)


PATCHES = [("attention", layers, "dsv4_sparse_attention"), ("indexer", layers, "dsv4_indexer_scores")]
PATCHES += [
    ("mhc_pre", optimized_kernels, "sinkhorn_normalize_torch"),
    ("attention", layers.DeepseekV4Attention, "forward"),
]


@pytest.mark.parametrize(("op", "owner", "name"), PATCHES)
def test_a_patched_seam_runs_as_it_is(model, op, owner, name, monkeypatch):
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: original(*args, **kwargs))
    own = [n for n, path in paths_after(model).items() if path.last == "own"]
    assert own == list(swapped(model)[op])
    assert {reason for reason in reasons(model) if reason} == {f"{full(owner, name)} is patched"}


def full(owner, name):
    return f"{owner.__name__}.{name}" if isinstance(owner, type) else name


def paths_after(model):
    run(apply_to(model))
    return paths(model)


def test_a_subclass_with_a_forward_of_its_own_stays(model, caplog):
    class Other(layers.DeepseekV4Attention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model.model.layers["0"].self_attn.__class__ = Other
    with caplog.at_level(logging.WARNING, "lemmata"):
        assert counts(apply_to(model)) == ALL | {"attention": 3}
    assert "a subclass of DeepseekV4Attention with a forward of its own" in caplog.text
    with pytest.raises(FallbackError):
        apply_to(model, strict=True)


def test_a_forward_on_the_instance_is_refused(model):
    attention = model.model.layers["0"].self_attn
    attention.forward = lambda *args, **kwargs: None
    with pytest.raises(RuntimeError, match="model: expected no instance attribute forward, got one in model"):
        apply_to(model)
    assert not swapped(model)


def test_inside_a_checkpoint_wrapper_undo_finds_them(model):
    before = kinds(model)
    apply_to(model)
    model.model.layers["0"] = checkpoint_wrapper(model.model.layers["0"])
    assert counts(model) == ALL
    undo(model)
    model.model.layers["0"] = model.model.layers["0"]._checkpoint_wrapped_module
    assert kinds(model) == before


EXTRA = next(
    Requirement(r)
    for r in tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]["automodel"]
)


def test_the_extra_admits_the_releases_that_were_read_and_no_other():
    assert EXTRA.name == "nemo-automodel"
    assert [r for r in ("0.6.0", *RELEASES, "0.7.1", "0.8.0", "1.0.0") if EXTRA.specifier.contains(r)] == list(RELEASES)


NAMES = sorted({name for names in ORIGINALS.values() for name in names})


def test_every_function_of_the_installed_release_is_in_the_table():
    found = of_automodel(Path(layers.__file__).parent)
    assert sorted(found) == NAMES == sorted(FUNCTIONS)
    assert {name for name, is_now in found.items() if is_now not in FUNCTIONS[name]} == set()
    assert version("nemo-automodel") in RELEASES
    assert {name for names in SEAMS.values() for name in names} < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_altered_function_of_a_release_is_refused(name, model, monkeypatch):
    """A planted error: a release whose function says something else."""
    monkeypatch.setitem(FUNCTIONS, name, ("0" * 16,))
    with pytest.raises(
        UnknownVersionError, match=f"^nemo-automodel: expected the {name} of version 0.7.0, got another"
    ):
        apply_to(model)
    assert not swapped(model)


def test_a_release_without_a_function_is_refused(model, monkeypatch):
    monkeypatch.delattr(layers, "dsv4_indexer_scores")
    monkeypatch.delattr(optimized_kernels, "dsv4_indexer_scores")
    with pytest.raises(UnknownVersionError, match="expected the dsv4_indexer_scores of version"):
        apply_to(model)


def test_automodel_absent(model, monkeypatch):
    def absent(package):
        raise PackageNotFoundError

    monkeypatch.setattr(automodel_originals, "version", absent)
    with pytest.raises(UnknownVersionError, match=r"^nemo-automodel: expected it installed, got none"):
        apply_to(model)


def test_a_release_without_the_model(monkeypatch):
    def absent():
        raise ModuleNotFoundError

    monkeypatch.setattr(automodel_originals, "modeling", absent)
    with pytest.raises(UnknownVersionError, match=r"^nemo-automodel: expected a version with DeepSeek-V4, got 0\.7\.0"):
        automodel.check_version()
