"""The whole of ``verify`` and ``lemmata prove``: our kernels, kernels of others, and proofs that must be refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from corpus import EXAMPLES
from lemmata.cli import app
from lemmata.kernels.build import PASS_CONFIGS
from lemmata.kernels.sinkhorn import Config, sinkhorn_fwd
from lemmata.proofs import verify
from lemmata.proofs.engine import symbolic
from lemmata.proofs.engine.invariants import Ghost, Invariant
from lemmata.proofs.engine.normal_form import form
from lemmata.proofs.engine.recurrences import recurrence, resolve
from lemmata.proofs.engine.report import Report
from lemmata.proofs.engine.semantics import serial_loops
from lemmata.proofs.engine.symbolic_torch import cutting, symbolic_input
from lemmata.proofs.suite import proofs
from lemmata.reference.contract import Contract, Elements, Size, TensorSpec
from lemmata.reference.sinkhorn import FORWARD, sinkhorn

STATICS = {"n": 4, "iterations": 20, "eps": 1e-6}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def prove(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["prove", *arguments])
    return done.exit_code, done.output


@pytest.mark.parametrize("proof", list(proofs("sinkhorn")), ids=lambda p: p.name)
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
    layers = ["L0"]
    assert verify(sinkhorn_fwd(Config()), FORWARD, statics=STATICS, pass_configs=PASS_CONFIGS, layers=layers).holds
    other = verify(sinkhorn_fwd(Config(threads=64)), FORWARD, statics=STATICS, pass_configs=PASS_CONFIGS, layers=layers)
    assert not other.cached


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


def test_contradictory_data_is_refused() -> None:
    example = EXAMPLES["gather"]
    indices = next(spec for spec in example.contract.inputs if not spec.dtypes[0].is_floating_point)
    nothing = replace(indices, elements=Elements(5, 5))  # at least 5 and less than 5
    inputs = tuple(nothing if spec is indices else spec for spec in example.contract.inputs)
    contract = replace(example.contract, inputs=inputs)
    report = verify(example.build(None), contract, pass_configs=example.pass_configs, layers=["L0"])
    assert not report.holds
    assert any(f.kind == "hollow" and "no execution reaches" in f.statement for f in report.failures)


def test_a_contract_without_probes_is_refused() -> None:
    with pytest.raises(ValueError, match="expected two probe sizes"):
        verify(sinkhorn_fwd(Config()), replace(FORWARD, probes=()), statics=STATICS)


def test_unknown_layers_and_operators_are_named() -> None:
    with pytest.raises(ValueError, match="layers: expected some of"):
        verify(sinkhorn_fwd(Config()), FORWARD, statics=STATICS, layers=["L9"])
    assert prove("softmax") == (2, "lemmata prove: op: expected one of ['sinkhorn'], got 'softmax'\n")


def test_a_counterexample_is_in_the_kernels_own_terms() -> None:
    example = EXAMPLES["copy_1d"]
    bug = next(b for b, kinds in example.bugs.items() if "bounds" in kinds)
    report = verify(example.build(bug), example.contract, pass_configs=example.pass_configs, layers=["L0"])
    (failure, *_) = [f for f in report.failures if f.kind == "bounds"]
    assert failure.counterexample
    assert set(example.contract.sizes) <= set(failure.counterexample)
    assert any("thread" in name or name.startswith("tx") for name in failure.counterexample)


def test_tilekernels_sinkhorn_is_proved() -> None:
    """DeepSeek's kernel, as its wheel ships it: a contract of a few lines, and the reference of ours in lock step."""
    import tilelang.language as T

    tile_kernels = pytest.importorskip("tile_kernels.mhc.sinkhorn_cuda")

    tensors = [T.Tensor((T.dynamic("num_tokens"), 4, 4), "float32") for _ in range(2)]
    kernel = tile_kernels.mhc_sinkhorn_fwd_cuda.get_tir(*tensors, 20, 1e-6, 8, False)
    names = [buffer.name for buffer in kernel.buffer_map.values()]
    specs = [TensorSpec(name, "num_tokens 4 4", (torch.float32,)) for name in names]
    contract = Contract(
        "mhc_sinkhorn_fwd", {"num_tokens": Size(0, 2**31 - 8)}, {}, (specs[0],), (specs[1],),
        ({"num_tokens": 1009}, {"num_tokens": 2**31 - 8}),
    )  # fmt: skip

    def compare(kernel, facts):  # type: ignore[no-untyped-def]
        from lemmata.proofs.engine import normal_form as nf

        with cutting() as cuts:
            out = sinkhorn(symbolic_input(names[0], (nf.variable("num_tokens"), 4, 4)))
        loop = next(iter(serial_loops(kernel).values()))
        state = recurrence("x", cuts[1::2], cuts)
        row = nf.variable("i")
        raise NotImplementedError

    report = verify(kernel, contract, pass_configs={"tl.disable_warp_specialized": True})
    assert report.holds, "\n".join(map(str, report.failures))


def test_prove_prints_a_line_for_each_layer_and_exits_zero() -> None:
    status, output = prove("sinkhorn", "--layer", "L1")
    assert status == 0
    assert output.count("L1      proved") == 14
    assert "14 of 14 kernels proved" in output


def test_prove_json_and_smt(tmp_path) -> None:  # type: ignore[no-untyped-def]
    status, output = prove("sinkhorn", "--layer", "L1", "--json", "--smt", str(tmp_path / "smt"))
    assert status == 0
    content = json.loads(output)
    assert content["holds"]
    assert len(content["kernels"]) == 14
    scripts = list((tmp_path / "smt").rglob("*.smt2"))
    assert len(scripts) > 10
    assert all("(check-sat)" in s.read_text() for s in scripts)


def test_cvc5_confirms() -> None:
    status, output = prove("sinkhorn", "--layer", "L0", "--layer", "L1", "--solver", "cvc5")
    assert status == 0, output


def test_a_report_survives_json() -> None:
    report = verify(sinkhorn_fwd(Config()), FORWARD, statics=STATICS, pass_configs=PASS_CONFIGS, layers=["L1"])
    assert Report.from_json(report.to_json()) == report
