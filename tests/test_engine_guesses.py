"""What only finds a proof is not trusted: each error planted in a guess is refuted or refused, and proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tilelang.language as T
import z3

from engine_verdicts import refuted
from lemmata.proofs import verify
from lemmata.proofs.engine.access.trace import Division, Variable
from lemmata.proofs.engine.base.conditions import Condition, Site
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.layers import coverage as trusted
from lemmata.proofs.engine.layers import problem
from lemmata.proofs.engine.layers.bounds import grows, rounds_down
from lemmata.proofs.engine.layers.comparison import symbolic_input
from lemmata.proofs.engine.layers.coverage import points
from lemmata.proofs.engine.layers.row_major import Digit, Quotient
from lemmata.proofs.engine.layers.tiling import Tiling, tile_of, tiling
from lemmata.proofs.engine.reference import reshaping
from lemmata.proofs.engine.smt.solve import solve
from verdicts import STRICT, contract

TX, BX = z3.Int("tx"), z3.Int("bx")
Chosen = list[tuple[z3.ArithRef, z3.ArithRef]]


def gaps() -> Any:
    """Every second element is written."""
    n = T.dynamic("n")

    @T.prim_func
    def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, 64), threads=32) as block:
            i = block * 64 + T.get_thread_binding() * 2
            if i < n:
                out[i] = x[i]

    return kernel


def sparse() -> Any:
    """Two threads write the first and the last element of four."""
    n = T.dynamic("n")

    @T.prim_func
    def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, 4), threads=2) as block:
            i = block * 4 + T.get_thread_binding() * 3
            if i < n:
                out[i] = x[i]

    return kernel


def skipped() -> Any:
    """A block writes a row; row 1 is left out."""
    n = T.dynamic("n")

    @T.prim_func
    def kernel(x: T.Tensor((n, 32), "float32"), out: T.Tensor((n, 32), "float32")):
        with T.Kernel(n, threads=32) as block:
            if block != 1:
                out[block, T.get_thread_binding()] = x[block, T.get_thread_binding()]

    return kernel


def wrong(build: Callable[[], Any]) -> bool:
    """Whether the kernel is refuted or refused."""
    kernel = build()
    try:
        return bool(refuted(trusted.coverage, kernel, Hypotheses.of(contract(kernel, "out"), {}, kernel), STRICT))
    except Unsupported:
        return True


def twice(tile: Tiling) -> Tiling:
    """The threads count twice: as many points as the tile has elements."""
    return replace(tile, inner=(*tile.inner, *tile.inner))


def narrow(tile: Tiling) -> Tiling:
    """The tile is as large as what is written."""
    return replace(tile, edge=(*tile.edge[:-1], 32))


def dense(tile: Tiling) -> Tiling:
    """The threads write neighbours."""
    return replace(tile, within=(*tile.within[:-1], TX), edge=(*tile.edge[:-1], 32))


def by_thread(tile: Tiling) -> Tiling:
    """The tile of every thread is its own."""
    box = {"within": z3.IntVal(0), "low": 0, "edge": 1, "base": BX * 64 + TX * 2}  # of the last dimension
    return replace(tile, inner=(), **{name: (*getattr(tile, name)[:-1], value) for name, value in box.items()})


def never(tile: Tiling) -> Tiling:
    """No thread passes the guards, and the tile is empty."""
    return replace(tile, local_guards=(z3.BoolVal(False),), edge=tuple(0 for _ in tile.edge))


def of_the_block(tile: Tiling) -> Tiling:
    """A guard on the block is called one on the threads."""
    return replace(tile, local_guards=(*tile.local_guards, BX != 1))


@pytest.mark.parametrize("error", [twice, narrow, dense, by_thread, never, of_the_block])
@pytest.mark.parametrize("build", [gaps, sparse, skipped])
def test_a_wrong_tile_hides_no_gap(
    build: Callable[[], Any], error: Callable[[Tiling], Tiling], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wrong(build)
    monkeypatch.setattr(trusted, "tiling", lambda access: error(tiling(access)))
    assert wrong(build)


def elsewhere(tile: Tiling) -> Tiling:
    """In row 1 every thread is said to have a tile of its own, in which it writes where another thread does."""
    shifted = z3.Int("out.1") - (TX + 1) % 32
    return replace(tile, base=(BX, z3.If(BX == 1, shifted, z3.IntVal(0))))


def test_a_tile_that_depends_on_the_thread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trusted, "tiling", lambda access: elsewhere(tiling(access)))
    monkeypatch.setattr(trusted, "tile_of", lambda *given: ([(BX, z3.Int("out.0"))], []))
    kernel = skipped()
    with pytest.raises(Unsupported, match="depends on tx"):
        trusted.coverage(kernel, Hypotheses.of(contract(kernel, "out"), {}, kernel), STRICT)


def test_a_shape_that_depends_on_the_block_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (TX * 3 + BX - BX,)
    monkeypatch.setattr(trusted, "tiling", lambda access: replace(tiling(access), within=shape))
    kernel = sparse()
    with pytest.raises(Unsupported, match="whose shape depends on bx"):
        trusted.coverage(kernel, Hypotheses.of(contract(kernel, "out"), {}, kernel), STRICT)


def thread_too(chosen: Chosen) -> Chosen:
    """A value for the thread as well."""
    return [*chosen, (TX, z3.IntVal(0))]


def no_thread(chosen: Chosen) -> Chosen:
    """In row 1 the thread is said to be none, though every place of a row has one."""
    return [*chosen, (TX, z3.If(z3.Int("out.0") == 1, -1, z3.Int("out.1")))]


def by_the_thread(chosen: Chosen) -> Chosen:
    """The tile depends on the thread."""
    return [(x, value + TX) for x, value in chosen]


def none(chosen: Chosen) -> Chosen:
    """No tile is named."""
    return []


def another(chosen: Chosen) -> Chosen:
    """The next tile."""
    return [(x, value + 1) for x, value in chosen]


def of_the_contract(chosen: Chosen) -> Chosen:
    """A size of the contract is chosen."""
    return [*chosen, (z3.Int("n"), z3.IntVal(0))]


@pytest.mark.parametrize("error", [thread_too, no_thread, by_the_thread, none, another, of_the_contract])
@pytest.mark.parametrize("build", [gaps, sparse, skipped])
def test_a_wrong_choice_hides_no_gap(
    build: Callable[[], Any], error: Callable[[Chosen], Chosen], monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(*given: Any) -> Any:
        chosen, shares = tile_of(*given)
        return error(chosen), shares

    monkeypatch.setattr(trusted, "tile_of", choose)
    assert wrong(build)


def a_number(shares: list[Division], row: z3.ArithRef) -> list[Division]:
    """A quotient is said to be 0, so that rows are fewer than two."""
    return [*shares, Division(row, z3.IntVal(2), z3.IntVal(0), z3.Int("the rest"))]


def a_term(shares: list[Division], row: z3.ArithRef) -> list[Division]:
    """A remainder is said to be 1 more than something that is at least 0, so that no row is the first."""
    return [*shares, Division(row, z3.IntVal(2**40), z3.Int("the whole"), z3.Int("the rest") * 2 + 2)]


def the_row(shares: list[Division], row: z3.ArithRef) -> list[Division]:
    """A row is said to be its own remainder by 1."""
    return [*shares, Division(row, z3.IntVal(1), z3.Int("the whole"), row)]


@pytest.mark.parametrize("error", [a_number, a_term, the_row])
@pytest.mark.parametrize("build", [gaps, sparse, skipped])
def test_a_share_that_is_no_variable_hides_no_gap(
    build: Callable[[], Any], error: Callable[..., list[Division]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(*given: Any) -> Any:
        chosen, shares = tile_of(*given)
        return chosen, error(shares, z3.Int("out.0"))

    monkeypatch.setattr(trusted, "tile_of", choose)
    assert wrong(build)


def unwritten(conditions: Sequence[Condition], folder: Path, layer: str) -> None:
    """Nothing is written."""


def contradictory(conditions: Sequence[Condition], folder: Path, layer: str) -> None:
    """Every script is one that a solver finds unsatisfiable."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, _ in enumerate(conditions):
        (folder / f"{layer}-{number}.smt2").write_text("(assert false)(check-sat)")


@pytest.mark.parametrize("error", [unwritten, contradictory])
def test_a_wrong_script_hides_no_gap(
    error: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = skipped()
    given: Any = {"layers": ["L1"], "pass_configs": STRICT, "smt": tmp_path}
    right = verify(kernel, contract(kernel, "out"), **given).failures
    monkeypatch.setattr(problem, "write", error)
    assert [str(f) for f in verify(kernel, contract(kernel, "out"), **given).failures] == [str(f) for f in right] != []


def test_points_are_counted() -> None:
    thread = Variable("tx", "thread", z3.IntVal(0), z3.IntVal(128))
    lane = Variable("lane", "lane", z3.IntVal(-2), z3.IntVal(4))
    assert points((thread, lane), ()) == 512
    assert points((thread, lane), (TX % 4 == 1, z3.Int("lane") >= 0)) == 64
    with pytest.raises(Unsupported, match=r"depends on .*bx"):
        points((thread,), (BX == TX,))
    with pytest.raises(Unsupported, match="depends on n"):
        points((replace(thread, extent=z3.Int("n")),), ())


def test_whatever_the_digits_are_what_is_said_of_them_holds() -> None:
    a, b, c = z3.Ints("a b c")
    for digit in (Digit(a, b, c), Digit(b, a, -c), Digit(a, a * b, c + a)):
        assert solve(Condition("bounds", "", (), grows(digit), Site(""))).verdict == "proved"
    for quotient in (Quotient(a, z3.IntVal(3), b), Quotient(b, z3.IntVal(-2), a), Quotient(a + b, z3.IntVal(8), c)):
        assert solve(Condition("bounds", "", (), rounds_down(quotient), Site(""))).verdict == "proved"
    decreasing = z3.Implies(a <= b, a * c <= b * c)
    assert solve(Condition("bounds", "", (), decreasing, Site(""))).verdict == "refuted"


def of_rows(x: Any) -> Any:
    """The rows of a tensor, one after the other."""
    return x.reshape(2, -1)


VIEWS = {
    "another size": ("inferred", lambda old, new: [*new[:-1], nf.form(5)]),
    "of another order": ("inferred", lambda old, new: [nf.form(6), nf.form(2)]),
    "as it was": ("inferred", lambda old, new: list(old)),
    "half an element": ("inferred", lambda old, new: [nf.form(2), nf.variable("n") * nf.Fraction(3, 2)]),
    "nothing together": ("together", lambda old, new: iter(())),
    "one by one": ("together", lambda old, new: iter([(1, 1), (1, 1)])),
    "only before": ("together", lambda old, new: iter([(1, 1), (1, 0), (0, 1)])),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_wrong_view_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, error = VIEWS[name]
    rows = 3 if name != "half an element" else nf.variable("n")
    x = symbolic_input("x", (rows, 4 if name != "half an element" else 3))
    monkeypatch.setattr(reshaping, place, error)
    with pytest.raises(Unsupported, match="a view of"):
        of_rows(x)
