"""The whole of ``verify`` and ``lemmata prove``: our kernels, kernels of others, and proofs that must be refused."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from typing import Any

import pytest
import tilelang.language as T
import torch
from typer.testing import CliRunner

from claims import proofs
from lemmata.cli import app
from lemmata.kernels.build import PASS_CONFIGS
from lemmata.kernels.sinkhorn import Config, sinkhorn_fwd
from lemmata.operators import names
from lemmata.proofs import command, tasks, verify
from lemmata.proofs.engine.base.report import Accepted, Report
from lemmata.proofs.engine.execution import symbolic
from lemmata.proofs.engine.execution.invariants import Ghost, Invariant
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.forms.extended import Value
from lemmata.proofs.engine.layers.comparison import symbolic_input
from lemmata.proofs.engine.reference.recurrences import cutting, recurrence, resolve
from lemmata.proofs.engine.reference.symbolic_torch import SymbolicTensor, tensor
from lemmata.proofs.engine.semantics.semantics import serial_loops
from lemmata.proofs.suite import Proof
from lemmata.reference.contract import Contract, Size, TensorSpec
from lemmata.reference.sinkhorn import FORWARD, sinkhorn
from verdicts import opened

STATICS = {"n": 4, "iterations": 20, "eps": 1e-6}
FEW = 2  # kernels, of the 18 of sinkhorn
exhaustive = pytest.mark.exhaustive


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def few(monkeypatch):  # type: ignore[no-untyped-def]
    """The command proves the first kernels of an operator only."""
    monkeypatch.setattr(tasks, "proofs", lambda op: itertools.islice(proofs(op), FEW))
    tasks._made.cache_clear()
    yield
    tasks._made.cache_clear()


def prove(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["prove", *arguments])
    return done.exit_code, done.output


def sinkhorn_proofs() -> list[Any]:
    """All of them: at each run the one that ships, the smallest, and the most iterations; the others by make test-all."""
    tried = {(4, 20), (2, 20), (8, 100)}
    return [
        pytest.param(p, id=p.name, marks=[] if (p.statics["n"], p.statics["iterations"]) in tried else exhaustive)
        for p in proofs("sinkhorn")
    ]


@pytest.mark.parametrize("proof", sinkhorn_proofs())
def test_every_kernel_that_ships_is_proved(proof) -> None:  # type: ignore[no-untyped-def]
    report = proof.run()
    assert report.holds, "\n".join(map(str, report.failures))
    names = [layer.name for layer in report.layers]
    assert names[:2] == ["L0", "L1"]
    assert proof.compare is None or names[2:4] == ["L2", "range"]
    assert all(layer.guards > 20 for layer in report.layers if layer.name in ("L0", "L1"))
    again = proof.run()
    assert again.cached
    assert replace(again, cached=False) == report


def test_another_kernel_under_the_same_name_is_not_found_in_the_cache() -> None:
    def ask(config: Config, **more: Any) -> Report:
        question = {"pass_configs": PASS_CONFIGS, "layers": ["L1"], "cache_key": "mine"} | more
        return verify(sinkhorn_fwd(config), FORWARD, statics=STATICS, **question)

    assert not ask(Config()).cached
    assert ask(Config()).cached
    assert not ask(Config(threads=64)).cached
    assert not ask(Config(), cache_key="another reference").cached
    assert not ask(Config(), cache_key=None).cached
    assert not ask(Config(), pass_configs={}).cached
    assert not ask(Config(), layers=["L0"]).cached
    assert not ask(Config(), seed=1).cached


HOLLOW = {
    "contradictory sizes": replace(FORWARD, sizes={"count": Size(5, 4)}),
    "over-strong sizes": replace(FORWARD, sizes={"count": Size(1, 1)}),
}


@pytest.mark.parametrize("name", HOLLOW)
def test_a_hollow_contract_is_refused(name: str) -> None:
    report = verify(sinkhorn_fwd(Config()), HOLLOW[name], statics=STATICS, pass_configs=PASS_CONFIGS, layers=["L0"])
    assert not report.holds
    assert {f.kind for f in report.failures} == {"hollow"}, "without the guards every condition is proved"
    assert report.layers[0].proved == report.layers[0].conditions


def test_a_contract_without_probes_is_refused() -> None:
    with pytest.raises(ValueError, match="expected two probe sizes"):
        verify(sinkhorn_fwd(Config()), replace(FORWARD, probes=()), statics=STATICS)


def test_unknown_layers_and_operators_are_named() -> None:
    with pytest.raises(ValueError, match="layers: expected some of"):
        verify(sinkhorn_fwd(Config()), FORWARD, statics=STATICS, layers=["L9"])
    assert prove("softmax") == (2, f"lemmata prove: op: expected one of {', '.join(names())}, got 'softmax'\n")


def test_a_counterexample_is_in_the_kernels_own_terms() -> None:
    file = opened("bounds/copy_off_by_one")
    report = verify(file.kernel, file.CONTRACT, pass_configs=PASS_CONFIGS, layers=["L0"])
    (failure, *_) = [f for f in report.failures if f.kind == "bounds"]
    assert failure.counterexample
    assert set(file.CONTRACT.sizes) <= set(failure.counterexample)
    assert re.search(r"\(copy_off_by_one\.py:\d+\)", failure.site)
    assert any("thread" in name or name.startswith("tx") for name in failure.counterexample)


def tile_kernels_problem(eps: float = 1e-6):  # type: ignore[no-untyped-def]
    """DeepSeek's kernel as its wheel ships it, a contract of a few lines, and our reference in lock step on a block's tile."""
    factory = pytest.importorskip("tile_kernels.mhc.sinkhorn_cuda").mhc_sinkhorn_fwd_cuda
    tokens = T.dynamic("num_tokens")
    kernel = factory.get_tir(
        T.Tensor((tokens, 4, 4), "float32"), T.Tensor((tokens, 4, 4), "float32"), 20, eps, 8, False
    )
    x, y = (TensorSpec(b.name, "num_tokens 4 4", (torch.float32,)) for b in kernel.buffer_map.values())
    most = 2**31 - 8
    contract = Contract(
        "mhc", {"num_tokens": Size(0, most)}, {}, (x,), (y,), ({"num_tokens": 1009}, {"num_tokens": most})
    )

    def compare(kernel, facts):  # type: ignore[no-untyped-def]
        count, first = nf.variable("num_tokens"), 8 * symbolic.block()
        tokens = symbolic_input(x.name, (count, 4, 4))

        def tile(i, j, k):  # type: ignore[no-untyped-def]
            inside = nf.indicator("ge", count - 1 - first - i, integer=True)  # T.copy reads 0 beyond the end
            return Value(inside * tokens.at(first + i, j, k))

        with cutting() as cuts:
            out = tensor(sinkhorn(SymbolicTensor((nf.form(8), nf.form(4), nf.form(4)), tile)))  # type: ignore[arg-type]
        ghost = Ghost(recurrence("x", cuts[1::2], cuts), lambda s, i, j, k: s["comb_frag"](i, j, k))
        invariant = Invariant(free=("comb_frag",), positive=("comb_frag",), ghosts=(ghost,))
        (loop,) = serial_loops(kernel).values()
        done = symbolic.execute(kernel, invariants={loop: invariant}, facts=facts)
        last = {cuts[-1].name: lambda *i: done.ghosts["x"](nf.form(19), *i)}
        wanted = done.compare(y.name, lambda t, j, k: resolve(out.at(t - first, j, k), cuts, last))
        return done, [*done.equations, *wanted]

    return kernel, contract, compare


def test_tilekernels_sinkhorn_is_proved() -> None:
    kernel, contract, compare = tile_kernels_problem()
    report = verify(kernel, contract, compare=compare, pass_configs={"tl.disable_warp_specialized": True})
    assert report.holds, "\n".join(map(str, report.failures))
    assert [layer.name for layer in report.layers] == ["L0", "L1", "L2", "range"]
    assert any("AllReduce" in name for name in report.layers[1].unmodelled), "what is not modelled must be said"


def test_tilekernels_sinkhorn_with_another_eps_is_refuted() -> None:
    kernel, contract, compare = tile_kernels_problem(eps=1e-5)
    report = verify(kernel, contract, compare=compare, layers=["L2"])
    assert not report.holds
    assert {f.kind for f in report.failures} == {"equivalence"}


@pytest.mark.usefixtures("few")
def test_prove_prints_a_line_for_each_layer_and_exits_zero() -> None:
    status, output = prove("sinkhorn", "--layer", "L1")
    assert status == 0
    assert output.count("L1      proved") == FEW
    assert f"{FEW} of {FEW} kernels proved" in output


@pytest.mark.usefixtures("few")
def test_prove_json_and_smt(tmp_path) -> None:  # type: ignore[no-untyped-def]
    done = CliRunner().invoke(app, ["prove", "sinkhorn", "--layer", "L1", "--json", "--smt", str(tmp_path / "smt")])
    assert done.exit_code == 0
    assert [line[:5] for line in done.stderr.splitlines() if line.startswith("[")] == ["[1/2]", "[2/2]"]
    content = json.loads(done.stdout)
    assert content["holds"]
    assert len(content["kernels"]) == FEW
    scripts = list((tmp_path / "smt").rglob("*.smt2"))
    assert len(scripts) == sum(k["layers"][0]["conditions"] for k in content["kernels"])
    assert all("(check-sat)" in s.read_text() for s in scripts)


@pytest.mark.parametrize("n", [2, pytest.param(4, marks=exhaustive)])
def test_cvc5_confirms_every_condition_of_the_shipped_kernels(n: int) -> None:
    both = [proof for proof in proofs("sinkhorn") if proof.statics["n"] == n]
    assert len(both) == 2
    for proof in both:
        report = proof.run(solver="cvc5")
        assert [layer.name for layer in report.layers][:4] == ["L0", "L1", "L2", "range"]
        assert report.holds, "\n".join(map(str, report.failures))


@pytest.mark.usefixtures("few")
def test_two_kernels_at_a_time_print_the_same_lines() -> None:
    """But for the seconds, which are of the clock."""
    one, two = (prove("sinkhorn", "--layer", "L1", "--fresh", "--jobs", jobs) for jobs in ("1", "2"))
    assert [re.sub(r" +[\d.]+ s", "", text) for _, text in (one, two)] == [re.sub(r" +[\d.]+ s", "", one[1])] * 2


def test_an_unwritable_cache_is_named(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "lemmata").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    status, output = prove("sinkhorn", "--layer", "L1")
    assert status == 2
    assert "expected to keep verdicts in" in output
    assert "--fresh keeps none" in output


def test_what_a_verdict_leaves_aside_fails_the_command_unless_it_is_accepted(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    file = opened("races/atomic_right")
    proof = Proof("topk", file.kernel, file.CONTRACT, {}, None, file.OPTIONS["pass_configs"], layers=("L1",))
    monkeypatch.setattr(tasks, "proofs", lambda op: [proof])
    tasks._made.cache_clear()
    report = proof.run()
    assert report.holds
    assert not report.complete
    status, output = prove("topk")
    assert status == 1
    assert "INCOMPLETE: neither modelled nor accepted: tl.atomic_add_elem_op in L1" in output
    monkeypatch.setattr(command, "ACCEPTED", [Accepted("atomic_add_elem_op", ("L1",), "integers add up in any order")])
    assert prove("topk")[0] == 0
    tasks._made.cache_clear()


def test_a_kernel_is_made_once_for_all_parts_of_all_proofs(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    made: list[int] = []
    monkeypatch.setattr(tasks, "proofs", lambda op: (made.append(n) or n for n in range(9)))
    tasks._made.cache_clear()
    assert [tasks._shipped("sinkhorn", n) for n in (0, 0, 3, 1, 4)] == [0, 0, 3, 1, 4]
    assert made == [0, 1, 2, 3, 4]
    tasks._made.cache_clear()


def test_a_report_survives_json() -> None:
    report = verify(sinkhorn_fwd(Config()), FORWARD, statics=STATICS, pass_configs=PASS_CONFIGS, layers=["L1"])
    assert Report.from_json(report.to_json()) == report
