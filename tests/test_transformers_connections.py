"""Hyper-connections of transformers' DeepSeek-V4 on mhc_pre, mhc_post and mhc_head: against the untouched modules and fp64."""

import copy
import re
from functools import partial
from unittest import mock

import pytest
import torch
from torch import nn

import lemmata

pytest.importorskip("transformers")

from batches import BF16, CALLS, compared, decode, gradient, prefill
from lemmata.integrations import hyper_connection as integration
from lemmata.integrations.observe import Choices, Dispatches, Double
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, paths, swapped, undo
from lemmata.reference import mhc

OPS = "mhc_pre", "mhc_post", "mhc_head"
STREAMS = torch.randn(2, 50, 4, 64, generator=torch.Generator().manual_seed(5))
WEIGHTS = torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(6))
LAYERS = ["sliding_attention", "compressed_sparse_attention"]
PARTS = {"mhc_pre": "model.layers.1.ffn_hc", "mhc_head": "model.hc_head"}


def loaded(**config):
    """A model in bf16 whose hyper-connections are in fp32, as ``from_pretrained`` leaves them."""
    model = tiny_model(**config).to(BF16)
    for name, module in model.named_modules():
        if name.endswith(("_hc", "hc_head")):
            module.float()
    return model


def stepped(module, streams):
    """All results of a module, and the gradients of its streams and parameters."""
    streams = streams.clone().requires_grad_()
    out = module(streams)
    results = out if isinstance(out, tuple) else (out,)
    loss = sum((r.double().flatten(2) * WEIGHTS[..., :1].to(r.device).double()).sin().sum() for r in results)
    grads = torch.autograd.grad(loss, [streams, *module.parameters()])
    assert all(g.dtype == p.dtype for g, p in zip(grads, [streams, *module.parameters()], strict=True))
    return [t.detach().double() for t in (*results, *grads)]


def rms(tensor):
    return tensor.square().mean().sqrt()


@pytest.mark.parametrize("dtype", [BF16, torch.float32], ids=["all in bf16", "parameters in fp32"])
@pytest.mark.parametrize("op", PARTS)
def test_a_module_alone_errs_no_more_than_the_untouched(op, dtype):
    """Results, and gradients of streams and of each parameter: near the untouched module's own error against fp64."""
    plain = tiny_model().get_submodule(PARTS[op]).to(dtype)
    ours, exact, calls = apply_to(copy.deepcopy(plain), strict=True), copy.deepcopy(plain).double(), Dispatches()
    theirs = stepped(plain, STREAMS.to(BF16))
    with Double():
        right = stepped(exact, STREAMS.to(BF16).double())
    with calls:
        got = stepped(ours, STREAMS.to(BF16))
    assert calls.calls == {op: 1, f"{op}_bwd": 1}
    for mine, other, best in zip(got, theirs, right, strict=True):
        assert rms(mine - best) <= 1.5 * rms(other - best) + 2e-6 * rms(best)


RUNS = {"prefill": prefill, "decode": decode, "gradient": gradient}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("op", [*OPS, "all"])
def test_a_model_is_as_near_as_two_roundings(op, run):
    model = loaded()
    ops = OPS if op == "all" else [op]
    ours = apply_to(copy.deepcopy(model), only=ops, strict=True)
    distance, limit, calls = compared(model, partial(RUNS[run], **CALLS["padded left"][0]), ours)
    assert distance <= limit
    forwards = 7 if run == "decode" else 1
    each = {"mhc_pre": 8, "mhc_post": 8, "mhc_head": 1}
    assert {op: calls[op] for op in ops} == {op: each[op] * forwards for op in ops}


def in_fp64(op):
    """The operator's reference, with the arguments of the public function."""
    reference = getattr(mhc, op)

    def run(*tensors, **how):
        assert {t.dtype for t in tensors} == {torch.float64}
        return reference(*tensors, **how)

    return run


def apart(run, wrong=None):
    """How far the swapped model is from the untouched one in fp64, of the largest number."""
    model, choices = tiny_model().double(), Choices()
    ours = apply_to(copy.deepcopy(model), only=OPS)
    operators = {op: in_fp64(op) for op in OPS} | (wrong or {})
    with Double(), choices.record(model):
        plain = run(model)
    admitted = mock.patch.object(integration, "_fallback", return_value=None)
    wide = mock.patch.multiple(integration, _BF16=torch.float64, _unfit=lambda *tensors: None)
    with wide, admitted, mock.patch.multiple(lemmata, **operators), Double(), choices.keep(ours):
        got = run(ours)
    assert {path.last for path in paths(ours).values()} == set(OPS)
    return float((got - plain).abs().max() / plain.abs().max())


EXACT = 1e-11  # of the largest logit or gradient


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_in_fp64_nothing_but_rounding_is_between(run):
    assert apart(run) < EXACT


def with_changed(op, change):
    return {op: partial(change, in_fp64(op))}


def transposed(f, x, y, post, comb):
    return f(x, y, post, comb.mT)


WRONG = {
    "mixed the other way round": with_changed("mhc_post", transposed),
    "half of the result": with_changed("mhc_post", lambda f, x, y, post, comb: f(x, y, post / 2, comb)),
    "an iteration fewer": with_changed("mhc_pre", lambda f, *t, iterations, **how: f(*t, iterations=1, **how)),
    "another eps": with_changed("mhc_pre", lambda f, *t, eps, **how: f(*t, eps=1e-3, **how)),
    "no norm": with_changed("mhc_head", lambda f, *t, norm_eps, **how: f(*t, norm_eps=1.0, **how)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_operator_is_noticed(name):
    assert apart(prefill, WRONG[name]) > 1e6 * EXACT


def on_norms(change):
    def alter(model):
        for module in model.modules():
            if hasattr(module, "input_norm"):
                change(module)

    return alter


def another_norm(module):
    module.input_norm = nn.Softsign()


def no_eps(module):
    module.input_norm.eps = 0.0


def head_in_fp64(model):
    model.model.hc_head.hc_base.data = model.model.hc_head.hc_base.data.double()


def a_hook(module):
    module.input_norm.register_forward_hook(lambda *call: None)


OTHERS = {
    "fp32": ({}, lambda model: model.float(), "streams in torch.float32", set(OPS)),
    "fp16": ({}, lambda model: model.half(), "streams in torch.float16", set(OPS)),
    "nine streams": ({"hc_mult": 9}, None, "hc(_mult)? is 9, where the operator takes", set(OPS)),
    "one stream": ({"hc_mult": 1}, None, "hc(_mult)? is 1, where the operator takes", set(OPS)),
    "another width": ({"hidden_size": 96}, None, "hidden is 96, where the operator takes multiples of 64", set(OPS)),
    "a hook on the norms": ({}, on_norms(a_hook), "hooks on DeepseekV4UnweightedRMSNorm", {"mhc_pre", "mhc_head"}),
    "other norms": ({}, on_norms(another_norm), "a norm of class Softsign", {"mhc_pre", "mhc_head"}),
    "norms without eps": ({}, on_norms(no_eps), "norm_eps is 0.0, where the operator", {"mhc_pre", "mhc_head"}),
    "no eps": ({"hc_eps": 0.0}, None, "hc_eps is 0.0, where the operator takes", {"mhc_pre", "mhc_head"}),
    "a head in fp64": ({}, head_in_fp64, "parameters in float64, where the operator", {"mhc_head"}),
}


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_other_modules_run_their_own_code(name):
    """A layer and the head bit for bit; a hyper-connection has sinkhorn left, as before, where that takes its sizes."""
    config, change, reason, of = OTHERS[name]
    model = loaded(**config)
    if change is not None:
        change(model)
    plain, calls = prefill(model), Dispatches()
    ours = apply_to(copy.deepcopy(model), only=sorted(of - {"mhc_pre"}))
    with calls:
        assert torch.equal(prefill(ours), plain)
    assert not calls.calls
    said = {path.reason for path in paths(ours).values()}
    assert len(said) == 1
    assert re.match(reason, said.pop())
    if "mhc_pre" in of:
        distance, limit, calls = compared(model, prefill, apply_to(copy.deepcopy(model), only=["mhc_pre"]))
        assert distance <= limit
        assert calls == ({} if {"hc_mult", "hc_eps"} & config.keys() else {"sinkhorn": 8})


@torch.no_grad()
def test_a_result_in_another_dtype_is_mixed_by_the_layer_itself():
    model, last = loaded(), []
    model.model.layers[-1].mlp.register_forward_hook(lambda module, args, out: out.float())
    model.model.hc_head.register_forward_pre_hook(lambda module, args: last.append(args[0]) or args[0].to(BF16))
    prefill(apply_to(model, only=["mhc_post"]))
    found = paths(model)["model.layers.3"]
    assert (found.last, last[0].dtype) == ("own", torch.float32)
    assert found.reason == "a result of type Tensor in torch.float32, where the operator takes bfloat16"
    assert paths(model)["model.layers.2"].last == "mhc_post"
    x, post, comb = STREAMS.to(BF16), STREAMS[..., 0], STREAMS[..., 1:5]
    own = post.to(BF16).unsqueeze(-1) * WEIGHTS.unsqueeze(-2) + torch.matmul(comb.to(BF16).transpose(-1, -2), x)
    assert torch.equal(integration._mixed(x, WEIGHTS, post, comb)[0], own)


def test_layers_keep_the_name_by_which_others_find_them():
    model = tiny_model()
    before = type(model.model.layers[0])
    apply_to(model)
    after = type(model.model.layers[0])
    assert before is not after
    assert before.__name__ == after.__name__ in model._no_split_modules
    other_libraries = pytest.importorskip("accelerate.utils.dataclasses")
    assert other_libraries.get_module_class_from_name(model, before.__name__) is after
    assert type(undo(model).model.layers[0]) is before
    assert not swapped(model)


def test_a_layer_with_another_forward_stays():
    """The wrapper that transformers puts around a layer's forward is no forward of one's own; what it wraps may be."""
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

    class Same(modeling.DeepseekV4DecoderLayer):
        pass

    class Mine(modeling.DeepseekV4DecoderLayer):
        def forward(self, *args, **kwargs):
            return modeling.DeepseekV4DecoderLayer.forward(self, *args, **kwargs)

    model = loaded()
    plain = prefill(model)
    model.model.layers[1].__class__, model.model.layers[2].__class__ = Same, Mine
    apply_to(model, only=["mhc_post"])
    assert swapped(model) == {"mhc_post": tuple(f"model.layers.{n}" for n in (0, 1, 3))}
    prefill(model)
    assert {path.last for path in paths(model).values()} == {"mhc_post"}
    undo(model)
    assert [type(model.model.layers[n]) for n in (1, 2)] == [Same, Mine]
    assert torch.equal(prefill(model), plain)


@pytest.mark.parametrize("op", PARTS)
def test_compiled_whole(op):
    """One graph, forward and backward, with the same bits."""
    module = apply_to(loaded().get_submodule(PARTS[op]), strict=True)
    expected = stepped(module, STREAMS.to(BF16))
    torch._dynamo.reset()
    module.forward = torch.compile(module.forward, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, stepped(module, STREAMS.to(BF16)), expected))
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("op", [*OPS, "all"])
def test_a_model_on_a_gpu(op, run):
    """By the kernels: as near as two roundings, and the same bits twice."""
    model, ops = loaded().cuda(), OPS if op == "all" else [op]
    ours = apply_to(copy.deepcopy(model), only=ops, strict=True)
    distance, limit, calls = compared(model, RUNS[run], ours)
    assert distance <= limit
    assert all(calls[op] > 0 for op in ops)
    assert torch.equal(RUNS[run](ours), RUNS[run](ours))


@pytest.mark.gpu
@pytest.mark.parametrize("op", PARTS)
def test_a_module_on_a_gpu_at_the_true_width(op):
    """4 streams of 4096: results, and gradients of streams and parameters, near the untouched module's own error."""
    streams = torch.randn(2, 50, 4, 4096, generator=torch.Generator().manual_seed(5)).cuda()
    plain = tiny_model(hidden_size=4096, num_hidden_layers=2, layer_types=LAYERS, mlp_layer_types=["moe"] * 2)
    plain = plain.get_submodule(PARTS[op]).cuda()
    ours, exact = apply_to(copy.deepcopy(plain), strict=True), copy.deepcopy(plain).double()
    theirs = stepped(plain, streams.to(BF16))
    with Double():
        right = stepped(exact, streams.to(BF16).double())
    for mine, other, best in zip(stepped(ours, streams.to(BF16)), theirs, right, strict=True):
        assert rms(mine - best) <= 1.5 * rms(other - best) + 2e-6 * rms(best)
