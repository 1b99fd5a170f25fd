"""The compressors of transformers' DeepSeek-V4 on compress: against the untouched modules and fp64, with a cache too."""

import copy
import re
from functools import partial
from itertools import product
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lemmata

pytest.importorskip("transformers")

from transformers import DynamicCache

from batches import BF16, CALLS, compared, decode, gradient, prefill
from lemmata.integrations import compressor as integration
from lemmata.integrations.observe import Choices, Dispatches, Double
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, paths, undo
from lemmata.reference import compressor as reference

HIDDEN = torch.randn(2, 70, 64, generator=torch.Generator().manual_seed(7))
RESIDUAL = torch.randn(2, 70, 32, generator=torch.Generator().manual_seed(8))
PLACES = {
    "csa": ("model.layers.1.self_attn.compressor", "compressor"),
    "hca": ("model.layers.2.self_attn.compressor", "compressor"),
    "indexer": ("model.layers.1.self_attn.compressor.indexer", "indexer"),
}
CHUNKS = {"whole": (70,), "in parts": (33, 5, 32), "one by one": (57, *[1] * 13), "from one": (1,) * 70}


def model_of(dtype=BF16, **config):
    """A model whose indexer is as wide as the operator takes; norms and biases in fp32, as ``from_pretrained`` leaves them."""
    model = tiny_model(index_head_dim=64, **config).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith(("kv_norm.weight", "position_bias")) and "compressor" in name and dtype == BF16:
            parameter.data = parameter.data.float()
    return model


def ran(model, of, sizes):
    """The layer of the cache after the compressor has read chunks of these sizes, and the compressor's name in it."""
    name, of_cache = PLACES[of]
    module, cache = model.get_submodule(name), DynamicCache(config=model.config)
    layer, at = 1 if of != "hca" else 2, 0
    for size in sizes:
        given = [t[:, at : at + size].to(model.device, model.dtype) for t in (HIDDEN, RESIDUAL)]
        module(*given, torch.arange(at, at + size, device=model.device)[None], cache, layer)
        at += size
    return cache.layers[layer], of_cache


def entries(model, of, sizes=(70,)):
    layer, name = ran(model, of, sizes)
    return layer.compressed_kv[name]


def rms(tensor):
    return tensor.double().square().mean().sqrt()


@pytest.mark.parametrize("dtypes", ["all in bf16", "norm and bias in fp32"])
@pytest.mark.parametrize("sizes", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("of", PLACES)
@torch.no_grad()
def test_entries_err_no_more_than_the_untouched(of, sizes, dtypes):
    model = model_of().to(BF16) if dtypes == "all in bf16" else model_of()
    if dtypes != "all in bf16" and not norms_round_once():
        pytest.skip("this transformers multiplies a norm in fp32 with what is in bf16 under autocast alone")
    exact, ours, calls = copy.deepcopy(model).double(), apply_to(copy.deepcopy(model), strict=True), Dispatches()
    plain = entries(model, of, sizes)
    with Double():
        right = entries(exact, of, sizes)
    with calls:
        got = entries(ours, of, sizes)
    assert got.shape == plain.shape == (2, 70 // (16 if of == "hca" else 4), 64)
    assert calls.calls["compress"] > 0
    assert got.dtype == BF16
    assert rms(got - right) <= rms(plain - right)


def norms_round_once():
    """Whether the norm of this release is rounded once, after its weight."""
    from importlib.metadata import version

    from packaging.version import Version

    return Version(version("transformers")) >= Version("5.20")


@pytest.mark.parametrize("sizes", list(CHUNKS.values())[1:], ids=list(CHUNKS)[1:])
@pytest.mark.parametrize("of", PLACES)
@torch.no_grad()
def test_chunks_give_the_bits_of_the_whole_and_leave_the_modules_own_state(of, sizes):
    model, ours = model_of(), apply_to(model_of())
    layer, name = ran(ours, of, sizes)
    module = ours.get_submodule(PLACES[of][0])
    whole, reason = integration.compressed_keys(module, HIDDEN.to(BF16), None, name)
    assert reason is None
    assert torch.equal(layer.compressed_kv[name], whole)
    theirs, _ = ran(model, of, sizes)
    assert layer.entry_count == theirs.entry_count
    for kept in ("buffer_kv", "buffer_gate", "overlap_kv", "overlap_gate"):
        if hasattr(theirs, kept):
            mine, other = (getattr(each, kept)[name] for each in (layer, theirs))
            assert mine.dtype == other.dtype
            assert torch.equal(mine, other), kept


@torch.no_grad()
def test_a_cache_passes_between_the_modules_code_and_the_operator():
    """Undone after some tokens and swapped again after others, the entries are as near to those of fp64 as the untouched."""
    model, layers = model_of(), []
    exact = copy.deepcopy(model).double()
    with Double():
        right = entries(exact, "csa")
    plain, switched = entries(model, "csa"), copy.deepcopy(model)
    inner, cache, at = switched.get_submodule(PLACES["csa"][0]), DynamicCache(config=model.config), 0
    for size, change in ((13, apply_to), (20, undo), (9, apply_to), (28, undo)):
        change(switched)
        given = [t[:, at : at + size].to(BF16) for t in (HIDDEN, RESIDUAL)]
        inner(*given, torch.arange(at, at + size)[None], cache, 1)
        at += size
        layers.append(cache.layers[1].compressed_kv["compressor"])
    assert torch.equal(layers[0], entries(apply_to(model_of()), "csa")[:, :3])
    assert rms(layers[-1] - right) <= rms(plain - right)


def stepped(module, hidden):
    """The entries of a whole sequence, and the gradients of what is read and of each parameter that has one."""
    hidden = hidden.clone().requires_grad_()
    given = [p for name, p in module.named_parameters() if "indexer" not in name]
    out = module(hidden, RESIDUAL.to(hidden.dtype), torch.arange(70)[None], None, 1)[0]
    grads = torch.autograd.grad(out.double().sin().sum(), [hidden, *given])
    assert all(g.dtype == p.dtype for g, p in zip(grads, [hidden, *given], strict=True))
    return [t.detach().double() for t in (out, *grads)]


@pytest.mark.parametrize("of", ["csa", "hca"])
def test_gradients_err_no_more_than_the_untouched(of):
    plain = model_of().to(BF16).get_submodule(PLACES[of][0])
    ours, exact, calls = apply_to(copy.deepcopy(plain), strict=True), copy.deepcopy(plain).double(), Dispatches()
    theirs = stepped(plain, HIDDEN.to(BF16))
    with Double():
        right = stepped(exact, HIDDEN.to(BF16).double())
    with calls:
        got = stepped(ours, HIDDEN.to(BF16))
    assert calls.calls["compress"] == 1 + (of == "csa")  # the indexer's, which has no gradient
    assert calls.calls["compress_bwd"] == 1
    for mine, other, best in zip(got, theirs, right, strict=True):
        assert rms(mine - best) <= 1.1 * rms(other - best)


RUNS = {"prefill": prefill, "decode": decode, "gradient": gradient}


@pytest.mark.parametrize(
    ("run", "how"),
    [*product(RUNS, ["nothing said", "padded left"]), *product(["prefill", "gradient"], ["packed"])],
)
def test_a_model_whose_attention_is_untouched(run, how):
    """The bias of which entries a query sees is the module's."""
    model = model_of().to(BF16)
    ours = apply_to(copy.deepcopy(model), only=["compressor"], strict=True)
    distance, limit, calls = compared(model, partial(RUNS[run], **CALLS[how][0]), ours)
    assert distance <= limit
    assert calls["compress"] == 3 + 4 * (run == "decode")  # tokens 40 and 44 end windows of both layers of CSA


def in_fp64(*tensors, offset, past, overlap, eps):
    """The operator's reference, with the arguments of the public function, in fp64."""
    assert {t.dtype for t in tensors} == {torch.float64}
    assert overlap == (tensors[0].shape[-1] == 2 * tensors[3].shape[0])
    starts = torch.full(tensors[0].shape[:1], offset, dtype=torch.int32)
    return reference.compress(*tensors, starts, past, eps, dtype=torch.float64)[0]


def largest(scores, *, k, lengths):
    """The choice in fp64, which the operator does not take."""
    hidden = torch.arange(scores.shape[1]) >= lengths.unsqueeze(-1)
    scores = F.pad(scores.masked_fill(hidden, float("-inf")), (0, k), value=float("-inf"))
    return torch.where((best := scores.topk(k)).values == float("-inf"), -1, best.indices)


def apart(run, operator=in_fp64):
    """How far a model of which only the compressors and indexers are swapped is from the untouched one, in fp64."""
    model, choices = model_of(torch.float64), Choices()
    ours = apply_to(copy.deepcopy(model), only=["compressor", "indexer"])
    with Double(), choices.record(model):
        plain = run(model)
    fits = mock.patch.object(integration, "_unfit", return_value=None)
    operators = mock.patch.multiple(lemmata, compress=operator, topk=largest)
    with fits, operators, Double(), choices.keep(ours) as rows:
        got = run(ours)
    assert {p.last for n, p in paths(ours).items() if n.endswith("compressor")} == {"compress"}
    return max(float((got - plain).abs().max() / plain.abs().max()), float(rows["differed"]))


EXACT = 1e-11  # of the largest logit or gradient


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_in_fp64_nothing_but_rounding_is_between(run):
    assert apart(run) < EXACT


WRONG = {
    "no window before": lambda *t, past, **how: in_fp64(*t, past=past, **how | {"offset": 0}),
    "another bias": lambda kv, gate, ape, *t, **how: in_fp64(kv, gate, ape.flip(0), *t, **how),
    "turned back": lambda *t, **how: in_fp64(*t[:4], t[4] * torch.tensor([1.0, -1.0]).to(t[4]), **how),
    "positions too low": lambda *t, **how: in_fp64(*t[:4], t[4].roll(t[2].shape[0], 0), **how),
    "no norm": lambda *t, eps, **how: in_fp64(*t, eps=1.0, **how),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_operator_is_noticed(name):
    assert apart(decode if name == "no window before" else prefill, WRONG[name]) > 1e6 * EXACT


def on_norms(change):
    def alter(model):
        for name, module in model.named_modules():
            if name.endswith("compressor"):
                change(module)

    return alter


class OtherNorm(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x):
        return 2 * self.weight * x


def other_norm(module):
    module.kv_norm = OtherNorm(module.kv_norm)


def bias_in_fp64(module):
    module.position_bias.data = module.position_bias.data.double()


OTHERS = {
    "fp32": ({}, lambda model: model.float(), "values in torch.float32, where entries are rounded to bfloat16"),
    "fp16": ({}, lambda model: model.half(), "values in torch.float16, where entries are rounded to bfloat16"),
    "other widths": ({"head_dim": 192}, None, r"D is 192, where the operator takes \{64, 128, 256, 512\}"),
    "few angles": ({"partial_rotary_factor": 4 / 64}, None, r"pairs is 2, where the operator takes \{4, 8, 16, 32\}"),
    "other angles": ({}, on_norms(lambda m: setattr(m, "rope_layer_type", "main")), None),
    "a hook on the norms": (
        {},
        on_norms(lambda m: m.kv_norm.register_forward_hook(lambda *call: None)),
        "hooks on DeepseekV4RMSNorm",
    ),
    "other norms": ({}, on_norms(other_norm), "a norm of class OtherNorm"),
    "norms without eps": ({}, on_norms(lambda m: setattr(m.kv_norm, "variance_epsilon", 0.0)), "eps is 0.0, where"),
    "a bias in fp64": ({}, on_norms(bias_in_fp64), "parameters in float64, where the operator computes in float32"),
}


@pytest.mark.parametrize("run", [prefill, decode])
@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_other_compressors_compute_as_the_module(name, run):
    """Bit for bit, and by no operator."""
    config, change, reason = OTHERS[name]
    model = model_of(**config).to(BF16)
    if change is not None:
        change(model)
    ours, calls = apply_to(copy.deepcopy(model), only=["compressor"]), Dispatches()
    if reason is None:  # other angles are angles too
        distance, limit, _ = compared(model, run, ours)
        assert distance <= limit
        return
    plain = run(model)
    with calls:
        assert torch.equal(run(ours), plain)
    assert not calls.calls
    assert all(re.match(reason, path.reason) for path in paths(ours).values())


@torch.no_grad()
def test_a_patched_norm_is_the_modules_own(monkeypatch):
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

    model, calls = model_of().to(BF16), Dispatches()
    right = modeling.DeepseekV4RMSNorm.forward
    monkeypatch.setattr(modeling.DeepseekV4RMSNorm, "forward", lambda self, x: right(self, 2 * x))
    plain = prefill(model)
    with calls:
        assert torch.equal(prefill(apply_to(model, only=["compressor"])), plain)
    assert not calls.calls
    assert {p.reason for p in paths(model).values()} == {"DeepseekV4RMSNorm.forward is patched"}


def test_the_indexer_says_what_made_its_entries():
    for wide, path in ((64, "compress, indexer_topk"), (32, "indexer_topk")):
        model = apply_to(tiny_model(index_head_dim=wide).to(BF16), strict=True)
        prefill(model)
        assert {p.last for n, p in paths(model).items() if n.endswith("indexer")} == {path}
        assert {p.last for n, p in paths(model).items() if n.endswith("compressor")} == {"compress"}


@pytest.mark.parametrize("of", ["csa", "hca"])
def test_compiled_whole(of):
    """One graph, forward and backward, with the same bits."""
    module = apply_to(model_of().to(BF16).get_submodule(PLACES[of][0]), strict=True)
    expected = stepped(module, HIDDEN.to(BF16))
    torch._dynamo.reset()
    module.forward = torch.compile(module.forward, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, stepped(module, HIDDEN.to(BF16)), expected))
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("run", RUNS)
def test_a_model_on_a_gpu(run):
    """By the kernels: as near as two roundings, and the same bits twice."""
    model = model_of().to(BF16).cuda()
    ours = apply_to(copy.deepcopy(model), strict=True)
    distance, limit, calls = compared(model, RUNS[run], ours)
    assert distance <= limit
    assert calls["compress"] > 0
    assert torch.equal(RUNS[run](ours), RUNS[run](ours))


@pytest.mark.gpu
@pytest.mark.parametrize("of", PLACES)
@torch.no_grad()
def test_chunks_on_a_gpu(of):
    ours = apply_to(model_of().cuda())
    whole = entries(ours, of)
    assert whole.is_cuda
    for sizes in CHUNKS.values():
        got = entries(ours, of, sizes)
        # projections of chunks of other sizes may differ: they are the library's
        assert got.shape == whole.shape
        assert rms(got - whole) <= torch.finfo(BF16).eps * rms(whole)
    exact = model_of().double().cuda()
    with Double():
        right = entries(exact, of)
    assert rms(whole - right) <= rms(entries(model_of().to(BF16).cuda(), of) - right)
