"""What is claimed of the Sinkhorn kernels, and the invariants that prove it.

The reference updates a matrix C, the kernels only vectors r = 1/u and c = 1/v: C[i,j] = r[i] p[i,j] c[j]. So each loop is
proved in lock step with the reference, run unmodified on symbolic logits and cut at every division. Before an iteration the
kernel's vectors and matrix are any numbers whatever; if they give the reference's state, then after the iteration they
give its next one. That holds of a symbolic iteration, hence of any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, product
from typing import Any

import torch
import z3

from ..kernels.build import PASS_CONFIGS
from ..kernels.sinkhorn import NAMES, Config, sinkhorn_bwd, sinkhorn_fwd
from ..reference import sinkhorn as reference
from .engine.base.conditions import Condition
from .engine.execution import symbolic
from .engine.execution.invariants import Auxiliary, Determined, Ghost, Invariant, State
from .engine.execution.symbolic import Execution
from .engine.forms import normal_form as nf
from .engine.forms.entailment import Facts
from .engine.forms.extended import Value
from .engine.forms.forgetting import remembered
from .engine.forms.normal_form import Form
from .engine.interpreter.interpret import interpret
from .engine.layers.comparison import symbolic_input
from .engine.layers.lemmas import Lemma, Tested, Theorem, lemma
from .engine.reference.recurrences import Cut, Recurrence, cutting, recurrence, resolve
from .engine.reference.symbolic_torch import SymbolicTensor, tensor
from .engine.semantics.semantics import serial_loops
from .engine.verify import Compare, Compared
from .suite import Proof

SHIPPED = Config()
forward: Callable[..., Any] = reference.sinkhorn  # of tensors that are not torch.Tensor
backward: Callable[..., Any] = reference.sinkhorn_bwd
OTHER_WIDTHS = (2, 3, 5, 6, 7, 8)


def _matrix(cfg: Config) -> Form:
    """Return the number of the matrix that a thread owns."""
    return symbolic.block() * cfg.threads + symbolic.thread()


def _inputs(cfg: Config, *names: str) -> list[SymbolicTensor]:
    return [symbolic_input(name, (nf.variable("count"), cfg.n, cfg.n)) for name in names]


def _loop(kernel: Any, at: int) -> str:
    return list(serial_loops(kernel).values())[at]


@remembered
def _reference_forward(cfg: Config) -> tuple[SymbolicTensor, Sequence[Cut], Recurrence]:
    """Return the result, its divisions, and the states after each column step.

    They are kept for a kernel and its mutants: the only constant, eps, is a double, taken as it is.
    """
    with cutting() as cuts:
        out = tensor(forward(*_inputs(cfg, "logits"), cfg.iterations, cfg.eps))
    return out, cuts, recurrence("x", cuts[1::2], cuts)  # cut 0 is the softmax, then column, row, column, ...


@remembered
def _reference_backward(cfg: Config) -> tuple[SymbolicTensor, Sequence[Cut], Sequence[Recurrence]]:
    """Return the result, its divisions, and the states after column steps, after row steps, and of the derivative."""
    steps = cfg.iterations - 1
    inputs = _inputs(cfg, "grad_out", "logits")
    with cutting() as cuts:
        out = tensor(backward(*inputs, cfg.iterations, cfg.eps))
    softmax, ahead, back = cuts[0], cuts[1 : 2 * steps + 2], cuts[2 * steps + 2 :]
    start = SymbolicTensor(inputs[0].shape, lambda *i: Value(nf.apply(softmax.name, *i) + Fraction(cfg.eps)))
    columns, rows = recurrence("x", ahead[0::2], cuts), recurrence("y", [start, *ahead[1::2]], cuts)
    gradient = recurrence("g", back[0::2], cuts, others=(columns, rows), direction=-1)
    return out, cuts, (columns, rows, gradient)


def _outcome(done: Execution, output: str, out: SymbolicTensor, cuts: Sequence[Cut], ghost: str, last: int) -> Compared:
    """Return the loops' equations, and if they hold the output's: its last cut is state ``last`` of a ghost."""
    if not all(equation.holds for equation in done.equations):
        return done, done.equations
    states = {cuts[-1].name: lambda *i: done.ghosts[ghost](nf.form(last), *i)}
    return done, [*done.equations, *done.compare(output, lambda *i: resolve(out.at(*i), cuts, states))]


def _forward(cfg: Config) -> Compare:
    """Prove the forward in lock step with the states after each column step: x = p / (u v)."""

    def compare(kernel: Any, facts: Facts) -> Compared:
        out, cuts, columns = _reference_forward(cfg)
        invariant = Invariant(
            free=(NAMES.p, NAMES.u, NAMES.v),
            positive=(NAMES.p, NAMES.u, NAMES.v),
            determined={
                NAMES.r: Determined(lambda s, i: 1 / s[NAMES.u](i)),
                NAMES.c: Determined(lambda s, j: 1 / s[NAMES.v](j)),
            },
            ghosts=(
                Ghost(columns, lambda s, i, j: s[NAMES.p](i, j) / s[NAMES.u](i) / s[NAMES.v](j), at=(_matrix(cfg),)),
            ),
        )
        done = symbolic.execute(kernel, invariants={_loop(kernel, 0): invariant}, facts=facts)
        return _outcome(done, "out", out, cuts, "x", cfg.iterations - 1)

    return compare


def _backward(cfg: Config) -> Compare:
    """Prove the backward in lock step with the forward's states after column and row steps, then with the derivative.

    The derivative goes back in time. The recomputing loop keeps r and c of each step in ``rows`` and ``columns``; ``old_c``,
    c before the latest column step, is an auxiliary of the proof. The loop back has b[i,j] = r[i] dC[i,j] old_c[j], where r
    and old_c are those of the forward's iteration steps - t.
    """
    steps = cfg.iterations - 1

    def compare(kernel: Any, facts: Facts) -> Compared:
        out, cuts, (columns, rows, gradient) = _reference_backward(cfg)
        again, reverse = _loop(kernel, 0), _loop(kernel, 1)

        def then(s: State) -> State:
            """Return the forward's state at the iteration that is being undone."""
            return s.at(steps - s.t, again)

        def derivative(s: State, i: Form, j: Form) -> Form:
            return s[NAMES.b](i, j) / then(s)[NAMES.r](i) / then(s)["old_c"](j)

        undo = Invariant(
            free=(NAMES.b,),
            determined={NAMES.r: Determined(lambda s, i: then(s)[NAMES.r](i))},
            ghosts=(Ghost(gradient, derivative, at=(_matrix(cfg),)),),
            unfold=(again, lambda s: steps - s.t),
        )
        loops = {again: _recompute(cfg, columns, rows), reverse: undo}
        done = symbolic.execute(kernel, invariants=loops, facts=facts)
        return _outcome(done, "grad_logits", out, cuts, "g", steps)

    return compare


def _recompute(cfg: Config, x: Recurrence, y: Recurrence) -> Invariant:
    """Return the invariant of the loop that runs the forward again, with what it leaves in shared memory."""
    eps = Fraction(cfg.eps)

    def column_sum(s: State, j: Form) -> Form:
        return sum((s[NAMES.p](i, j) * s[NAMES.r](i) for i in map(nf.form, range(cfg.n))), nf.ZERO)

    def written(s: State, t: Form, *_: Form) -> Form:
        return nf.indicator("ge", s.t - 1 - t, integer=True)

    at = (_matrix(cfg),)
    return Invariant(
        free=(NAMES.p, NAMES.r),
        positive=(NAMES.p, NAMES.r, "old_c"),
        auxiliary={"old_c": Auxiliary(NAMES.c, lambda s, j: nf.ONE, lambda s, j: s[NAMES.c](j))},
        determined={
            NAMES.c: Determined(lambda s, j: 1 / (eps / s["old_c"](j) + column_sum(s, j))),
            NAMES.u: Determined(lambda s, i: 1 / s[NAMES.r](i)),
            NAMES.v: Determined(lambda s, j: 1 / s[NAMES.c](j)),
            NAMES.rows: Determined(lambda s, t, i, lane: s.at(t)[NAMES.r](i), written),
            NAMES.columns: Determined(lambda s, t, j, lane: s.at(t)[NAMES.c](j), written),
        },
        ghosts=(
            Ghost(x, lambda s, i, j: s[NAMES.p](i, j) * s[NAMES.r](i) * s[NAMES.c](j), at=at),
            Ghost(y, lambda s, i, j: s[NAMES.p](i, j) * s[NAMES.r](i) * s["old_c"](j), at=at),
        ),
    )


def _entries(n: int) -> list[list[z3.ArithRef]]:
    return [[z3.Real(f"a{i}{j}") for j in range(n)] for i in range(n)]


def _nonnegative() -> Sequence[Condition]:
    x, rest, eps = z3.Reals("x rest eps")
    p = z3.Real("p")
    return [
        lemma("softmax + eps is positive", p + eps > 0, p >= 0, eps > 0),
        lemma("a division by its sum + eps keeps an entry nonnegative", x / (x + rest + eps) >= 0, x >= 0, rest >= 0, eps > 0),
    ]  # fmt: skip


def _column_sums() -> Sequence[Condition]:
    s, eps = z3.Reals("s eps")
    return [lemma("s / (s + eps) < 1", s / (s + eps) < 1, s >= 0, eps > 0)]


def _norm() -> Sequence[Condition]:
    """Prove ‖Ax‖² <= sum_i r_i sum_j a_ij x_j² <= R sum_j x_j² sum_i a_ij <= R ‖x‖².

    Here r_i are the row sums and R is the largest of them.
    """
    a, x = _entries(4), z3.Reals("x0 x1 x2 x3")
    rows = [z3.Sum(row) for row in a]
    weighted = [z3.Sum([row[j] * x[j] * x[j] for j in range(4)]) for row in a]
    image = [z3.Sum([row[j] * x[j] for j in range(4)]) for row in a]
    gap = [row[j] * row[k] * (x[j] - x[k]) * (x[j] - x[k]) for row in a for j, k in combinations(range(4), 2)]
    square = z3.Sum([y * y for y in image])
    left, right, d, r, largest, w, s, q = z3.Reals("left right d r largest w s q")
    return [
        lemma("the gap of Cauchy and Schwarz is a sum of a_ij a_ik (x_j - x_k)²",
              z3.Sum([r * w for r, w in zip(rows, weighted, strict=True)]) - square == z3.Sum(gap)),
        lemma("each summand is nonnegative", left * right * d * d >= 0, left >= 0, right >= 0),
        lemma("a row sum may be replaced by the largest", r * w <= largest * w, r <= largest, w >= 0),
        lemma("a column sum may be replaced by 1", largest * s * q <= largest * q, s <= 1, q >= 0, largest >= 0),
    ]  # fmt: skip


def _two_level(spread: float) -> torch.Tensor:
    """Return all 4 x 4 matrices of the logits 0 and -spread."""
    return torch.tensor(list(product((0.0, -spread), repeat=16)), dtype=torch.float64).view(-1, 4, 4)


def _row_sums() -> tuple[bool, str]:
    """Test the largest row sum and spectral norm over all two-level logits, which come close to the worst found."""
    seen = []
    for spread, most in ((4.0, 1.0062), (8.0, 1.0342), (16.0, 1.0759)):
        out = reference.sinkhorn(_two_level(spread))
        row, norm = out.sum(-1).max().item(), torch.linalg.matrix_norm(out, 2).max().item()
        seen.append((1 < norm <= row**0.5 and row <= most, f"spread {spread:g}: row {row:.5f}, norm {norm:.5f}"))
    return all(ok for ok, _ in seen), "; ".join(text for _, text in seen)


def _rounding() -> tuple[bool, str]:
    """Test the kernel's own arithmetic, interpreted in fp32, against the reference in fp64."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for magnitude in (0.1, 1.0, 8.0, 40.0):
        logits = (torch.randn(64, 4, 4, generator=generator) * magnitude).clamp(-80, 80)
        out = torch.empty_like(logits)
        interpret(sinkhorn_fwd(SHIPPED), logits, out)
        worst = max(worst, (out - reference.sinkhorn(logits.double())).abs().max().item())
    return worst <= 5e-7, f"largest error {worst:.1e}"


LEMMAS: tuple[Lemma, ...] = (
    Theorem("nonnegative", "Over the reals every entry of the result is positive.", _nonnegative,
            "induction over the divisions"),
    Theorem("column sums", "Over the reals every column of the result sums to less than 1, hence its 1-norm is below 1.",
            _column_sums, "the last division is by the column sums"),
    Theorem("norm", "Over the reals the spectral norm of a nonnegative 4 x 4 matrix with column sums at most 1 is at most "
            "sqrt(1 + delta), 1 + delta its largest row sum.", _norm, "summation over i and j, and Ax squared"),
    Tested("row sums", "For all 65536 two-level logits 0, -R, 20 iterations, eps 1e-6, in fp64: the largest row sum is at "
           "most 1.0062 for R = 4, 1.0342 for 8, 1.0759 for 16; the spectral norm exceeds 1 but keeps the bound.", _row_sums),
    Tested("rounding", "In fp32, as the kernel computes, but with the CPU's exp and exact reciprocals, 256 random matrices "
           "of logits up to 80 are within 5e-7 of the result in fp64.", _rounding),
)  # fmt: skip


FIRST_STEP = "before the first column step u = v = r = 1"
EQUIVALENTS = {
    "grid @ for bx in 0:(count + 31) // 32 -> for bx in 0:(count + 31) // 32 + 1": "the guard skips the block beyond count",
    "loop start @ for j in 1:4 -> for j in 0:4": "the maximum takes the first entry twice",
    "dropped operand @ v[j] * 1e-06 -> 1e-06": FIRST_STEP,
    "wrong buffer @ v[j] -> u[j]": FIRST_STEP,
    "wrong buffer @ v[j] -> r[j]": FIRST_STEP,
    "other operator @ p[i, j] * r[i] -> p[i, j] / r[i]": FIRST_STEP,
    "dropped operand @ p[i, j] * r[i] -> p[i, j]": FIRST_STEP,
    "wrong variable @ r[i] -> r[j]": FIRST_STEP,
}


def _statics(cfg: Config) -> dict[str, float]:
    return {"n": cfg.n, "iterations": cfg.iterations, "eps": cfg.eps}


def _proof(cfg: Config, *, back: bool, **more: Any) -> Proof:
    factory, contract = (sinkhorn_bwd, reference.BACKWARD) if back else (sinkhorn_fwd, reference.FORWARD)
    compare = _backward(cfg) if back else _forward(cfg)
    wide = back and cfg.n > SHIPPED.n  # L2 multiplies polynomials out: 8 s for n = 4, 18 s for 5, minutes for 8
    return Proof("sinkhorn", factory(cfg), contract, _statics(cfg), None if wide else compare, PASS_CONFIGS, **more)


def proofs() -> Iterator[Proof]:
    """Yield the shipped configuration in every layer; the other widths too, but the backward's above 4 without L2 and range."""
    yield _proof(SHIPPED, back=False, lemmas=LEMMAS, mutate=True, equivalents=EQUIVALENTS)
    yield _proof(SHIPPED, back=True, mutate=True, every=8, equivalents=EQUIVALENTS)
    for n in OTHER_WIDTHS:
        for back in (False, True):
            yield _proof(Config(n), back=back)
    for iterations in (1, 100):  # the least and the most that the contract admits
        for back in (False, True):
            yield replace(_proof(Config(8, iterations), back=back), compare=None)
