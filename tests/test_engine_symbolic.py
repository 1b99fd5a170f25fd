"""Kernels against their references over the reals, and planted errors that must be refuted."""

import math
from typing import Any

import pytest
import tilelang.language as T
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_kernels import matmul, online_softmax
from evaluation import evaluate
from lemmata.kernels.sinkhorn import Config, sinkhorn_bwd, sinkhorn_fwd
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.compiler.extract import lower
from lemmata.proofs.engine.execution.changes import Opaque
from lemmata.proofs.engine.execution.induction import Induction
from lemmata.proofs.engine.execution.invariants import Auxiliary, Determined, Ghost, Invariant
from lemmata.proofs.engine.execution.symbolic import Execution, block, execute, thread
from lemmata.proofs.engine.forms import extended, sums
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.forms.equations import Equation
from lemmata.proofs.engine.forms.normal_form import Form
from lemmata.proofs.engine.forms.ring import at_most
from lemmata.proofs.engine.layers.comparison import symbolic_input
from lemmata.proofs.engine.reference.recurrences import cutting, recurrence, resolve
from lemmata.proofs.engine.reference.symbolic_torch import SymbolicTensor
from lemmata.reference import indexer_loss
from lemmata.reference.sinkhorn import sinkhorn
from lemmata.reference.sinkhorn import sinkhorn_bwd as sinkhorn_bwd_reference


def size(name: str) -> Form:
    return nf.variable(name)


def total(n: int, f: Any) -> Form:
    return sum((f(k) for k in range(n)), nf.ZERO)


def proved(equations: list[Equation]) -> bool:
    return bool(equations) and all(e.holds for e in equations)


# Sinkhorn


def last_state(run: Execution, loop: str, recurrence: str) -> Any:
    """Return the last state of a reference that ran in lock step with a loop, as the kernel holds it after the loop."""
    induction = run.inductions[loop]
    assert isinstance(induction, Induction)
    return lambda *index: run.ghosts[recurrence](induction.extent, *index)


def forward(cfg: Config, prim_func: Any = None, reference: Any = sinkhorn, **change: Any) -> list[Equation]:
    """The kernel keeps p, u, v; the reference's matrix is p / (u v)."""
    shape = (size("count"), cfg.n, cfg.n)
    with cutting() as cuts:
        out = reference(symbolic_input("logits", shape), cfg.iterations, cfg.eps)
    x = recurrence("x", cuts[1::2], cuts)
    invariant = {
        "free": ("p", "u", "v"),
        "determined": {"r": Determined(lambda s, i: 1 / s["u"](i)), "c": Determined(lambda s, j: 1 / s["v"](j))},
        "ghosts": (Ghost(x, lambda s, i, j: s["p"](i, j) / s["u"](i) / s["v"](j), at=(matrix(cfg),)),),
    }
    run = execute(prim_func or sinkhorn_fwd(cfg), invariants={"_": Invariant(**(invariant | change))})
    last = {cuts[-1].name: last_state(run, "_", "x")}
    return run.equations + run.compare("out", lambda *i: resolve(out.at(*i), cuts, last))


def matrix(cfg: Config) -> Form:
    return block() * cfg.threads + thread()


def backward(cfg: Config, prim_func: Any = None) -> list[Equation]:
    """b is the gradient times r and c; the history gives r and c before each step."""
    n, eps, steps = cfg.n, nf.Fraction(cfg.eps), cfg.iterations - 1
    shape = (size("count"), n, n)
    with cutting() as cuts:
        grad_out, logits = symbolic_input("grad_out", shape), symbolic_input("logits", shape)
        out = sinkhorn_bwd_reference(grad_out, logits, cfg.iterations, cfg.eps)
    softmax, divisions, reversed_ = cuts[0], cuts[1 : 2 * steps + 2], cuts[2 * steps + 2 :]
    opaque = SymbolicTensor(shape, lambda *i: softmax.tensor.value(*i).__class__(nf.apply(softmax.name, *i)))
    x = recurrence("x", divisions[0::2], cuts)  # after each division by column sums
    y = recurrence("y", [opaque + cfg.eps, *divisions[1::2]], cuts)  # before it
    g = recurrence("g", reversed_[0::2], cuts, others=(x, y), direction=-1)
    at = (matrix(cfg),)

    def past(s: Any, t: Form, *_: Form) -> Form:
        return nf.indicator("ge", s.t - 1 - t, integer=True)

    ahead = Invariant(
        free=("p", "r"),
        auxiliary={"old": Auxiliary("c", lambda s, j: nf.ONE, lambda s, j: s["c"](j))},
        determined={
            "c": Determined(lambda s, j: 1 / (eps / s["old"](j) + total(n, lambda i: s["p"](i, j) * s["r"](i)))),
            "u": Determined(lambda s, i: 1 / s["r"](i)),
            "v": Determined(lambda s, j: 1 / s["c"](j)),
            "rows": Determined(lambda s, t, i, _: s.at(t)["r"](i), past),
            "columns": Determined(lambda s, t, j, _: s.at(t)["c"](j), past),
        },
        ghosts=(
            Ghost(x, lambda s, i, j: s["p"](i, j) * s["r"](i) * s["c"](j), at),
            Ghost(y, lambda s, i, j: s["p"](i, j) * s["r"](i) * s["old"](j), at),
        ),
    )

    def then(s: Any) -> Any:
        return s.at(steps - s.t, "t#0")

    back = Invariant(
        free=("b",),
        determined={"r": Determined(lambda s, i: then(s)["r"](i))},
        ghosts=(Ghost(g, lambda s, i, j: s["b"](i, j) / then(s)["r"](i) / then(s)["old"](j), at),),
        unfold=("t#0", lambda s: steps - s.t),
    )
    run = execute(prim_func or sinkhorn_bwd(cfg), invariants={"t#0": ahead, "t#1": back})
    last = {reversed_[-1].name: last_state(run, "t#1", "g")}
    return run.equations + run.compare("grad_logits", lambda *i: resolve(out.at(*i), cuts, last))


@pytest.mark.parametrize("n", [2, 4])
def test_sinkhorn_forward_is_its_reference(n: int) -> None:
    assert proved(forward(Config(n)))
    assert proved(forward(Config(n), lower(sinkhorn_fwd(Config(n)), guards=False).tile))


def test_sinkhorn_backward_is_its_reference() -> None:
    assert proved(backward(Config(2)))


def test_sinkhorn_with_another_constant_or_count_is_refuted() -> None:
    assert not proved(forward(Config(2), sinkhorn_fwd(Config(2, eps=2e-6))))
    assert not proved(forward(Config(2), sinkhorn_fwd(Config(2, iterations=19))))
    assert not proved(backward(Config(2), sinkhorn_bwd(Config(2, eps=2e-6))))


def test_a_wrong_relation_is_refuted() -> None:
    wrong = {"r": Determined(lambda s, i: 2 / s["u"](i)), "c": Determined(lambda s, j: 1 / s["v"](j))}
    failed = [e for e in forward(Config(2), determined=wrong) if not e.holds]
    assert failed
    assert "NOT proved: r[0] is what the invariant says" in str(failed[0])
    assert "kernel" in str(failed[0])


def test_a_wrong_reference_is_refuted() -> None:
    def transposed(logits: Any, iterations: int, eps: float) -> Any:
        return sinkhorn(logits.mT, iterations, eps)

    assert not proved(forward(Config(2), reference=transposed))


def test_a_reference_that_changes_its_step_is_no_recurrence() -> None:
    def odd(logits: Any, iterations: int, eps: float) -> Any:
        x = logits.softmax(-1) + eps
        for k in range(3):
            x = x / (x.sum(-2, keepdim=True) + (eps if k < 2 else 2 * eps))
        return x

    with cutting() as cuts:
        odd(symbolic_input("logits", (2, 2)), 3, 1e-6)
    with pytest.raises(Unsupported, match="step 1 of x is not the same function"):
        recurrence("x", cuts[1:], cuts)


def test_buffers_that_the_invariant_omits_are_not_known_after_the_loop() -> None:
    with pytest.raises(Unsupported, match="may be read before it is written"):
        forward(Config(2), determined={"c": Determined(lambda s, j: 1 / s["v"](j))})


def looping(shape: str) -> Any:
    """w halved 9 times, and copied to a buffer beside it: in all threads, in threads 0 to 15 only, or twice over."""
    guarded, twice, other = (shape == s for s in ("guarded", "twice", "other"))

    @T.macro
    def loop(w: Any, beside: Any) -> None:
        for _step in T.serial(9):
            w[0] = w[0] / 2
            beside[0] = w[0]

    @T.prim_func
    def kernel(out: T.Tensor((32,), "float32")):
        with T.Kernel(1, threads=32):
            w, beside = T.alloc_local((1,), "float32"), T.alloc_local((1,), "float32")
            w[0] = 1
            beside[0] = 1
            if guarded:
                if T.get_thread_binding() < 16:
                    loop(w, beside)
            else:
                for _ in T.serial(2 if twice else 1):
                    loop(w, beside)
            out[T.get_thread_binding()] = beside[0] if other else w[0]

    return kernel


def halved(shape: str) -> list[Equation]:
    """What the kernel gives out after a loop about which nothing is said but that w is some number."""
    run = execute(looping(shape), invariants={"_step": Invariant(free=("w",))})
    return run.compare("out", lambda _: nf.apply("w@_step", nf.form(9), nf.ZERO))


def test_what_a_loop_leaves_is_known() -> None:
    assert proved(halved("plain"))


def test_a_loop_in_some_threads_says_nothing_of_the_others() -> None:
    assert not proved(halved("guarded"))


def test_a_loop_that_runs_twice_has_no_single_invariant() -> None:
    with pytest.raises(Unsupported, match="runs more than once"):
        halved("twice")


def test_a_changed_buffer_without_invariant_is_lost() -> None:
    with pytest.raises(Unsupported, match="may be read before it is written"):
        halved("other")


def test_a_write_that_is_not_found_at_first_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Opaque, "write", lambda self, write: None)
    with pytest.raises(Unsupported, match="writes beside, w, which was not found to be written"):
        halved("plain")


# Tile kernels whose loops carry state


def matmul_equations(bug: str | None = None, tile_size: int = 32) -> list[Equation]:
    """c_tile after t steps is the sum over the first t blocks of K, zero outside the matrices."""
    rows, columns, depth = size("M"), size("N"), size("K")
    a, b = symbolic_input("a", (rows, depth)), symbolic_input("b", (depth, columns))

    def partial(s: Any, i: Form, j: Form) -> Form:
        row, column = block("x") * tile_size + i, block("y") * tile_size + j

        def product(t: Form, k: Form) -> Form:
            at = t * tile_size + k
            inside = nf.indicator("ge", depth - 1 - at, integer=True)
            return inside * a.at(row, at) * b.at(at, column)

        within = [nf.indicator("ge", n - 1 - x, integer=True) for n, x in ((rows, row), (columns, column))]
        value = nf.summation(s.t, lambda t: nf.summation(tile_size, lambda k: product(t, k)))
        return within[0] * within[1] * value

    run = execute(matmul(bug), invariants={"step": Invariant(determined={"c_tile": Determined(partial)})})
    with nf.tiled(depth, tile_size):
        return run.equations + run.compare("c", (a @ b).at)


def test_a_tiled_product_with_a_ragged_tail_is_the_product() -> None:
    assert proved(matmul_equations())


@pytest.mark.parametrize("bug", ["dropped tail", "wrong axis"])
def test_wrong_products_are_refuted(bug: str) -> None:
    assert not proved(matmul_equations(bug))


def online(bug: str | None = None, columns: int = 32, blocks: int = 2) -> list[Equation]:
    """total and acc after t blocks, for whatever finite maximum ``top`` holds."""
    rows = size("rows")
    x, v = symbolic_input("x", (rows, columns * blocks)), symbolic_input("v", (rows, columns * blocks))

    def weighted(values: Any) -> Any:
        def value(s: Any, i: Form) -> Form:
            row = block() * columns + i
            inside = nf.indicator("ge", rows - 1 - row, integer=True)

            def weight(t: Form, j: Form) -> Form:
                return nf.exp(inside * x.at(row, t * columns + j)) * values(inside, row, t * columns + j)

            return nf.exp(-s["top"](i)) * nf.summation(s.t, lambda t: nf.summation(columns, lambda j: weight(t, j)))

        return Determined(value)

    invariant = Invariant(
        free=("top",),
        determined={
            "total": weighted(lambda inside, row, j: nf.ONE),
            "acc": weighted(lambda inside, row, j: inside * v.at(row, j)),
        },
    )
    run = execute(online_softmax(bug), invariants={"step": invariant})
    reference = (x.softmax(-1) * v).sum(-1)
    with nf.tiled(columns * blocks, columns):
        return run.equations + run.compare("out", reference.at)


def test_the_online_softmax_is_the_softmax() -> None:
    assert proved(online())


@pytest.mark.parametrize("bug", ["missing rescale", "missing rescale of the total"])
def test_online_softmax_without_a_rescale_is_refuted(bug: str) -> None:
    assert not proved(online(bug))


# What must be rejected


def test_a_loop_of_unknown_length_needs_an_invariant() -> None:
    with pytest.raises(Unsupported, match=r"loop 'step' of extent .* needs an invariant"):
        execute(matmul())


def test_terms_beyond_measure_are_unsupported() -> None:
    with pytest.raises(Unsupported, match="more atoms than are allowed"), at_most(3):
        [nf.fresh("x") for _ in range(4)]
    nf.fresh("x")


# The symbolic tensors against torch


TORCH = {
    "softmax": lambda x, y: x.softmax(-1),
    "sum": lambda x, y: (x * y).sum((0, 1), keepdim=True) + x,
    "mean": lambda x, y: x.mean(0) - y,
    "amax": lambda x, y: x.amax(-1, keepdim=True) * y,
    "where": lambda x, y: torch.where(x > y, x, y - 1),
    "clamp": lambda x, y: x.clamp(min=0, max=1) + torch.relu(y),
    "einsum": lambda x, y: torch.einsum("ij,kj->ik", x, y),
    "matmul": lambda x, y: x @ y.mT,
    "indexing": lambda x, y: x[:, None, 1:] - y[None, :, :-1],
    "shape": lambda x, y: x.unsqueeze(0).expand(2, -1, -1).permute(2, 0, 1).squeeze(1) / (2 - y[0, 0] * 0),
    "logsumexp": lambda x, y: torch.logsumexp(x, dim=-1) + y.exp().log().sum(-1),
    "arithmetic": lambda x, y: (1 - x) ** 2 / (3 + y * y) + 2 / (x * x + 1) - (-y),
    "masked_fill": lambda x, y: x.masked_fill(y < 0, 2.0),
    "sqrt": lambda x, y: torch.sqrt(x * x + 1) * torch.maximum(x, y),
    "logaddexp": lambda x, y: torch.logaddexp(x, y[:, :1]),
}


@pytest.mark.parametrize("name", TORCH)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 1000))
def test_symbolic_tensors_agree_with_torch(name: str, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    values = {n: torch.randn(3, 4, generator=random, dtype=torch.float64) for n in "xy"}
    wanted = TORCH[name](values["x"], values["y"])
    got: Any = TORCH[name](symbolic_input("x", (3, 4)), symbolic_input("y", (3, 4)))
    assert got.shape == tuple(wanted.shape)
    for index in torch.cartesian_prod(*[torch.arange(n) for n in wanted.shape]).reshape(-1, wanted.ndim).tolist():
        value = evaluate(got.at(*map(nf.form, index)), {}, lambda n, i: float(values[n][tuple(i)]))
        assert value == pytest.approx(float(wanted[tuple(index)]), rel=1e-9, abs=1e-9)


SOME_INFINITE = {
    "exp": lambda x, y: x.exp() * y,
    "logsumexp": lambda x, y: x.logsumexp(-1),
    "of_those_listed": lambda x, y: torch.where(x > -math.inf, x, y),
    "amax": lambda x, y: x.amax(-1),
    "maximum": lambda x, y: torch.maximum(x, y),
    "sum": lambda x, y: x + y,
    "normalised": lambda x, y: indexer_loss._log_normalised(x),
    "divergence": lambda x, y: indexer_loss.divergence(*map(indexer_loss._log_normalised, (x, x + y))),
    "divergence_bwd": lambda x, y: indexer_loss.divergence_bwd(y[:, 0], *map(indexer_loss._log_normalised, (x, x + y))),
}


@pytest.mark.parametrize("name", SOME_INFINITE)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000))
def test_symbolic_tensors_agree_with_torch_where_elements_are_minus_infinity(name: str, seed: int) -> None:
    """In rows of which all, some and no elements are -inf."""
    random = torch.Generator().manual_seed(seed)
    values = {n: torch.randn(3, 4, generator=random, dtype=torch.float64) for n in "xy"}
    listed = torch.randint(-2, 2, (3, 4), generator=random)
    listed[0], listed[1] = 0, -1
    wanted = SOME_INFINITE[name](values["x"].masked_fill(listed < 0, -math.inf), values["y"])

    def finite(*index: Form) -> Form:
        return nf.nonnegative(nf.read("listed", *index))

    def number(p: Form) -> float:
        return evaluate(p, {}, lambda n, i: float((values | {"listed": listed})[n][tuple(i)]))

    got: Any = SOME_INFINITE[name](symbolic_input("x", (3, 4), finite=finite), symbolic_input("y", (3, 4)))
    for index in torch.cartesian_prod(*[torch.arange(n) for n in wanted.shape]).reshape(-1, wanted.ndim).tolist():
        value, right = got.value(*map(nf.form, index)), float(wanted[tuple(index)])
        assert number(value.finite) == (not math.isinf(right))
        assert value.sign < 0 or right < math.inf
        assert math.isinf(right) or number(value.form) == pytest.approx(right, rel=1e-9, abs=1e-9)


@settings(max_examples=60)
@given(bits=st.lists(st.booleans(), min_size=3, max_size=3), which=st.integers(0, 5))
def test_under_a_condition_a_form_stays_what_it_is(bits: list[bool], which: int) -> None:
    a, b, c = (nf.nonnegative(nf.variable(n, "integer")) for n in "abc")
    condition = [
        a * b,
        (nf.ONE - a) * b,
        a - a * b * c,
        nf.ONE - (nf.ONE - a) * (nf.ONE - b),
        a,
        (nf.ONE - a) * (nf.ONE - c),
    ][which]
    p = 3 * a + 5 * b * c + nf.exp(7 * c + a * nf.variable("x", "real")) - nf.apply("f", a * c)
    values = {**{n: 0 if bit else -1 for n, bit in zip("abc", bits, strict=True)}, "x": 0.5}

    def number(p: Form) -> float:
        return evaluate(p, values, lambda *_: 0.0, {"f": lambda t: 2.0 + t})

    assert number(condition) in (0, 1)
    if number(condition):
        assert number(extended.under(condition, p)) == pytest.approx(number(p))


def test_under_a_condition_what_it_implies_is_known() -> None:
    a, b, c = (nf.nonnegative(nf.variable(n, "integer")) for n in "abc")
    assert extended.under((nf.ONE - a) * b, a + 2 * b + c) is c + 2
    assert extended.under(nf.ONE - (nf.ONE - a) * (nf.ONE - b), a) is a, "either may hold"


def test_what_is_not_negative_is_positive_where_a_term_is() -> None:
    a, b = (nf.nonnegative(nf.variable(n, "integer")) for n in "ab")
    x, y = (nf.exp(nf.variable(n, "real")) for n in "xy")
    assert sums.some_of(a * x + a * y) is a
    assert sums.some_of(x + a * y) is not a
    assert {sums.some_of(p) for p in (a * x, b * x)} == {a, b}
    for values in ({"a": 0, "b": -1}, {"a": -1, "b": 0}, {"a": -1, "b": -1}):
        some = evaluate(sums.some_of(a * x + b * y), {**values, "x": 0.1, "y": 0.2}, lambda *_: 0.0)
        assert some == (max(values.values()) == 0)


def test_what_logaddexp_is_read_as_is_its_logarithm() -> None:
    """Whichever of both is the maximum: exp of it is the sum of both exps."""
    x, y = nf.variable("x", "real"), nf.variable("y", "real")
    for high, low in ((x, y), (y, x)):
        assert nf.exp(high + nf.log(nf.exp(low - high) + 1)) is nf.exp(x) + nf.exp(y)
