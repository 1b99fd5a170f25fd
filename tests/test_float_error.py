"""L3: the counts of roundings, their rules, and floats beside them: no error is above its bound, and the bound is not idle."""

# No `from __future__ import annotations`: TileLang could not resolve the sizes that only annotations name.
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
import tilelang.language as T
import torch
from torch import Tensor

import lemmata
from errors import interpreted
from lemmata.kernels import combine
from lemmata.kernels import sinkhorn as sinkhorn_kernels
from lemmata.kernels.csa import csa_fwd
from lemmata.kernels.hca import hca_fwd
from lemmata.kernels.sparse_attention_config import Config
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.interpreter.rounding import count_roundings
from lemmata.proofs.engine.interpreter.rounding_rules import BF16, ULPS, Assumed, gamma, roundings
from lemmata.proofs.float_error import attention, sinkhorn
from lemmata.reference.sinkhorn import sinkhorn as sinkhorn_reference

SPREAD = 16  # of the logits in a row
SMALL = Config(H=8, D=64, window=64, scale=0.125, ratio=1)
BITS = 16  # the bound of the scores


def test_constants() -> None:
    u = Fraction(1, 2**24)
    for relative in (u, Fraction(1, 2**20), Fraction(1, 2**13)):
        assert (1 - u) ** roundings(relative) <= 1 - relative < (1 - u) ** (roundings(relative) - 2)
    for count in (1, 7, 4206):
        assert (1 - u) ** -count - 1 <= gamma(count)
    for ulps in ULPS.values():
        assert (1 - u) ** (2 * ulps + 1) <= 1 - 2 * ulps * u
    assert 2**16 < BF16 < 2**16 + 2**8


def sinkhorn_in_floats(logits: Tensor) -> Tensor:
    if logits.is_cuda:
        return lemmata.sinkhorn(logits)
    with interpreted():
        return sinkhorn_kernels.forward(logits, iterations=20, eps=1e-6)


@pytest.mark.parametrize("spread", [1, SPREAD])
def test_sinkhorn_in_floats(device: torch.device, spread: int) -> None:
    torch.manual_seed(0)
    logits = (torch.rand(40, 4, 4, device=device) - 0.5) * spread
    right = sinkhorn_reference(logits.double(), iterations=20, eps=1e-6)
    error = float(((sinkhorn_in_floats(logits) - right).abs() / right).max())
    bound = float(gamma(sinkhorn(sinkhorn_kernels.sinkhorn_fwd(sinkhorn_kernels.Config()), 4, largest=spread)))
    assert bound / 1000 < error <= bound


def hca_in_floats(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    if tensors[0].is_cuda:
        return lemmata.hca(*tensors[:4], ratio=SMALL.ratio, offset=tensors[4], window=SMALL.window, scale=SMALL.scale)
    with interpreted():
        return combine.launch(combine.plan(hca_fwd, SMALL), tensors, tensors[3])  # type: ignore[no-any-return]


def over_the_reals(q: Tensor, window_kv: Tensor, compressed_kv: Tensor, sink: Tensor) -> tuple[Tensor, ...]:
    """Return out, the weighted sums of the keys' sizes, lse and the largest score in bits, a sum of sizes, all in fp64."""
    rows = [torch.cat([window_kv[0, t : t + SMALL.window], compressed_kv[0]]) for t in range(q.shape[1])]
    q, keys, sink = q[0].double(), torch.stack(rows).double(), sink.double()
    z = torch.einsum("shd,snd->shn", q, keys) * SMALL.scale
    p = z.exp() / (z.exp().sum(-1, keepdim=True) + sink.exp().unsqueeze(-1))
    out, sizes = (torch.einsum("shn,snd->shd", p, k) for k in (keys, keys.abs()))
    scores = torch.einsum("shd,snd->shn", q.abs(), keys.abs()) * SMALL.scale
    return out, sizes, z.logsumexp(-1), torch.cat([scores.flatten(), sink.abs()]).max() * math.log2(math.e)


@cache
def counts_of_attention() -> Mapping[str, int]:
    return attention(hca_fwd(SMALL), SMALL, tiles=2, largest=BITS)


def test_attention_in_floats(device: torch.device) -> None:
    torch.manual_seed(0)
    q = torch.randn(1, 9, SMALL.H, SMALL.D, device=device).bfloat16() / 4
    window_kv, compressed_kv = (torch.randn(1, n, SMALL.D, device=device).bfloat16() for n in (SMALL.window + 8, 128))
    sink = torch.randn(SMALL.H, device=device)
    offset = torch.tensor([SMALL.window + 127], dtype=torch.int32, device=device)
    right, sizes, lse, largest = over_the_reals(q, window_kv, compressed_kv, sink)
    assert largest < BITS, "else the bound says nothing"
    out, lse_in_floats = hca_in_floats(q, window_kv, compressed_kv, sink, offset)
    counts = counts_of_attention()
    error, bound = (out[0].double() - right).abs(), float(gamma(counts["out"])) * sizes
    assert (error <= bound).all()
    assert (error > bound / 20).any()
    assert float((lse_in_floats[0].double() - lse).abs().max()) <= float(gamma(counts["stats"]))


@pytest.mark.parametrize(("spread", "most"), [(1, 1.2e-4), (SPREAD, 2.6e-4)])
def test_what_the_page_says_of_sinkhorn(spread: int, most: float) -> None:
    count = sinkhorn(sinkhorn_kernels.sinkhorn_fwd(sinkhorn_kernels.Config()), 4, largest=spread)
    assert 0.9 * most < gamma(count) < most


@pytest.mark.exhaustive
def test_what_the_page_says_of_attention() -> None:
    cfg = Config(H=8, ratio=1)
    one, two = (attention(hca_fwd(cfg), cfg, tiles=n, largest=BITS)["out"] for n in (2, 3))
    assert 1.65e-5 < gamma(two - one) < 1.75e-5
    assert 1.05e-2 < gamma(one + 3 * (two - one)) < 1.2e-2


@pytest.mark.exhaustive
@pytest.mark.parametrize("factory", [csa_fwd, hca_fwd])
def test_each_tile_adds_the_same(factory: Callable[[Config], Any]) -> None:
    one, two, three = (attention(factory(SMALL), SMALL, tiles=n, largest=BITS) for n in (2, 3, 4))
    assert one.keys() == {"out", "stats"}
    for name in one:
        assert 0 < three[name] - two[name] == two[name] - one[name] < 2**12


def copied(via: str, operation: Callable[[Any], Any]) -> Any:
    """Return a kernel that rounds to a type, and applies an operation."""

    @T.prim_func
    def kernel(x: T.Tensor((32,), "float32"), y: T.Tensor((32,), "float32")):
        with T.Kernel(1, threads=32):
            for i in T.Parallel(32):
                y[i] = T.cast(T.cast(operation(x[i]), via), "float32")

    return kernel


RULES = {
    "exp": (lambda x: T.exp(x), 3, "positive"),
    "a product": (lambda x: T.exp(x) * T.exp(x), 7, "positive"),
    "a sum": (lambda x: T.exp(x) + T.exp(x), 4, "positive"),
    "a quotient": (lambda x: T.float32(1) / T.exp(x), 4, "positive"),
    "a constant": (lambda x: T.exp(x) * T.float32(0.1), 5, "positive"),
    "a difference of scores": (lambda x: T.exp(x - x), 16 + 3, "positive"),
    "a score that is scaled": (lambda x: T.exp2(x * T.float32(2)), 16 + 5, "positive"),
    "a scaled gap": (lambda x: T.exp((x - x) * T.float32(0.1)), 3 * 16 + 3, "positive"),
    "a choice by a gap": (
        lambda x: T.if_then_else((x - x) * T.float32(2) > T.float32(8), T.exp(x) * T.exp(x), T.exp(x)),
        7,
        "positive",
    ),
    "a logarithm": (lambda x: T.log(T.exp(x)), 3 + 3 * 16, "score"),
}
NO_RULE = {
    "a difference of exponentials": lambda x: T.exp(x) - T.exp(x),
    "an exponential of an exponential": lambda x: T.exp(T.exp(x)),
    "a scaled error": lambda x: T.exp((T.log(T.exp(x)) - x) * T.float32(2)),
    "a comparison of a score that has an error": lambda x: T.if_then_else(T.log(T.exp(x)) > T.float32(8), x, x),
    "a choice of exponentials by their size": lambda x: T.if_then_else(T.exp(x) > T.float32(8), x, x),
    "a choice between a score and an exponential": lambda x: T.if_then_else(x - x > T.float32(8), x, T.exp(x)),
    "a quotient by a score": lambda x: T.exp(x) / x,
    "a square root": lambda x: T.sqrt(x),
}


def counted(kernel: Any) -> tuple[int, str]:
    return count_roundings(kernel, {"x": torch.zeros(32)}, scores={"x"}, assumed=Assumed(16))["y"]


@pytest.mark.parametrize("name", RULES)
def test_rules(name: str) -> None:
    operation, count, kind = RULES[name]
    assert counted(copied("float32", operation)) == (count, kind)


@pytest.mark.parametrize("name", NO_RULE)
def test_what_has_no_rule_is_refused(name: str) -> None:
    with pytest.raises(Unsupported, match="in a count of roundings"):
        counted(copied("float32", NO_RULE[name]))


def test_a_shorter_float_is_seen() -> None:
    """A planted error: weights that are rounded to bf16 on the way."""
    assert counted(copied("bfloat16", RULES["exp"][0])) == (3 + BF16, "positive")


def test_an_error_above_the_bound_is_seen() -> None:
    """A planted error: a result rounded to bf16 is further off than Sinkhorn's bound."""
    torch.manual_seed(0)
    logits = (torch.rand(8, 4, 4) - 0.5) * SPREAD
    right = sinkhorn_reference(logits.double(), iterations=20, eps=1e-6)
    error = float(((sinkhorn_in_floats(logits).bfloat16() - right).abs() / right).max())
    assert error > float(gamma(sinkhorn(sinkhorn_kernels.sinkhorn_fwd(sinkhorn_kernels.Config()), 4, largest=SPREAD)))
