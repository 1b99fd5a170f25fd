"""The command as its users type it: statuses, interrupts, names in any form, files of theirs, narrow terminals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from typer.testing import CliRunner

import lemmata
from lemmata import cli, record, warmup
from lemmata.bench import report
from lemmata.bench.timing import Case, Figure
from lemmata.operators import OPERATORS, Operator, find, names
from lemmata.proofs.engine.base.report import Report

ROOT = Path(__file__).parents[1]
FIGURE = Figure("op", "s", "lemmata", 2.0, 2.5, 0.01, 1.0, "memory", 9.0)


def invoke(*args: str, **environment: str) -> Any:
    return CliRunner().invoke(cli.app, args, env=environment)


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "src"), "XDG_CACHE_HOME": str(folder)}


def test_version() -> None:
    assert invoke("--version").output == f"lemmata {lemmata.__version__}\n"


def test_the_command_says_its_help_without_torch(tmp_path: Path) -> None:
    probe = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
    (tmp_path / "sitecustomize.py").write_text(probe)
    program = tmp_path / "program.py"  # is not the command: it has the operators at once
    program.write_text("import lemmata, sys; print(sys.modules['torch'].ops.lemmata.sinkhorn_fwd)")
    found = environment(tmp_path) | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")])}
    cases = (["-m", "lemmata", "--help"], False), (["-m", "lemmata", "--version"], False), ([str(program)], True)
    for args, loads in cases:
        done = subprocess.run([sys.executable, *args], env=found, capture_output=True, text=True, check=True)
        assert done.stdout
        assert done.stderr.endswith(f"{loads}\n")


def test_operators_go_by_their_names_and_by_those_of_their_functions() -> None:
    assert find("indexer_topk") is find("indexer_scores") is find("indexer")
    assert set(names()) == {*OPERATORS, *(f for operator in OPERATORS.values() for f in operator.functions)}
    with pytest.raises(
        ValueError,
        match=r"op: expected one of sinkhorn, mhc, mhc_pre, .*, topk, indexer, indexer_scores, .*, got 'muon'",
    ):
        find("muon")


@pytest.mark.parametrize("command", ["prove", "bench", "warmup"])
def test_an_unknown_operator_is_an_error_of_one_line(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: command == "warmup")
    done = invoke(command, "nosuch")
    assert done.exit_code == 2
    assert done.output == f"lemmata {command}: op: expected one of {', '.join(names())}, got 'nosuch'\n"


def test_a_command_that_lacks_a_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(ops: object, models: object) -> None:
        raise ModuleNotFoundError("No module named 'tilelang'", name="tilelang")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(warmup, "kernels", absent)
    done = invoke("warmup", "csa")
    assert (done.exit_code, done.output) == (
        2,
        "lemmata warmup: No module named 'tilelang': pip install 'lemmata[cuda]'\n",
    )


ABSENT = """
import importlib.metadata, sys
installed = importlib.metadata.version

def version(name):
    if name == {package!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return installed(name)

importlib.metadata.version = version
sys.modules[{package!r}] = None
sys.argv = {words}
from lemmata.cli import app
app()
"""


@pytest.mark.parametrize(
    ("package", "words", "extra"), [("tilelang", ["prove", "sinkhorn"], "proofs"), ("transformers", ["demo"], "hf")]
)
def test_what_lacks_its_packages_names_the_extra(package: str, words: list[str], extra: str, tmp_path: Path) -> None:
    code = ABSENT.format(package=package, words=["lemmata", *words])
    command, found = [sys.executable, "-c", code], environment(tmp_path)
    done = subprocess.run(command, env=found, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith(f"pip install 'lemmata[{extra}]'\n")
    assert len(done.stderr.splitlines()) == 1


def test_warmup_counts_what_it_builds_and_says_it_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def double() -> None: ...

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(warmup, "kernels", lambda ops, models: [(double, "a"), (double, "b")])
    monkeypatch.setattr(warmup, "side_by_side", lambda jobs, processes: iter(jobs))
    assert invoke("warmup").output == "[1/2] built double a\n[2/2] built double b\n"
    done = invoke("warmup", "--json")
    assert done.stderr == "[1/2] built double a\n[2/2] built double b\n"
    built = json.loads(done.stdout)["built"]
    assert built == [{"kernel": "double", "config": "a"}, {"kernel": "double", "config": "b"}]


DOUBLE = """
import tilelang.language as T, torch
from lemmata.reference.contract import Contract, Size, TensorSpec

@T.prim_func
def double(x: T.Tensor((n := T.dynamic("n"),), "float32"), y: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 128), threads=128) as block:
        i = block * 128 + T.get_thread_binding()
        if i < n:
            y[i] = x[i] + x[i]

x, y = (TensorSpec(name, "n", (torch.float32,)) for name in "xy")
contract = Contract("double", {"n": Size(0, 2**30)}, {}, (x,), (y,), probes=({"n": 1009}, {"n": 2**30}))
options = {"pass_configs": {"tl.disable_safe_memory_legalize": True}}

def reference(x):
    return 2 * x
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("tilelang")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from lemmata.proofs import tasks

    tasks._module.cache_clear()
    path = tmp_path / "double.py"
    path.write_text(DOUBLE)
    return path


def test_a_kernel_of_ones_own_is_proved_in_its_file(file: Path, tmp_path: Path) -> None:
    done = invoke("prove", f"{file}:double", "--junit", str(tmp_path / "verdicts.xml"))
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == f"{file}:double"
    for number, layer in enumerate(("L0", "L1", "L2", "range"), 1):
        assert any(line.startswith(f"[{number}/4] {layer:<7} proved") for line in lines)
    suite = ElementTree.parse(tmp_path / "verdicts.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("4", "0")
    some = invoke("prove", f"{file}:double", "--layer", "RANGE", "--layer", "l1")
    assert [x[:11].strip() for x in some.output.splitlines() if x.startswith("[")] == ["[1/2] L1", "[2/2] range"]


def test_a_wrong_kernel_of_ones_own_is_refuted(file: Path, tmp_path: Path) -> None:
    file.write_text(DOUBLE.replace("i < n:", "i <= n:"))
    done = invoke("prove", f"{file}:double", "--layer", "L0", "--junit", str(tmp_path / "verdicts.xml"))
    assert done.exit_code == 1
    assert "refuted bounds: read of x: 0 <= 128*bx + tx < n" in done.output
    (case,) = ElementTree.parse(tmp_path / "verdicts.xml").getroot()
    assert "read of x" in (case.findtext("failure") or "")


def test_what_a_file_asks_for_holds(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants, say: they are tried in shares, each against all layers together."""
    from lemmata.proofs import tasks
    from lemmata.proofs.engine.guards.mutation import untried

    def asked(kernel: Any, *_: object, **options: Any) -> Report:
        calls.append(options)
        number, count = options.get("share") or (0, 1)
        mutants = untried(kernel, 1)[number::count] if options["mutate"] else ()
        return Report("double", "double", {}, {}, (), mutants)

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(tasks, "verify", asked)
    invoke("prove", f"{file}:double", "--seed", "3")
    assert [call["layers"] for call in calls] == [("L0", "L1"), ("L2", "range")]
    assert all((call["mutate"], call["seed"]) == (False, 3) for call in calls)
    file.write_text(DOUBLE + "options |= {'mutate': True, 'seed': 5}\n")
    tasks._module.cache_clear()
    calls.clear()
    invoke("prove", f"{file}:double")
    shares = [call for call in calls if call["mutate"]]
    assert [call["share"] for call in shares] == [(i, len(shares)) for i in range(len(shares))]
    assert all((call["layers"], call["seed"]) == (("L0", "L1", "L2", "range"), 5) for call in shares)
    assert [call["layers"] for call in calls[: -len(shares)]] == [("L0", "L1"), ("L2", "range")]


DYING = """
import multiprocessing, os
from lemmata.proofs.engine.layers import verdicts
if multiprocessing.parent_process():
    verdicts._SHOWN["L1"] = lambda problem, name: os._exit(9)
"""


def test_a_process_that_dies_leaves_its_layer_unknown_and_the_others_are_kept(file: Path) -> None:
    file.write_text(DOUBLE + DYING)
    done = invoke("prove", f"{file}:double", "--timeout", "120", "--jobs", "2")
    assert done.exit_code == 1
    assert "unknown limit: the process ended with status 9, perhaps for want of memory" in done.output
    assert [line[6:13] for line in done.output.splitlines() if " proved  " in line] == ["L0     ", "L2     ", "range  "]


class Endless:
    """A part of a proof that does not end."""

    layers = ("L2", "range")

    def run(self) -> Report:
        while True:
            time.sleep(1)


def test_layers_that_take_too_long_are_unknown() -> None:
    pytest.importorskip("tilelang")
    from lemmata.proofs.processes import reports

    with reports([Endless()], 1, 0.1) as found:
        (report,) = found
    assert [str(layer.failures[0]) for layer in report.layers] == ["unknown limit: more than 0.1 s"] * 2
    assert not report.holds


def test_an_error_in_a_process_is_said_as_one_here(file: Path) -> None:
    file.write_text(DOUBLE + "options = {'arch': 'sm90'}\n")
    done = invoke("prove", f"{file}:double", "--timeout", "120", "--layer", "L0")
    assert (done.exit_code, len(done.output.splitlines())) == (2, 2)
    assert "lemmata prove: arch: expected sm_90a" in done.output


def test_what_a_file_accepts_may_be_left_aside(file: Path) -> None:
    guarded = DOUBLE.replace("if i < n:", "if True:").replace("options = ", "options = {} and ")
    file.write_text(guarded)
    assert "INCOMPLETE: neither modelled nor accepted: the compiler's guards in L0" in (
        said := invoke("prove", f"{file}:double").output
    ), said
    accepting = (
        "from lemmata.proofs.verify import Accepted as A\naccepted = [A(\"the compiler's guards\", ('L0',), 'ours')]\n"
    )
    file.write_text(guarded + accepting)
    tasks_cleared()
    assert (done := invoke("prove", f"{file}:double")).exit_code == 0, done.output
    file.write_text(guarded + "accepted = ['the guards']\n")
    tasks_cleared()
    done = invoke("prove", f"{file}:double")
    assert done.exit_code == 2
    assert "to hold objects of Accepted, got 'the guards'" in done.output


def test_a_verdict_is_kept_under_the_key_that_a_file_names(file: Path) -> None:
    file.write_text(DOUBLE + "options['cache_key'] = 'double'\n")
    asked = "prove", f"{file}:double", "--layer", "L0"
    assert [", kept" in invoke(*each).output for each in (asked, asked, (*asked, "--fresh"))] == [False, True, False]


def tasks_cleared() -> None:
    from lemmata.proofs import tasks

    tasks._module.cache_clear()


def test_what_is_no_file_or_names_no_kernel(file: Path) -> None:
    done = invoke("prove", "absent.py:double")
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1)
    assert "op: expected FILE.py:KERNEL of an existing file, got 'absent.py:double'" in done.output
    done = invoke("prove", str(file))
    assert (done.exit_code, done.output) == (
        2,
        f"lemmata prove: op: expected FILE.py:KERNEL of an existing file, got '{file}'\n",
    )
    done = invoke("prove", f"{file}:treble")
    assert done.exit_code == 2
    assert "expected the names treble and contract in" in done.output
    assert done.output.endswith("got no treble\n")
    done = invoke("prove", "sinkhorn", "--layer", "L9")
    assert (done.exit_code, done.output) == (
        2,
        "lemmata prove: layer: expected one of L0, L1, L2, range, lemmas, run, got 'L9'\n",
    )


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Case]:
    """An operator of two cases on a GPU that is not there."""
    cases = [Case("op", shape, 1, 1.0, "memory", None, {}) for shape in ("s", "t")]
    module = SimpleNamespace(compilations=lambda: [(len, ())], cases=lambda: iter(cases))
    monkeypatch.setitem(sys.modules, "lemmata.bench.fake", module)
    monkeypatch.setitem(OPERATORS, "fake", Operator("fake", "Fake", ("op",), ()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    gpu = SimpleNamespace(name="H200", major=9, minor=0, total_memory=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: gpu)
    monkeypatch.setattr(record, "_PACKAGE", tmp_path)
    monkeypatch.setattr(record, "kernel_digest", lambda op: "same")
    monkeypatch.setattr(report, "side_by_side", lambda jobs, processes: iter(()))
    monkeypatch.setattr(report, "measure", lambda case: [Figure(**{**FIGURE.__dict__, "shape": case.shape})])
    return cases


def test_an_interrupted_benchmark_has_recorded_the_cases_that_are_done(
    bench: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = report.measure

    def interrupted(case: Case) -> list[Figure]:
        if case.shape == "t":
            raise KeyboardInterrupt
        return right(case)

    monkeypatch.setattr(report, "measure", interrupted)
    done = invoke("bench", "op")
    assert done.exit_code == 130
    assert "[1/2] op s: lemmata 2.00 us" in done.output
    assert "interrupted; the cases that are done are in the record" in done.output
    (found,) = record.records()
    assert [figure["shape"] for figure in found.figures] == ["s"]


def test_a_benchmark_is_compared_with_an_older_record(bench: list[Case], tmp_path: Path) -> None:
    assert invoke("bench", "fake").exit_code == 0
    path = record.records()[0].path
    older = json.loads(path.read_text())
    assert [figure["shape"] for figure in older["figures"]] == ["s", "t"]
    older["figures"][0]["burst_us"] = 1.5
    (tmp_path / "older.json").write_text(json.dumps(older))
    done = invoke("bench", "fake", "--against", str(tmp_path / "older.json"))
    assert done.exit_code == 1
    assert "op s, burst: expected at most 5 % above the older 1.5 us, got 2.0 us" in done.output
    assert "op s, sustained: expected" not in done.output
    assert "op t, burst: expected" not in done.output
    assert invoke("bench", "fake", "--against", str(tmp_path / "older.json"), "--limit", "33").exit_code == 1
    assert invoke("bench", "fake", "--against", str(tmp_path / "older.json"), "--limit", "34").exit_code == 0
    older["device"]["name"] = "H100"
    (tmp_path / "older.json").write_text(json.dumps(older))
    done = invoke("bench", "fake", "--against", str(tmp_path / "older.json"))
    assert done.exit_code == 2
    assert "expected a record of this device, H200, got one of H100" in done.output


def test_a_benchmark_in_json_says_on_stderr_how_far_it_is(bench: list[Case]) -> None:
    done = invoke("bench", "fake", "--json")
    assert [figure["shape"] for figure in json.loads(done.stdout)] == ["s", "t"]
    assert [line.partition(":")[0] for line in done.stderr.splitlines()[1:]] == ["[1/2] op s", "[2/2] op t"]


def test_a_benchmark_is_drawn(bench: list[Case], tmp_path: Path) -> None:
    file = tmp_path / "times.svg"
    assert invoke("bench", "fake", "--plot", str(file)).exit_code == 0
    drawn = file.read_text()
    ElementTree.fromstring(drawn)
    assert drawn.count(f"{FIGURE.burst_us:.3g} / {FIGURE.sustained_us:.3g} us") == len(bench)
    done = invoke("bench", "fake", "--plot", str(tmp_path / "absent" / "times.svg"))
    assert done.exit_code == 2
    assert "expected a path in an existing folder" in done.output


def test_what_is_shown_fits_sixty_columns() -> None:
    done = invoke("info", COLUMNS="60")
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= 60
    assert "…" not in done.output
    assert max(map(len, invoke("info").output.splitlines())) > 60, "in a file a line is as long as it must be"


def test_a_demo_fits_sixty_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    from lemmata import demo

    numbers = dict.fromkeys(demo.Phase.__dataclass_fields__, 10)
    numbers |= {"difference": 1.5e-1, "bound": 3.3e-1, "seconds_untouched": 1.25, "seconds_swapped": 1.5}
    words = {"name": "generate", "dtype": "bfloat16", "reasons": ("a reason",), "first_token_apart": None}
    maps = {"calls": {"sinkhorn": 40}, "devices": {"sinkhorn": "cpu"}, "paths": {"indexer_scores, topk": 2}}
    phase = demo.Phase(**{**numbers, **words, **maps})  # type: ignore[arg-type]
    path = "/a/path/of/more/than/sixty/characters/of/which/none/may/be/lost/python3.12/topics.py"
    apart = {"untouched": 3.1e-1, "swapped": 5.1e-6}
    report = demo.Report(path, "cpu", {"torch": "2.13.0"}, {"sinkhorn": ("a",)}, {}, (phase,) * 2, apart, ())
    monkeypatch.setenv("COLUMNS", "60")
    demo.print_report(report)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 60
    assert "…" not in said
    assert re.search(r"^generate +1\.5e-01 +3\.3e-01 +10 +10 +10 +1\.25 s +1\.50 s", said, re.MULTILINE), said
