"""What only the parts need that read the streams: before a layer, and at the head of a model."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor

import lemmata
from inputs import Call
from lemmata.bindings.tokens import TOKENS
from lemmata.reference import mhc
from lemmata.reference.sinkhorn import sinkhorn
from opspec import OpSpec
from specs_mhc import MHC_HEAD, MHC_PRE, join, on_tensor_cores

Formula = Callable[..., Any]


def call_of(tokens: int, hc: int, hidden: int, rows: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of a call: the streams, and projections of about unit variance."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hc, hidden, generator=generator).bfloat16()
    fn = torch.randn(rows, hc * hidden, generator=generator) * (hc * hidden) ** -0.5
    scale = torch.randn(3 if rows > hc else 1, generator=generator)
    return x, fn, scale, torch.randn(rows, generator=generator)


def rows_of(op: str, hc: int) -> int:
    return hc * (hc + 2) if op == "mhc_pre" else hc


def closed(forward: Formula, backward: Formula) -> Formula:
    """The reference with its closed form for a derivative."""

    class Closed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(*tensors)
            return forward(*tensors)

        @staticmethod
        def backward(ctx, *grads):  # type: ignore[no-untyped-def]
            return backward(*grads, *ctx.saved_tensors)

    return Closed.apply


@pytest.mark.parametrize("op", ["mhc_pre", "mhc_head"])
def test_gradcheck_of_the_reference(op: str) -> None:
    for hc in (2, 3):
        tensors = [t.double().requires_grad_() for t in call_of(2, hc, 5, rows_of(op, hc))]
        assert torch.autograd.gradcheck(closed(getattr(mhc, op), getattr(mhc, f"{op}_bwd")), tensors)


def test_zero_scales_give_the_coefficients_of_the_released_code(device: torch.device) -> None:
    """post of 1, comb of nearly 1/4, pre of 0.5 + eps, so that the layer's input is half the sum of the streams."""
    x, fn, scale, base = (t.to(device) for t in call_of(3, 4, 64, 24))
    y, post, comb = lemmata.mhc_pre(x, fn, torch.zeros_like(scale), torch.zeros_like(base))
    assert torch.equal(post, torch.ones_like(post))
    torch.testing.assert_close(comb, torch.full_like(comb, 0.24999976), rtol=1e-6, atol=0)
    torch.testing.assert_close(y.float(), (x.float() * 0.500001).sum(-2), rtol=2.0**-8, atol=2.0**-8)


def test_comb_is_sinkhorn_of_its_logits_by_rows(device: torch.device) -> None:
    x, fn, scale, base = (t.to(device) for t in call_of(5, 4, 64, 24))
    comb = lemmata.mhc_pre(x, torch.zeros_like(fn), scale, base)[2]
    want = sinkhorn(base[8:].view(4, 4)).expand(5, 4, 4)
    torch.testing.assert_close(comb, want, rtol=1e-6, atol=1e-7)
    assert (comb.sum(-2) - 1).abs().max() < 2e-6, "columns are normalised last"
    assert not torch.allclose(comb, want.mT, rtol=1e-3)


def test_the_length_of_streams_does_not_matter(device: torch.device) -> None:
    x, *weights = (t.to(device) for t in call_of(5, 4, 64, 24))
    _, post, comb = lemmata.mhc_pre(x, *weights, norm_eps=1e-12)
    _, longer, others = lemmata.mhc_pre(x * 8, *weights, norm_eps=1e-12)
    torch.testing.assert_close((longer, others), (post, comb), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", ["mhc_pre", "mhc_head"])
@pytest.mark.parametrize("count", [1, TOKENS - 1, TOKENS, TOKENS + 1])
def test_one_token_after_the_other_is_the_same(device: torch.device, op: str, count: int) -> None:
    x, *weights = (t.to(device) for t in call_of(count, 4, 64, rows_of(op, 4)))
    together = getattr(lemmata, op)(x, *weights)
    alone = [getattr(lemmata, op)(x[at], *weights) for at in (0, count // 2, count - 1)]
    for i, result in enumerate(together if op == "mhc_pre" else (together,)):
        for at, one in zip((0, count // 2, count - 1), alone, strict=True):
            assert torch.equal(result[at], one[i] if op == "mhc_pre" else one)


@pytest.mark.parametrize("op", ["mhc_pre", "mhc_head"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 5)])
def test_leading_shapes(device: torch.device, op: str, shape: tuple[int, ...]) -> None:
    x, *weights = (t.to(device) for t in call_of(int(torch.tensor(shape).prod()), 4, 64, rows_of(op, 4)))
    out = getattr(lemmata, op)(x.view(*shape, 4, 64), *weights)
    flat = getattr(lemmata, op)(x, *weights)
    for a, b in zip(out, flat, strict=True) if op == "mhc_pre" else [(out, flat)]:
        assert a.shape == (*shape, *b.shape[1:])
        assert torch.equal(a.reshape(b.shape), b)


CONFIG = SimpleNamespace(hc_mult=4, hidden_size=64, hc_sinkhorn_iters=20, hc_eps=1e-6, rms_norm_eps=1e-6)


@pytest.mark.parametrize("op", ["mhc_pre", "mhc_head"])
def test_the_released_modules_compute_the_same(op: str) -> None:
    """Those of transformers, on streams in bf16, and their gradients, which they round more often."""
    modeling = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    x, *weights = call_of(6, 4, 64, rows_of(op, 4))
    module = (modeling.DeepseekV4HyperConnection if op == "mhc_pre" else modeling.DeepseekV4HyperHead)(CONFIG)
    names = ("fn", "scale", "base") if op == "mhc_pre" else ("hc_fn", "hc_scale", "hc_base")
    for name, weight in zip(names, weights, strict=True):
        setattr(module, name, torch.nn.Parameter(weight.clone()))
    streams = x.clone().unsqueeze(0).requires_grad_()
    theirs = module(streams)
    theirs = (theirs[2], theirs[0], theirs[1]) if op == "mhc_pre" else (theirs,)
    leaves = [t.requires_grad_() for t in (x, *weights)]
    ours = getattr(lemmata, op)(*leaves)
    ours = ours if op == "mhc_pre" else (ours,)
    for got, want in zip(ours, theirs, strict=True):
        near = (2.0**-8, 2.0**-8) if got.dtype == torch.bfloat16 else (1e-6, 1e-6)
        torch.testing.assert_close(got, want.squeeze(0), rtol=near[0], atol=near[1])
        assert not torch.allclose(got.float() * 1.02, want.squeeze(0).float(), rtol=near[0], atol=near[1])
    of_theirs = [streams, *(getattr(module, name) for name in names)]
    wanted = torch.autograd.grad(sum(t.float().square().sum() for t in theirs), of_theirs)
    found = torch.autograd.grad(sum(t.float().square().sum() for t in ours), leaves)
    for got, want in zip(found, wanted, strict=True):
        assert (got - want.reshape(got.shape)).norm() <= 2.0**-6 * want.norm()


def test_nan_stays_in_its_token(device: torch.device) -> None:
    x, *weights = (t.to(device) for t in call_of(3, 4, 64, 24))
    clean = lemmata.mhc_pre(x, *weights)
    x = x.clone()
    x[1, 2, 7] = torch.nan
    for spoiled, result in zip(lemmata.mhc_pre(x, *weights), clean, strict=True):
        assert spoiled[1].isnan().all()
        assert torch.equal(spoiled[[0, 2]], result[[0, 2]])


class Launchers(NamedTuple):
    """The modules of the launchers."""

    forward: Any
    backward: Any


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launchers]:
    """The launchers as on a GPU, with every kernel interpreted."""
    run: Any = pytest.importorskip("lemmata.proofs.engine.interpreter.interpret").interpret
    build: Any = importlib.import_module("lemmata.kernels.build")
    modules = {name: importlib.import_module(f"lemmata.kernels.{name}") for name in (*LAUNCHERS, "sinkhorn")}
    build.forget()
    for module in modules.values():
        monkeypatch.setattr(module, "build", lambda factory, cfg: functools.partial(run, factory(cfg)))
    yield Launchers(*(modules[name] for name in LAUNCHERS))
    build.forget()


LAUNCHERS = "mhc_pre", "mhc_pre_backward"
EVERY = [
    pytest.param(spec, at, id=f"{spec} {at}") for spec in (MHC_PRE, MHC_HEAD) for at in range(len(spec.configurations))
]


@pytest.mark.parametrize(("spec", "at"), EVERY)
@pytest.mark.parametrize("tiles", [1, 2])
def test_the_forward_as_on_a_gpu(spec: OpSpec, at: int, tiles: int, interpreted: Launchers) -> None:
    """Both kernels, as exact as the reference in fp32; of a few tokens, and of a tile and more where Sinkhorn is short."""
    long = spec.configurations[at].get("iterations", 1) > 5
    call = spec.sample(2 * tiles - 1 if tiles == 1 or long else 70, at=at, seed=3)
    launch = interpreted.forward.forward if spec is MHC_PRE else interpreted.forward.head
    found = launch(*call.tensors, **call.statics)
    out = join(found) if spec is MHC_PRE else found
    assert spec.error(call, out) <= spec.tolerance_of(call)
    assert spec.error(call, out * 1.02) > spec.tolerance_of(call), "a wrong scale would pass"


CHUNKED = [pytest.param(spec, 1, 4, id=f"{spec} in 4 chunks") for spec in (MHC_PRE, MHC_HEAD)]


@pytest.mark.parametrize(
    ("spec", "at", "chunks"), [*(pytest.param(*each.values, 1, id=each.id) for each in EVERY), *CHUNKED]
)
def test_the_backward_as_on_a_gpu(
    spec: OpSpec, at: int, chunks: int, interpreted: Launchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All kernels, as exact as the reference in fp32, of one chunk, and of more than there are tiles."""
    monkeypatch.setattr(interpreted.backward, "CHUNKS", {chunks: 0})
    call = spec.sample(5 if chunks == 1 else 150, at=at, seed=3)
    tolerance = spec.tolerance("cpu", at)[1]
    grads = gradients(interpreted, spec, call, *(results := normal_results(spec, call)))
    assert spec.error_bwd(call, joined(results), list(grads)) <= tolerance
    for which in range(len(grads)):
        wrong = [grad * (1.05 if at == which else 1) for at, grad in enumerate(grads)]
        assert spec.error_bwd(call, joined(results), wrong) > tolerance, f"a wrong scale of gradient {which} would pass"


def normal_results(spec: OpSpec, call: Call) -> tuple[Tensor, ...]:
    """Gradients of all results of a call, at random."""
    generator = torch.Generator().manual_seed(5)
    found = getattr(mhc, spec.name)(*call.tensors, **call.statics)
    return tuple(
        torch.randn(t.shape, generator=generator).to(t.dtype) for t in (found if isinstance(found, tuple) else (found,))
    )


def joined(results: tuple[Tensor, ...]) -> Tensor:
    """Results as the record of the operator has them."""
    return join(results) if len(results) == 3 else results[0]


def gradients(kernels: Launchers, spec: OpSpec, call: Call, *results: Tensor) -> tuple[Tensor, ...]:
    """What the launcher of a backward returns."""
    run = kernels.backward.backward if spec is MHC_PRE else kernels.backward.head_backward
    return run(*results, *call.tensors, **call.statics)  # type: ignore[no-any-return]


def test_chunks_of_tokens() -> None:
    """More of them the more tiles there are, at least 8 to each, and as many as are proved and built beforehand."""
    pytest.importorskip("tilelang")
    backward: Any = importlib.import_module("lemmata.kernels.mhc_pre_backward")
    found = {
        tokens: backward.chunks_of(tokens) for tokens in (1, 64, 31 * 64, 31 * 64 + 1, 255 * 64, 255 * 64 + 1, 2**24)
    }
    assert found == {1: 1, 64: 1, 31 * 64: 1, 31 * 64 + 1: 4, 255 * 64: 4, 255 * 64 + 1: 16, 2**24: 16}


def test_the_projection_runs_on_tensor_cores() -> None:
    resources = pytest.importorskip("lemmata.bench.resources")
    kernels: Any = importlib.import_module("lemmata.kernels.mhc_project")
    from lemmata.kernels.build import PASS_CONFIGS

    for kernel in (kernels.mhc_project, kernels.mhc_multiply):
        text = resources.cuda_source(kernel(kernels.Config()), PASS_CONFIGS)
        found = resources.tile_operations(text)
        assert {name for name in found if "mma" in name} == {"wgmma_ss kBFloat16"}
        assert ", 64, 32, 16, false" in text, "all coefficients in one product"


def test_parts_made_once_give_the_same_sums() -> None:
    """The interpreter runs both ways on two blocks of tokens; other parts would give others."""
    run: Any = pytest.importorskip("lemmata.proofs.engine.interpreter.interpret").interpret
    kernels: Any = importlib.import_module("lemmata.kernels.mhc_project")
    cfg = kernels.Config(2, 192)
    x, fn, *_ = call_of(70, 2, 192, 8)
    parts = torch.empty(kernels.PARTS, cfg.padded, cfg.columns, dtype=torch.bfloat16)
    ours, theirs, wrong = ((torch.empty(70, cfg.splits, cfg.rows), torch.empty(70, cfg.splits)) for _ in range(3))
    run(kernels.mhc_project(cfg), x, fn, *ours)
    run(kernels.mhc_split(cfg), fn, parts)
    run(kernels.mhc_multiply(cfg), x, parts, *theirs)
    assert all(map(torch.equal, ours, theirs))
    run(kernels.mhc_multiply(cfg), x, parts.roll(1, 1), *wrong)
    assert not torch.equal(ours[0], wrong[0])
    assert torch.equal(ours[1], wrong[1])


@pytest.mark.gpu
@pytest.mark.parametrize("hidden", [192, 4096])
def test_few_tokens_and_many_have_the_same_bits(hidden: int) -> None:
    many: int = importlib.import_module("lemmata.kernels.mhc_project").MANY
    x, *weights = (t.cuda() for t in call_of(many + 70, 4, hidden, 24))
    of_head = weights[0][:4], weights[1][:1], weights[2][:4]
    op: Callable[..., Any]
    for op, given in ((lemmata.mhc_pre, weights), (lemmata.mhc_head, of_head)):
        whole, few = op(x, *given), op(x[: many - 1], *given)
        pairs = zip(whole, few, strict=True) if isinstance(whole, tuple) else [(whole, few)]
        for ours, theirs in pairs:
            assert torch.equal(ours[: many - 1], theirs)
            assert not torch.equal(ours[1:many], theirs), "another token's"


def test_no_tokens_launch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tilelang")
    kernels, backward = (importlib.import_module(f"lemmata.kernels.{name}") for name in LAUNCHERS)
    for module in (kernels, backward):
        monkeypatch.setattr(module, "build", lambda *_: pytest.fail("a kernel for no tokens"))
    x, *weights = call_of(0, 4, 64, 24)
    results = kernels.forward(x, *weights, 20, 1e-6, 1e-6)
    assert [t.shape for t in results] == [(0, 64), (0, 4), (0, 4, 4)]
    of_head = x, weights[0][:4], weights[1][:1], weights[2][:4]
    y = kernels.head(*of_head, 1e-6, 1e-6)
    assert y.shape == (0, 64)
    for grads, inputs in (
        (backward.backward(*results, x, *weights, 20, 1e-6, 1e-6), (x, *weights)),
        (backward.head_backward(y, *of_head, 1e-6, 1e-6), of_head),
    ):
        assert [grad.shape for grad in grads] == [t.shape for t in inputs]
        assert not any(grad.any() for grad in grads)


@pytest.mark.gpu
def test_the_interpreter_agrees_with_the_compiled_kernels() -> None:
    """What the proofs take the projection to mean is what the compiled one does, to the rounding of tensor cores."""
    run: Any = pytest.importorskip("lemmata.proofs.engine.interpreter.interpret").interpret
    kernels: Any = importlib.import_module("lemmata.kernels.mhc_project")
    from lemmata.kernels.build import build

    cfg = kernels.Config(hidden=192)
    x, fn, *_ = call_of(70, 4, 192, 24)
    sums = torch.empty(70, cfg.splits, cfg.rows), torch.empty(70, cfg.splits)
    run(kernels.mhc_project(cfg), x, fn, *sums)
    on_gpu = [t.cuda() for t in (x, fn, *map(torch.empty_like, sums))]
    build(kernels.mhc_project, cfg)(*on_gpu)
    for ours, theirs in zip(sums, on_gpu[2:], strict=True):
        assert (ours - theirs.cpu()).abs().max() <= 2.0**-18 * ours.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 300, 31 * 64 + 1, 255 * 64 + 1])
def test_gradients_on_a_gpu_in_chunks(tokens: int) -> None:
    """However many chunks the tokens make: as exact as the reference with tensor cores, and the same at the next call."""
    x, *weights = call_of(tokens, 4, 192, 24)
    generator = torch.Generator().manual_seed(tokens)
    grads = tuple(torch.randn(t.shape, generator=generator).type_as(t) for t in mhc.mhc_pre(x, *weights))
    on_gpu = [t.cuda() for t in (*grads, x, *weights)]
    op = torch.ops.lemmata.mhc_pre_bwd.default
    found, again = op(*on_gpu, 20, 1e-6, 1e-6), op(*on_gpu, 20, 1e-6, 1e-6)
    wide = [t.double() for t in on_gpu]
    wanted = mhc.mhc_pre_bwd(*wide)
    plain = on_tensor_cores(mhc.mhc_pre_bwd)(*on_gpu)
    for got, same, want, other, size in zip(found, again, wanted, plain, sizes(wide, wanted), strict=True):
        assert torch.equal(got, same)
        assert (got - want).norm() <= 2 * (other - want).norm() + 2.0**-20 * size


def sizes(inputs: list[Tensor], grads: tuple[Tensor, ...]) -> list[Tensor]:
    """The norm of each gradient; of scale and base, whose terms may cancel, that of the sums of the terms' magnitudes."""
    summed: Formula = vars(mhc)["_summed"]
    with mock.patch.object(mhc, "_summed", lambda t: summed(t.abs())):
        of_magnitudes = mhc.mhc_pre_bwd(*inputs)[2:]
    return [t.norm() for t in (*grads[:2], *of_magnitudes)]


def test_terms_that_cancel_count_by_their_magnitudes() -> None:
    x, *weights = (t.double() for t in call_of(2, 4, 64, 24))
    x, grads = torch.cat([x, x]), [torch.randn_like(t) for t in mhc.mhc_pre(x, *weights)]
    wide = [*(torch.cat([t, -t]) for t in grads), x, *weights]
    found = mhc.mhc_pre_bwd(*wide)
    assert max(t.abs().max() for t in found[2:]) < 1e-12
    assert min(sizes(wide, found)[2:]) > 1e-3


def test_the_parts_make_a_block(device: torch.device) -> None:
    """A layer between them that adds nothing leaves mixed streams; the gradient reaches every weight."""
    x, *weights = (t.to(device).requires_grad_() for t in call_of(7, 4, 64, 24))
    y, post, comb = lemmata.mhc_pre(x, *weights)
    out = lemmata.mhc_post(x, torch.zeros_like(y), post, comb)
    want = torch.einsum("nio,nih->noh", comb, x.float())
    torch.testing.assert_close(out.float(), want, rtol=2.0**-8, atol=2.0**-8)
    out = lemmata.mhc_post(x, y, post, comb)
    grads = torch.autograd.grad(out.float().square().sum(), (x, *weights))
    assert all(grad.isfinite().all() and grad.any() for grad in grads)
