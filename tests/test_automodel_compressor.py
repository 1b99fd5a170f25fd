"""The compressors of AutoModel's DeepSeek-V4 and of its indexer on compress: against the untouched modules and fp64."""

import copy
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

import lemmata

pytest.importorskip("nemo_automodel", reason="needs NeMo AutoModel: make test-automodel")

from nemo_automodel.components.models.common import utils
from nemo_automodel.components.models.deepseek_v4 import layers
from torch import nn

from automodel_models import BF16, CALLS, IDS, Picks, beyond, counted, exact, packed, run, tiny
from lemmata.integrations import automodel_compressor as integration
from lemmata.integrations.automodel import apply_to, paths, swapped
from lemmata.integrations.observe import Dispatches, Double
from lemmata.reference import compressor as reference
from lemmata.reference.contract import Size

ONLY = ["compressor", "indexer"]
WIDE = {"index_head_dim": 64}  # of the widths that the operator takes
CSA, HCA = "model.layers.1.self_attn.compressor", "model.layers.2.self_attn.compressor"
BATCHES = {
    **{name: how for name, (how, _) in CALLS.items()},
    "documents that end within windows": packed([21, 43], [5, 59]),
    "many documents": packed([1, 2, 3, 58], [30, 9, 9, 16]),
    "documents of a window and less": packed([16, 16, 32], [3, 4, 57]),
}


def reasons(model):
    return {name: path.reason for name, path in paths(model).items() if path.reason}


@pytest.mark.parametrize("name", BATCHES)
def test_a_step_in_bf16(name, device):
    """Forward and backward, of three compressors, and of the two indexers' own."""
    how, model, picks = BATCHES[name], tiny(BF16, **WIDE).to(device), Picks()
    with picks.record(model):
        plain = run(model, **how)
    right = exact(copy.deepcopy(model).double().cpu(), picks, **how)
    ours = apply_to(copy.deepcopy(model), only=ONLY, strict=True)
    with picks.keep(ours) as rows:
        got, calls = counted(ours, **how)
    assert beyond(got, plain, right) == {}
    assert (calls["compress"], calls["compress_bwd"]) == (5, 3)  # choices carry no gradient
    assert rows["moved"] < rows["made"] / 10
    found = {name.split(".")[-1]: path.last for name, path in paths(ours).items()}
    assert found["compressor"] == "compress"
    assert found["indexer"].startswith("compress, ")


@pytest.mark.parametrize("of", [CSA, HCA])
def test_entries_err_no_more_than_the_untouched(of):
    model, at = tiny(BF16, **WIDE), torch.arange(50)[None]
    hidden = torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(7)).to(BF16)

    def made(model, hidden):
        residual = hidden[..., :32]
        rotary = model.model.rotary_emb_compress
        cache, call = layers.DeepseekV4TrainCache(), (rotary, rotary(hidden, at))
        return model.get_submodule(of)(hidden, residual, *call, cache, 0, 0)[0].detach()

    plain, ours = made(model, hidden), made(apply_to(copy.deepcopy(model), only=ONLY, strict=True), hidden)
    with Double():
        right = made(copy.deepcopy(model).double(), hidden.double())
    assert ours.shape == plain.shape == (2, 1, 50 // (4 if of == CSA else 16), 64)
    assert ours.dtype == BF16
    assert (ours.double() - right).norm() <= 1.2 * (plain.double() - right).norm()


def in_fp64(kv, gate, ape, weight, table, *, offset, past, overlap, eps):
    """The operator's reference in fp64, with the arguments of the public function."""
    assert {t.dtype for t in (kv, gate, ape, weight, table)} == {torch.float64}
    assert overlap == (kv.shape[-1] == 2 * weight.shape[0])
    offset = offset if isinstance(offset, torch.Tensor) else torch.full((kv.shape[0],), offset, dtype=torch.int32)
    tensors = kv, gate, ape, weight, table, offset
    return reference.compress(*tensors, past=past, eps=eps, dtype=torch.float64)[0]


def norm(x, weight, eps):
    return F.rms_norm(x, x.shape[-1:], weight, eps)


@contextmanager
def wide(operator=in_fp64):
    """Have compressors, swapped or not, compute in fp64, as AutoModel's norm does not by itself."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(utils, "_float32_rms_norm_fwd", norm))
        stack.enter_context(mock.patch.multiple(integration, _BF16=torch.float64, _F32=torch.float64, _unready=ready))
        stack.enter_context(mock.patch.object(lemmata, "compress", operator))
        stack.enter_context(Double())
        yield


def ready(self, rotary):
    """No reason: the norm is patched here, and is of the formula all the same."""


EXACT = 1e-11  # of the largest number of the same tensor


def apart(ids=IDS, operator=in_fp64, config=WIDE, **how):
    """How far logits and gradients of the swapped model are from the untouched one's, of the largest of their tensor."""
    model, picks = tiny(torch.float64, **config), Picks()
    ours = apply_to(copy.deepcopy(model), only=["compressor"], strict=True)
    with wide(operator):
        with picks.record(model):
            plain = run(model, ids, **how)
        with picks.keep(ours) as rows:
            got = run(ours, ids, **how)
    assert {path.last for path in paths(ours).values()} == {"compress"}
    assert plain.keys() == got.keys()
    assert rows["moved"] == 0 or operator is not in_fp64
    return max(float((got[n] - plain[n]).abs().max() / (plain[n].abs().max() + 1e-12)) for n in plain)


@pytest.mark.parametrize("name", BATCHES)
def test_in_fp64_nothing_but_rounding_is_between(name):
    assert apart(**BATCHES[name]) < EXACT


SHAPES = {
    "fewer tokens than an entry has": (3, {}),
    "no whole entry of an hca layer": (30, {"compress_ratios": [0, 4, 128, 4]}),
    "a layer that predicts the next token but one": (40, {"num_nextn_predict_layers": 1, "compress_ratios": [4] * 5}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    tokens, config = SHAPES[name]
    assert apart(IDS[:, :tokens], config=config) < EXACT


def test_a_window_of_few_tokens_where_another_rank_has_a_whole_one(monkeypatch):
    """Parameters that ranks share have a gradient on all or on none; what the window makes is hidden."""
    short = {"compress_ratios": [0, 4, 128, 4]}
    without = run(apply_to(tiny(BF16, **short), only=ONLY), IDS[:, :30])
    compressor = layers.DeepseekV4Compressor
    monkeypatch.setattr(compressor, "_compute_fsdp_group_has_complete_hca_window", lambda *args: True)
    assert apart(IDS[:, :30], config=short) < EXACT
    with_one = run(apply_to(tiny(BF16, **short), only=ONLY), IDS[:, :30])
    assert with_one.keys() - without.keys() == {n for n in with_one if n.startswith(HCA)} != set()
    assert torch.equal(with_one["logits"], without["logits"])


def changed(change):
    return partial(change, in_fp64)


WRONG = {
    "no bias": ({}, changed(lambda f, kv, gate, ape, *t, **how: f(kv, gate, 0 * ape, *t, **how))),
    "angles of the next window": ({}, changed(lambda f, *t, offset, **how: f(*t, offset=offset + 4, **how))),
    "windows of other documents": (
        BATCHES["packed"],
        changed(lambda f, kv, gate, *t, **how: f(kv, gate.nan_to_num(neginf=0.0), *t, **how)),
    ),
    "the angles of the first row in all": (
        BATCHES["packed"],
        changed(lambda f, *t, offset, **how: f(*t, offset=0 * offset, **how)),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_operator_is_noticed(name):
    """Planted errors."""
    how, operator = WRONG[name]
    assert apart(operator=operator, **how) > 1e6 * EXACT


class OtherNorm(utils.Float32RMSNorm):
    pass


class Other(torch.Tensor):
    pass


def on_norm(change):
    def alter(model):
        change(model.get_submodule(HCA).kv_norm)

    return alter


def of_another_type(model):
    weight = model.get_submodule(HCA).kv_norm.weight
    del model.get_submodule(HCA).kv_norm.weight
    model.get_submodule(HCA).kv_norm.weight = weight.detach().as_subclass(Other)


def on_rotary(model):
    model.model.rotary_emb_compress.register_forward_hook(lambda module, args, out: None)


def narrow(name):
    """A projection whose result is in bf16."""

    def alter(model):
        getattr(model.get_submodule(HCA), name).register_forward_hook(lambda module, args, out: out.to(BF16))

    return alter


def in_bf16(model):
    model.get_submodule(HCA).ape_param.to(BF16)


def nothing(model):
    pass


ALL = {CSA, CSA.replace("1", "3"), HCA}
REASONS = {
    "hooks on Float32RMSNorm": (on_norm(lambda norm: norm.register_forward_hook(lambda *args: None)), {}, {HCA}),
    "a module of class OtherNorm in the place of Float32RMSNorm": (
        on_norm(lambda norm: setattr(norm, "__class__", OtherNorm)),
        {},
        {HCA},
    ),
    "eps is 2.0, where the operator takes [1e-12, 1]": (on_norm(lambda norm: setattr(norm, "eps", 2.0)), {}, {HCA}),
    "hooks on DeepseekV4RotaryEmbedding": (on_rotary, {}, ALL),
    "a tensor of type Other": (of_another_type, {}, {HCA}),
    "values in torch.bfloat16, where the operator takes torch.float32": (narrow("wkv"), {}, {HCA}),
    "logits in torch.bfloat16, where the operator takes torch.float32": (narrow("wgate"), {}, {HCA}),
    "a bias in torch.bfloat16, where the operator takes torch.float32": (in_bf16, {}, {HCA}),
    "D is 192, where the operator takes {64, 128, 256, 512}": (nothing, {"head_dim": 192}, ALL),
    "ratio is 300, where the operator takes [1, 256]": (nothing, {"compress_ratios": [0, 4, 300, 4]}, {HCA}),
    "pairs is 2, where the operator takes {4, 8, 16, 32}": (nothing, {"qk_rope_head_dim": 4}, ALL),
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_reason_for_the_modules_own(reason):
    """Not a bit differs from the untouched module then."""
    change, config, names = REASONS[reason]
    model, other = tiny(BF16, **config), tiny(BF16, **config)
    change(model)
    change(other)
    ours = apply_to(other, only=["compressor"])
    for name in ALL - names:  # whose operator would differ by rounding
        ours.get_submodule(name).__class__ = layers.DeepseekV4Compressor
    with torch.no_grad():
        plain, got = model(IDS).logits, ours(IDS).logits
    assert torch.equal(plain, got)
    assert {n: r for n, r in reasons(ours).items() if n in names} == dict.fromkeys(names, reason)


def test_hidden_states_in_fp32():
    model = tiny()
    ours = apply_to(copy.deepcopy(model), only=["compressor"])
    assert all(torch.equal(a, b) for a, b in zip(run(model).values(), run(ours).values(), strict=True))
    why = "hidden states in torch.float32, where entries are rounded to bfloat16"
    assert reasons(ours) == dict.fromkeys(ALL, why)


def test_more_tokens_than_a_table_has(monkeypatch):
    monkeypatch.setitem(reference.COMPRESS.sizes, "positions", Size(0, 100))
    ours = apply_to(tiny(BF16), only=["compressor"])
    with torch.no_grad():
        ours(IDS)
    assert reasons(ours) == dict.fromkeys(ALL, "2 rows of 64 tokens, which are too many")


@pytest.mark.parametrize("name", ["_pool_windows", "_apply_partial_rope", "DeepseekV4Compressor.forward"])
def test_a_patched_function_runs_as_it_is(name, monkeypatch):
    owner = layers.DeepseekV4Compressor if "." in name else layers
    attribute, called = name.split(".")[-1], []
    original = getattr(owner, attribute)
    monkeypatch.setattr(owner, attribute, lambda *args, **how: called.append(1) or original(*args, **how))
    model = tiny(BF16)
    with torch.no_grad():
        plain = model(IDS).logits
        got = apply_to(copy.deepcopy(model), only=["compressor"])
        called.clear()
        assert torch.equal(got(IDS).logits, plain)
    assert reasons(got) == dict.fromkeys(ALL, f"{name} is patched")
    assert len(called) >= 3


def test_it_composes_with_attention_and_alone():
    """Attention accepts a compressor that was swapped, and one that was not."""
    for only in (["attention"], ["attention", "compressor"]):
        ours, calls = apply_to(tiny(BF16), only=only, strict=True), Dispatches()
        with calls, torch.no_grad():
            ours(IDS)
        assert calls.calls["csa"] == 2
        assert calls.calls["compress"] == (3 if "compressor" in only else 0)
    assert len(swapped(ours)["compressor"]) == 3


def test_a_cache_that_holds_tokens_of_an_earlier_call():
    """Tokens of an open window come first in the next call, whose first window overlaps none, as in the module."""
    model = tiny(BF16)
    hidden = torch.randn(1, 40, 64, generator=torch.Generator().manual_seed(3)).to(BF16)
    rotary = model.model.rotary_emb_compress

    def made(module):
        cache = layers.DeepseekV4TrainCache()
        for part in (slice(0, 10), slice(10, 40)):
            at = torch.arange(part.start, part.stop)[None]
            given = hidden[:, part], None, rotary, rotary(hidden, at), cache, 0, part.start
            keys = module(*given)[0]
        return keys.detach().double()

    module = model.get_submodule(HCA)
    module.compress_ratio = 8
    module.ape_param.weight = nn.Parameter(module.ape_param.weight[:8].clone())
    plain, ours = made(module), made(apply_to(copy.deepcopy(module), strict=True))
    assert plain.shape == ours.shape == (1, 1, 5, 64)
    assert float((plain - ours).norm() / plain.norm()) < 2**-6
