"""The solvers' wrapper: verdicts, counterexamples, determinism, and a second solver that agrees."""

import os
import signal
import threading
from dataclasses import replace

import pytest
import z3
from hypothesis import given
from hypothesis import strategies as st

from lemmata.kernels import sinkhorn
from lemmata.proofs.engine.access.instances import Renaming, sequent
from lemmata.proofs.engine.access.walk import walk
from lemmata.proofs.engine.base.conditions import Condition, Outcome, Site, reachable
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.compiler.extract import lower
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.layers.bounds import bounds
from lemmata.proofs.engine.layers.coverage import coverage
from lemmata.proofs.engine.order.questions import order
from lemmata.proofs.engine.smt import solve as solvers
from lemmata.proofs.engine.smt.bitvectors import permutes_bits, to_bitvectors
from lemmata.proofs.engine.smt.solve import decide, smt2, solve
from lemmata.proofs.gradient_lemmas import ROUNDED
from lemmata.proofs.topk import LEMMAS
from lemmata.reference.sinkhorn import BACKWARD
from verdicts import STRICT

x, y, n = z3.Ints("x y n")
tx = z3.Int("tx")
HERE = Site("out[tx] = x[tx]")


def condition(goal: z3.BoolRef, *hypotheses: z3.BoolRef) -> Condition:
    return Condition("bounds", "tx stays below n", hypotheses, goal, HERE)


TRUE = condition(x * n + y < n * n, n > 0, x >= 0, x < n, y >= 0, y < n)
FALSE = condition(x * n + y < n * n, n > 0, x >= 0, x <= n, y >= 0, y < n)
HARD = condition(x * x * x + y * y * y != n * n * n, x > 0, y > 0, n > 0)


@pytest.mark.parametrize("solver", ["z3", "cvc5"])
def test_verdicts(solver):
    assert solve(TRUE, solver=solver).verdict == "proved"
    refuted = solve(FALSE, solver=solver)
    assert refuted.verdict == "refuted"
    model = refuted.counterexample
    assert model is not None
    assert model["x"] == model["n"]
    assert model["x"] * model["n"] + model["y"] >= model["n"] ** 2


def test_a_refutation_without_a_counterexample_is_one():
    assert replace(solve(FALSE, witness=False), seconds=0) == Outcome(FALSE, "refuted", 0, None, "z3 seed 0")
    assert solve(TRUE, witness=False).verdict == "proved"
    assert solve(HARD, rlimit=1000, witness=False).verdict == "unknown"


@pytest.mark.parametrize("witness", [True, False])
def test_what_few_steps_do_not_decide_is_asked_again(monkeypatch, witness):
    monkeypatch.setattr(solvers, "_FEW", 1)
    assert solve(TRUE, witness=witness).verdict == "proved"
    assert solve(FALSE, witness=witness).verdict == "refuted"


def test_unknown_is_never_a_verdict():
    outcome = solve(HARD, rlimit=1000)
    assert outcome.verdict == "unknown"
    assert outcome.counterexample is None


def test_the_portfolio_falls_back_to_cvc5():
    product = condition(x * y == y * x + 0 * n, x > n)  # any step at all is too many for z3
    outcome = solve(TRUE, rlimit=1)
    assert (outcome.verdict, outcome.solver) == ("proved", "cvc5 seed 0")
    assert solve(product).verdict == "proved"


def divided(by: int) -> Condition:
    """Return that a division of bit-vectors by a constant is that of the numbers; Z3 prints an operator of its own for it."""
    a = z3.BitVec("a", 8)
    return Condition("test", "a quotient", (a >= 0,), a - (a / by) * by < by, Site("a"))


THEOREMS = {"short floats": next(t for t in LEMMAS if t.name == "bfloat16"), "products": ROUNDED}


@pytest.mark.parametrize("name", THEOREMS)
def test_cvc5_has_ways_for_what_its_first_leaves_open(monkeypatch, name):
    conditions = THEOREMS[name].conditions()
    assert {solve(c, solver="cvc5").verdict for c in conditions} == {"proved"}
    monkeypatch.setattr(solvers, "_WAYS", solvers._WAYS[:1])
    assert {solve(c, solver="cvc5").verdict for c in conditions} >= {"unknown"}


def rows_of_tiles(first: int) -> Condition:
    """Return that 64 rows from ``first`` on of a tile of 256 are none of the 64 before, as warps share them out."""
    places, facts = [], []
    for tag, begin in (("", 0), ("'", first)):
        tile, thread, i = (z3.Int(f"{name}{tag}") for name in ("tile", "thread", "i"))
        places.append(tile * 256 + thread / 32 * 16 + i % 2 * 8 + thread % 32 / 4 + begin)
        facts += [tile >= 0, tile < 2**12, thread >= 0, thread < 128, i >= 0, i < 32]
    return condition(places[0] != places[1], *facts)


def test_cvc5_has_a_way_for_places_in_tiles(monkeypatch):
    monkeypatch.setattr(
        solvers, "_WAYS", tuple(w for w in solvers._WAYS if {"arith-brab", "arith-rewrite-equalities"} & {*w})
    )
    assert solve(rows_of_tiles(64), solver="cvc5").verdict == "proved"
    assert solve(rows_of_tiles(56), solver="cvc5").verdict == "refuted"


K, S, B, s, b, lane = z3.Ints("K S B s b lane")
PRODUCTS = (K * S * b, K * s, B * K * S, S * S * b, K * K)


@given(st.lists(st.integers(-9, 9), min_size=5, max_size=5))
def test_what_is_said_of_products_holds_of_all_integers(values):
    facts = solvers.products(PRODUCTS)
    assert len(facts) > 4
    given_ = [(v, z3.IntVal(value)) for v, value in zip((K, S, B, s, b), values, strict=True)]
    assert all(z3.is_true(z3.simplify(z3.substitute(fact, *given_))) for fact in facts)


def test_a_false_sentence_about_products_would_be_seen():
    fact = solvers.products(PRODUCTS)[0]
    wrong = z3.substitute(fact, (fact.arg(0), fact.arg(0).arg(1)))  # without v < w
    assert solve(condition(wrong)).verdict == "refuted"


def rows_of_rows(last: z3.ArithRef) -> Condition:
    sizes = (K >= 0, S >= 0, B >= 0, s >= 0, s < S, b >= 0, b < B, lane >= 0, lane < 512 * last)
    return condition(512 * (K * (S * b + s)) + lane < 512 * (B * K * S), *sizes)


def test_cvc5_is_told_what_holds_of_products():
    assert solve(rows_of_rows(K), solver="cvc5").verdict == "proved"
    assert solve(rows_of_rows(K + 1), solver="cvc5").verdict != "proved"


def test_what_cvc5_need_not_divide_is_left_out():
    of_three, u, v = (z3.BitVec(name, 64) for name in ("of_three", "u", "v"))
    facts = (of_three / 3 <= u, u >= 0, u < 2**20, v == u ^ 7)
    held, wrong = condition(v < 2**20, *facts), condition(v < u, *facts)
    assert len(solvers.without_divisions(held).hypotheses) == 3
    assert solve(held, solver="cvc5").verdict == "proved"
    assert solve(wrong, solver="cvc5").verdict != "proved"


def test_guards_that_say_opposite_things_of_one_quotient_exclude_one_another():
    """What is proved of any function holds of the quotient; what needs the quotient itself is not proved so."""
    x, y, i, j, thread = (z3.BitVec(name, 64) for name in ("x", "y", "i", "j", "thread"))
    parts = [v >= 0 for v in (x, y, i, j, thread)] + [v < 2**20 for v in (x, y)] + [i < 4, j < 4, thread < 128]
    guards = (x * 4 + 1) / 3 <= y, z3.Not((j * 4 + 1) / 3 <= y)
    held = condition(x * 4 + i != j * 4 + (thread >> 5), *parts, *guards)
    weaker = solvers.with_unknown_divisions(held)
    assert not any(t.decl().kind() in solvers._DIVISIONS for t in solvers.subterms(weaker.hypotheses))
    for asked in (held, weaker):
        assert solve(asked, solver="cvc5").verdict == "proved"
    alone = solvers.with_unknown_divisions(replace(held, hypotheses=(*parts, guards[0])))
    assert solve(alone, solver="cvc5").verdict != "proved"
    halved = condition(y == 0, *parts, x / 2 == y, x < 2)
    assert solve(halved, solver="cvc5").verdict == "proved"
    assert solve(solvers.with_unknown_divisions(halved), solver="cvc5").verdict == "refuted"


def test_a_refutation_for_lack_of_a_division_is_none():
    whole, u = (z3.BitVec(name, 8) for name in ("whole", "u"))
    facts = (whole / 3 == u, whole >= 0)
    assert solve(condition(u <= 42, *facts), solver="cvc5").verdict == "proved"


def test_cvc5_looks_where_z3_found_an_execution(monkeypatch):
    """It has the last word: of a condition that holds, and at numbers that do not refute it, it says nothing."""
    monkeypatch.setattr(solvers, "_cvc5", lambda *_: ("unknown", None))
    assert solve(TRUE, solver="cvc5").verdict == "unknown"
    refuted = solve(FALSE, solver="cvc5")
    assert (refuted.verdict, refuted.counterexample) == ("refuted", solve(FALSE, solver="z3").counterexample)
    monkeypatch.setattr(solvers, "_z3", lambda *_, **__: ("refuted", {"x": 1, "y": 0, "n": 2}))
    assert solve(FALSE, solver="cvc5").verdict == "unknown"


def test_cvc5_divides_bits():
    assert "bvsdiv_i" not in smt2(divided(3))
    assert solve(divided(3), solver="cvc5").verdict == "proved"
    wrong = replace(divided(3), goal=z3.Not(divided(3).goal))
    assert solve(wrong, solver="cvc5").verdict == "refuted"


def test_the_same_every_time():
    first, second = solve(FALSE), solve(FALSE)
    assert first.counterexample == second.counterexample
    assert smt2(FALSE) == smt2(FALSE)


def test_what_was_decided_is_said_again_of_the_same_terms_alone(monkeypatch):
    asked, open_question = [], condition(x > y)

    def counted(c: Condition, **means: object) -> Outcome:
        asked.append(c)
        return Outcome(c, "unknown", 0) if c is open_question else solve(c, **means)

    monkeypatch.setattr(solvers, "solve", counted)
    monkeypatch.setattr(solvers, "_decided", {})
    again = replace(TRUE, statement="in other words", hypotheses=TRUE.hypotheses[::-1])
    assert [decide(c).verdict for c in (TRUE, again)] == ["proved", "proved"]
    assert len(asked) == 1
    assert decide(again).condition is again
    assert decide(replace(TRUE, hypotheses=FALSE.hypotheses)).verdict == "refuted"  # one bound is another
    assert decide(TRUE, solver="cvc5").solver == "cvc5 seed 0"
    assert decide(FALSE, witness=False).counterexample is None
    assert decide(FALSE).counterexample  # is asked for once more
    assert {decide(open_question).verdict for _ in range(2)} == {"unknown"}
    assert len(asked) == 6  # what is unknown twice


@pytest.mark.parametrize("memory", [1, 7, 2**12])
def test_terms_that_end_leave_no_answer_to_those_that_get_their_numbers(monkeypatch, memory):
    monkeypatch.setattr(solvers, "_MEMORY", memory)
    monkeypatch.setattr(solvers, "_decided", {})
    for number in range(60):
        k, holds = z3.Int(f"k{number % 3}"), number % 4 < 2
        assert (decide(condition(k * 2 >= (0 if holds else 1), k >= 0)).verdict == "proved") is holds


def test_elements_of_tensors_are_printed():
    element = z3.Function("indices", z3.IntSort(), z3.IntSort())(tx)
    outcome = solve(condition(element >= 0, tx == 3, element >= -1))
    assert outcome.counterexample == {"indices[3]": -1, "tx": 3}


def test_smt2_says_what_it_is_about():
    text = smt2(FALSE)
    assert text.startswith("; bounds: tx stays below n\n; at out[tx] = x[tx]\n(set-logic ALL)\n")
    assert "(check-sat)" in text
    assert z3.Solver().from_string(text) is None


def test_contradictory_hypotheses_are_unreachable():
    assert solve(reachable("read of x", (x > 0, x < 0), HERE)).verdict == "proved"
    assert solve(reachable("read of x", (x > 0, x < 2), HERE)).counterexample == {"x": 1}


SWIZZLE = (tx % 64) / 8 * 8 + ((tx / 64) + tx % 8) % 8  # a permutation of 0..63, for tx below 64


def injective(index: z3.ArithRef) -> Condition:
    prime = Renaming(frozenset()).term
    given = (tx >= 0, tx < 64, prime(tx) >= 0, prime(tx) < 64)
    return sequent("race", "injective", given, z3.Or(tx == prime(tx), index != prime(index)), HERE)


def test_swizzles_are_decided_as_bit_vectors():
    good = injective(SWIZZLE)
    assert permutes_bits([SWIZZLE])
    assert any(z3.is_bv(t) for t in good.goal.arg(0).children())
    assert solve(good).verdict == "proved"
    assert solve(good, solver="cvc5").verdict == "proved"
    bad = solve(injective((tx % 32) / 8 * 8 + tx % 8))
    assert bad.verdict == "refuted"
    assert bad.counterexample is not None
    assert (bad.counterexample["tx"] - bad.counterexample["tx'"]) % 32 == 0


@pytest.mark.parametrize("divisor", [2, 3, 8, 10])
def test_bit_vectors_round_down(divisor):
    for value in range(-25, 26):
        terms = [z3.IntVal(value) / divisor, z3.IntVal(value) % divisor]
        read = [z3.simplify(to_bitvectors(t)).as_signed_long() for t in terms]
        assert read == [value // divisor, value % divisor]


def test_exclusive_or_reads_the_same_in_both():
    term = z3.BV2Int(z3.Int2BV(tx, 32) ^ z3.Int2BV(z3.IntVal(5), 32), is_signed=True)
    for value in (-7, 0, 3, 12):
        as_integer = z3.simplify(z3.substitute(term, (tx, z3.IntVal(value)))).as_long()
        vector = to_bitvectors(z3.substitute(term, (tx, z3.IntVal(value))))
        assert z3.simplify(vector).as_signed_long() == as_integer == value ^ 5


def test_division_by_a_variable_has_no_bit_vector_reading():
    with pytest.raises(Unsupported):
        to_bitvectors(x / y)


def test_numbers_too_long_for_bit_vectors_are_left_out():
    word = z3.Int("word")
    given = (word >= 0, word < 2**64, tx >= 0, tx < 256)  # as a vector, 2^64 would be 0
    assert solve(sequent("race", "no word is below 0", given, tx % 32 == 0, HERE)).verdict == "refuted"
    with pytest.raises(Unsupported):
        to_bitvectors(word < 2**63)


def test_hypotheses_about_the_goal_are_never_lost_to_bit_vectors():
    given = (x == y * n, y == 2, n == 3)  # the first is not linear
    assert solve(sequent("race", "product", given, x / 2 == 3, HERE)).verdict == "proved"


def test_outcome_carries_its_condition():
    outcome = solve(TRUE)
    assert isinstance(outcome, Outcome)
    assert outcome.condition is TRUE
    assert outcome.seconds > 0


def test_cvc5_confirms_every_condition_of_a_kernel():
    kernel = sinkhorn.sinkhorn_bwd(sinkhorn.Config(n=4))
    given = Hypotheses.of(BACKWARD, {"n": 4, "iterations": 20, "eps": 1e-6}, kernel)
    conditions = [c for layer in (bounds, coverage, order) for c in layer(kernel, given, STRICT).conditions]
    assert len(conditions) > 100
    assert {solve(c, solver="cvc5").verdict for c in conditions} == {"proved"}


def test_layers_read_one_walk_and_leave_it_as_it_was():
    kernel = sinkhorn.sinkhorn_bwd(sinkhorn.Config(n=3))
    given = Hypotheses.of(BACKWARD, {"n": 3, "iterations": 20, "eps": 1e-6}, kernel)

    def asked(layer):
        found = layer(kernel, given, STRICT)
        return [(c.kind, c.statement, str([t.sexpr() for t in (*c.hypotheses, c.goal)])) for c in found.conditions]

    together = [asked(layer) for layer in (bounds, coverage, order, bounds)]
    assert walk.cache_info().hits >= 4
    for layer, known in zip((bounds, coverage, order), together, strict=False):
        walk.cache_clear()
        assert asked(layer) == known
    assert together[3] == together[0]
    thread = lower(kernel, guards=False).thread
    assert walk(thread, given) is walk(thread, given)
    assert walk(thread, given) is not walk(thread, replace(given))


def test_an_interrupt_is_no_answer():
    """Z3 catches it, and then does not know. One that falls into a destructor of Z3's is lost to Python: another follows."""
    harder = condition(x**5 + y**5 + tx**5 != n**5, x > 1, y > 1, tx > 99, n > 7)
    over = threading.Event()

    def interrupt():
        wait = 0.3
        while not over.wait(wait):
            os.kill(os.getpid(), signal.SIGINT)
            wait = 5.0

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        solve(harder, rlimit=10**9)
    over.set()
