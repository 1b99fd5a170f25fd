"""Hyper-connections of AutoModel's DeepSeek-V4 on mhc_pre, mhc_post and mhc_head: against the untouched modules and fp64."""

import copy
from functools import partial
from unittest import mock

import pytest
import torch

import lemmata

pytest.importorskip("nemo_automodel", reason="needs NeMo AutoModel: make test-automodel")

from nemo_automodel.components.models.deepseek_v4 import layers
from nemo_automodel.components.models.deepseek_v4 import model as blocks
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper, checkpoint_wrapper

from automodel_models import BF16, CALLS, IDS, Picks, beyond, counted, exact, packed, run, tiny
from lemmata.integrations import automodel_block, automodel_hyper_connection
from lemmata.integrations.automodel import apply_to, paths, undo
from lemmata.integrations.observe import Dispatches, Double
from lemmata.reference import mhc

OPS = "mhc_pre", "mhc_post", "mhc_head"
STREAMS = torch.randn(2, 50, 4, 64, generator=torch.Generator().manual_seed(5)).to(BF16)
FIRST = "model.layers.0"
FURTHER = {"num_nextn_predict_layers": 1}
EXACT = 1e-11  # of the largest number of the same tensor


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def ran(model):
    """How many modules ran what, and all reasons."""
    found = paths(model).values()
    lasts = [path.last for path in found]
    return {last: lasts.count(last) for last in lasts}, {path.reason for path in found if path.reason}


@pytest.mark.parametrize("config", [{}, FURTHER], ids=["a model", "one that predicts the next token but one"])
@pytest.mark.parametrize("ops", [*((op,) for op in OPS), OPS[:2], OPS], ids="+".join)
def test_a_step_in_bf16(ops, config):
    """Alone and together, forward and backward; mhc_pre alone runs on sinkhorn, as blocks do not ask for its sum."""
    model, picks = tiny(BF16, **config), Picks()
    with picks.record(model):
        plain = run(model)
    right = exact(copy.deepcopy(model).double(), picks)
    ours = apply_to(copy.deepcopy(model), only=ops, strict=True)
    with picks.keep(ours):
        got, calls = counted(ours)
    assert beyond(got, plain, right) == {}
    count = 5 if config else 4
    each = {"mhc_pre": 2 * count, "mhc_post": 2 * count, "mhc_head": count - 3}
    expected = {"sinkhorn": 2 * count} if ops == ("mhc_pre",) else {op: each[op] for op in ops}
    assert calls == expected | {f"{op}_bwd": n for op, n in expected.items()}


def in_fp64(op):
    """The operator's reference, with the arguments of the public function."""

    def call(*tensors, **how):
        assert {t.dtype for t in tensors} == {torch.float64}
        return getattr(mhc, op)(*tensors, **how)

    return call


def apart(wrong=None, **how):
    """How far logits and gradients of the swapped model are from the untouched one's in fp64, of the largest number."""
    model, picks = tiny(torch.float64, **FURTHER), Picks()
    ours = apply_to(copy.deepcopy(model), only=OPS, strict=True)
    with Double(), picks.record(model):
        plain = run(model, **how)
    wide = mock.patch.object(automodel_hyper_connection, "_BF16", torch.float64)
    wider = mock.patch.multiple(automodel_block, _BF16=torch.float64, _unfit=lambda *tensors: None)
    operators = mock.patch.multiple(lemmata, **{op: in_fp64(op) for op in OPS} | (wrong or {}))
    with wide, wider, operators, Double(), picks.keep(ours):
        got = run(ours, **how)
    assert ran(ours) == ({"mhc_pre": 10, "mhc_post": 5, "mhc_head": 2}, set())
    assert plain.keys() == got.keys()
    return max(float((got[n] - plain[n]).abs().max() / (plain[n].abs().max() + 1e-12)) for n in plain)


@pytest.mark.parametrize("name", ["nothing said", "padded within", "packed"])
def test_in_fp64_nothing_but_rounding_is_between(name):
    assert apart(**CALLS[name][0]) < EXACT


def with_changed(op, change):
    return {op: partial(change, in_fp64(op))}


WRONG = {
    "mixed the other way round": with_changed("mhc_post", lambda f, x, y, post, comb: f(x, y, post, comb.mT)),
    "half of the result": with_changed("mhc_post", lambda f, x, y, post, comb: f(x, y, post / 2, comb)),
    "an iteration fewer": with_changed("mhc_pre", lambda f, *t, iterations, **how: f(*t, iterations=1, **how)),
    "another eps": with_changed("mhc_pre", lambda f, *t, eps, **how: f(*t, eps=1e-3, **how)),
    "no norm": with_changed("mhc_head", lambda f, *t, norm_eps, **how: f(*t, norm_eps=1.0, **how)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_operator_is_noticed(name):
    """Planted errors."""
    assert apart(WRONG[name]) > 1e6 * EXACT


def test_in_fp32_not_a_bit_moves():
    """Blocks and head are the module's own, and compute what it does."""
    model = tiny(**FURTHER)
    plain, ours = run(model), apply_to(copy.deepcopy(model), only=OPS[1:])
    assert same(run(ours), plain)
    head = "streams in torch.float32, of which the module's sum is not rounded to bfloat16"
    assert ran(ours) == ({"own": 7}, {"streams in torch.float32, where the operator takes torch.bfloat16", head})
    assert kinds(undo(ours)) == kinds(model)


def kinds(model):
    return [type(module) for module in model.modules()]


def on_connections(**settings):
    def change(model):
        for module in model.modules():
            if isinstance(module, layers.DeepseekV4HyperConnection):
                vars(module).update(settings)

    return change


def seen(model):
    """A hook that sees what a hyper-connection returns."""
    model.get_submodule(f"{FIRST}.attn_hc").register_forward_hook(
        lambda module, args, out: model.outputs.append([x.shape for x in out])
    )
    model.outputs = []


class Other(torch.Tensor):
    pass


def of_another_type(model):
    connection = model.get_submodule(f"{FIRST}.attn_hc")
    del connection.base
    connection.base = torch.zeros(24).as_subclass(Other)


ON_SINKHORN = {
    "a hook": (seen, 1),
    "a norm_eps that mhc_pre does not take": (on_connections(norm_eps=2.0), 8),
    "parameters of another type": (of_another_type, 8),  # what such a layer makes is of that type too
}


@pytest.mark.parametrize("name", ON_SINKHORN)
def test_what_mhc_pre_does_not_take_runs_on_sinkhorn(name):
    change, modules = ON_SINKHORN[name]
    model = tiny(BF16)
    change(model)
    ours = apply_to(model, only=["mhc_pre", "mhc_post"])
    with torch.no_grad():
        ours(IDS)
    lasts = [path.last for n, path in paths(ours).items() if n.endswith("_hc")]
    assert (lasts.count("sinkhorn"), lasts.count("mhc_pre")) == (modules, 8 - modules)
    if name == "a hook":
        (shapes,) = model.outputs
        assert shapes == [(*IDS.shape, 4), (*IDS.shape, 4), (*IDS.shape, 4, 4)]


def test_a_connection_called_alone_returns_its_weights():
    """Whoever calls it besides a block gets pre, post and comb; a block's call returns the sum that pre makes."""
    own = tiny(BF16).get_submodule(f"{FIRST}.attn_hc")
    ours = apply_to(copy.deepcopy(own), strict=True)
    with torch.no_grad():
        pre, post, comb = own(STREAMS)
        for mine, theirs in zip(ours(STREAMS), (pre, post, comb), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
        total, *weights = ours(STREAMS, lemmata_collapse=True)
    assert torch.allclose(total.float(), (pre.unsqueeze(-1) * STREAMS).sum(2), rtol=2**-7, atol=2**-7)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(weights, (post, comb), strict=True))


def test_a_connection_of_its_own_still_sums_the_streams(monkeypatch):
    """Where the module runs as it is, a block's sum is what it would have made of pre."""
    model = tiny(BF16)
    on_connections(hc_sinkhorn_iters=107)(model)
    plain, ours = run(model), apply_to(copy.deepcopy(model), only=["mhc_pre", "mhc_post"])
    monkeypatch.setattr(automodel_block, "_unfit", lambda *tensors: "as if it did not fit")
    assert same(run(ours), plain)
    own = "hc_sinkhorn_iters is 107, where the operator takes [1, 100]"
    assert ran(ours) == ({"own": 12}, {own, "as if it did not fit"})


class Sharded(CheckpointWrapper):
    """As FSDP2 makes a class of a wrapper's."""


@pytest.mark.parametrize("order", ["swap last", "swap first", "swap first, and shard"])
def test_checkpointed_connections(order):
    plain, ours = apply_to(tiny(BF16), only=OPS, strict=True), tiny(BF16)
    if order != "swap last":
        apply_to(ours, only=OPS, strict=True)
    for layer in ours.model.layers.values():
        layer.attn_hc = checkpoint_wrapper(layer.attn_hc)
        layer.attn_hc.__class__ = Sharded if order.endswith("shard") else CheckpointWrapper
    got, calls = counted(apply_to(ours, only=OPS, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(got.values(), run(plain).values(), strict=True))
    assert (calls["mhc_pre"], calls["mhc_pre_bwd"], calls["mhc_post"]) == (12, 8, 8)


def of_wide_heads(model):
    for module in model.modules():
        if isinstance(module, layers.DeepseekV4HyperHead):
            module.eps = 2.0


def of_wide_norms(model):
    for module in model.modules():
        if isinstance(module, layers.DeepseekV4HyperHead):
            module.norm_eps = 2.0


LAST = "model.layers.3"


def of_wide_results(model):
    model.get_submodule(f"{LAST}.mlp").register_forward_hook(lambda module, args, out: out.float())


def of_other_results(model):
    model.get_submodule(f"{LAST}.mlp").register_forward_hook(lambda module, args, out: out.as_subclass(Other))


REASONS = {
    "hc_eps is 2.0, where the operator takes [1e-12, 1]": (of_wide_heads, {}),
    "rms_norm_eps is 2.0, where the operator takes [1e-12, 1]": (of_wide_norms, {}),
    "a result in torch.float32, where the operator takes torch.bfloat16": (of_wide_results, {}),
    "a tensor of type Other": (of_other_results, {}),
    "hidden is 96, where the operator takes multiples of 64 in [64, 8192]": (lambda model: None, {"hidden_size": 96}),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_no_operator_takes_is_the_modules_own(reason):
    change, config = REASONS[reason]
    model = tiny(BF16, **config)
    change(model)
    ours = apply_to(model, only=["mhc_post", "mhc_head"])
    with torch.no_grad():
        ours(IDS)
    assert reason in ran(ours)[1]
    assert ran(ours)[1] <= {reason, "streams in torch.float32, where the operator takes torch.bfloat16", HEAD}


HEAD = "streams in torch.float32, of which the module's sum is not rounded to bfloat16"


def test_a_result_that_is_wider_is_mixed_as_the_module_does():
    model = tiny(BF16)
    of_wide_results(model)
    layer = model.get_submodule(LAST)
    ours, at = apply_to(copy.deepcopy(layer), only=["mhc_post"]), torch.arange(50)[None]
    how = {"position_embeddings": model.model.rotary_emb(STREAMS, at), "position_ids": at, "input_ids": IDS[:, :50]}
    how |= {"position_embeddings_compress": model.model.rotary_emb_compress(STREAMS, at)}
    how |= {"rotary_compress": model.model.rotary_emb_compress}
    with torch.no_grad():
        plain, got = layer(STREAMS, **how), ours(STREAMS, **how)
    assert (plain.dtype, got.dtype) == (torch.float32, torch.float32)
    assert float((got - plain).norm() / plain.norm()) < 2**-6
    assert ran(ours) == ({"own": 1}, {"a result in torch.float32, where the operator takes torch.bfloat16"})


PATCHES = {
    "DeepseekV4Block.forward": (blocks.DeepseekV4Block, "mhc_post", 4),
    "DeepseekV4HyperHead.forward": (layers.DeepseekV4HyperHead, "mhc_head", 1),
    "_rms_norm_last_dim": (layers, "mhc_head", 1),
}


@pytest.mark.parametrize("name", PATCHES)
def test_a_patched_function_runs_as_it_is(name, monkeypatch):
    owner, op, modules = PATCHES[name]
    model, called = tiny(BF16), []
    original = getattr(owner, name.split(".")[-1])
    monkeypatch.setattr(owner, name.split(".")[-1], lambda *args, **how: called.append(1) or original(*args, **how))
    with torch.no_grad():
        apply_to(model, only=OPS)(IDS)
    lasts, reasons = ran(model)
    assert (lasts["own"], reasons) == (modules, {f"{name} is patched"})
    assert len(called) >= modules
    assert lasts == {"own": modules, "sinkhorn": 8, "mhc_post": 4} if op == "mhc_head" and owner is layers else lasts


def test_tokens_that_are_hidden_and_images_reach_the_experts(monkeypatch):
    """A block hands its experts what the untouched one does: the padding, and a gate's context."""
    model = tiny(BF16)
    layer = model.get_submodule(FIRST)
    given = []

    class Gate(blocks.DeepseekV4VisionGate):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def set_routing_context(self, *context):
            given.append(context)

    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = Gate()

        def forward(self, x, padding_mask):
            given.append(padding_mask)
            return x

    layer.mlp = Experts()
    at, types = torch.arange(50)[None], torch.full((2, 50), -1)
    how = {"position_embeddings": model.model.rotary_emb(STREAMS, at), "position_ids": at, "input_ids": IDS[:, :50]}
    how |= {"vision_token_types": types, "padding_mask": types > 0}
    with torch.no_grad():
        layer(STREAMS, **how)
        apply_to(layer, only=["mhc_pre", "mhc_post"], strict=True)(STREAMS, **how)
    theirs, ours = given[:2], given[2:]
    assert len(ours) == 2
    assert all(a is b for a, b in zip([*theirs[0], theirs[1]], [*ours[0], ours[1]], strict=True))


def test_packed_documents_and_padding_are_no_matter():
    ours, calls = apply_to(tiny(BF16), only=OPS, strict=True), Dispatches()
    with calls, torch.no_grad():
        ours(IDS, **packed([20, 44], [32, 32]))
    assert calls.calls == {"mhc_pre": 8, "mhc_post": 8, "mhc_head": 1}
