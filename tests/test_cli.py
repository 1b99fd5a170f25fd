import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import lemmata
from lemmata import demo, digest, info, record
from lemmata.cli import app
from lemmata.integrations import originals
from lemmata.integrations import transformers as integration
from lemmata.operators import OPERATORS, Operator
from lemmata.reference.sinkhorn import sinkhorn as reference

SHORT = ["demo", "--length", "48", "--steps", "4"]
SHORTEST = ["demo", "--length", "16", "--steps", "1"]
RELEASE = torch.__version__.partition("+")[0]  # the build, as +cu130, is not in the metadata of an index's wheels


def invoke(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


needs_transformers = pytest.mark.skipif(record.installed("transformers") == "not installed", reason="absent")


@needs_transformers
def test_demo_on_the_default_text():
    threads = torch.get_num_threads()
    result = invoke(*SHORT)
    assert result.exit_code == 0, result.output
    for words in (
        "pydoc_data",
        "mhc_pre in 8 modules, first model.layers.0.attn_hc",
        "mhc_post in 4 modules, first model.layers.0",
        "mhc_head in 1 modules, first model.hc_head",
        "compressor in 3 modules, first model.layers.1.self_attn.compressor",
        "indexer in 2 modules, first model.layers.1.self_attn.compressor.indexer",
        "attention in 4 modules, first model.layers.0.self_attn",
        "reference on cpu: sinkhorn, topk, mhc_pre, mhc_post, mhc_head,",
        "own: hidden states in torch.float32, where the operators take bfloat16",
        "hca by rows",
        "decode against prefill, float32: logits",
        "agrees",
    ):
        assert words in result.output
    assert "…" not in result.output  # nothing is cut off a terminal
    assert all(len(line.rstrip()) <= 80 for line in result.output.splitlines() if not line.startswith("text"))
    assert torch.get_num_threads() == threads


@needs_transformers
def test_demo_reads_the_file_and_prints_json(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(bytes(range(256)))
    result = invoke(*SHORT, text, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["text"] == str(text)
    ops = {op for called in (demo.CALLED, demo.PADDED) for ops in called.values() for op in ops}
    assert report["backends"] == dict.fromkeys(ops, "reference on cpu")
    modules = {"mhc_pre": 8, "mhc_post": 4, "mhc_head": 1, "compressor": 3, "indexer": 2, "attention": 4}
    assert {op: len(names) for op, names in report["swapped"].items()} == modules
    assert [phase["name"] for phase in report["phases"]] == ["prefill", "decode", "generate", "padded"] * 2
    assert [phase["dtype"] for phase in report["phases"]] == ["float32"] * 4 + ["bfloat16"] * 4
    assert report["phases"][-1]["paths"] == {
        "mhc_pre": 8,
        "mhc_post": 4,
        "mhc_head": 1,
        "compress": 3,
        "indexer_scores, topk": 2,
        "swa by rows": 1,
        "csa by rows": 2,
        "hca by rows": 1,
    }
    assert report["phases"][0]["paths"] == {"sinkhorn": 8, "topk": 2, "own": 4 + 1 + 3 + 4}
    assert report["phases"][0]["reasons"] == [
        "hidden states in torch.float32, where the operators take bfloat16",
        "streams in torch.float32, where the operator takes bfloat16",
        "values in torch.float32, where entries are rounded to bfloat16",
    ]
    assert report["failures"] == []


@needs_transformers
def test_demo_fails_on_a_wrong_operator(monkeypatch):
    right = lemmata.sinkhorn
    monkeypatch.setattr(lemmata, "sinkhorn", lambda x, **kw: right(x, **kw).mT)
    result = invoke(*SHORTEST)
    assert result.exit_code == 1
    for phase in ("prefill", "decode", "generate"):
        assert f"FAILED {phase} in float32: logits differ by" in result.output


@needs_transformers
def test_demo_fails_when_an_operator_is_not_called(monkeypatch):
    monkeypatch.setattr(lemmata, "sinkhorn", reference)  # the same numbers, without the operator
    result = invoke(*SHORTEST, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["failures"][0] == "prefill in float32: sinkhorn was never called"


@needs_transformers
def test_demo_fails_when_nothing_is_swapped(monkeypatch):
    monkeypatch.setattr(integration, "SWAPS", ())
    result = invoke(*SHORTEST)
    assert result.exit_code == 1
    assert "FAILED nothing was swapped" in result.output


@needs_transformers
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--length", "64", "{short}"], "text: expected at least 128 bytes, got 127"),
        (["--steps", "256"], "steps: expected a value in [1, 255], got 256"),
        (["--steps", "0"], "greater than or equal to 1"),
        (["/nonexistent"], "does not exist"),
    ],
)
def test_demo_refuses_bad_arguments(tmp_path, args, message):
    short = tmp_path / "short"
    short.write_bytes(bytes(127))
    result = invoke("demo", *(arg.format(short=short) for arg in args))
    assert result.exit_code == 2
    assert message in result.output


def test_demo_refuses_an_unknown_transformers(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(originals, "FUNCTIONS", dict.fromkeys(originals.FUNCTIONS, ()))
    originals._state.cache_clear()
    result = invoke(*SHORT)
    assert result.exit_code == 2
    assert result.output.startswith("lemmata demo: transformers: expected the DeepseekV4HyperConnection.forward of")
    assert result.output.endswith(": pip install 'lemmata[hf]'\n")
    assert len(result.output.splitlines()) == 1
    originals._state.cache_clear()


def test_a_report_holds_only_within_the_bound():
    phase = dict.fromkeys(demo.Phase.__dataclass_fields__, 0)
    phase |= {
        "name": "p",
        "dtype": "float32",
        "calls": {"sinkhorn": 1, "topk": 1},
        "difference": 1.0,
        "bound": 1.0,
        "choices": 1000,
    }
    phase |= {"choices_tied": 500, "choices_moved": 10, "first_token_apart": None}

    def failures(**change):
        return list(demo._failures(demo.Phase(**phase | change)))

    assert failures() == []
    assert failures(difference=1.1) == ["p in float32: logits differ by 1.1e+00, more than 1.0e+00"]
    assert failures(difference=float("nan")) == ["p in float32: logits differ by nan, more than 1.0e+00"]
    assert failures(calls={"topk": 1}) == ["p in float32: sinkhorn was never called"]
    never = [f"p in bfloat16: {op} was never called" for op in demo.CALLED[torch.bfloat16]]
    assert failures(dtype="bfloat16") == never
    assert failures(choices_moved=11) == ["p in float32: 11 of 1000 choices moved, near ties explain 10"]
    assert failures(choices_moved=30, choices_inexact=10) == []
    assert failures(choices_moved=31, choices_inexact=10) != []
    assert failures(choices_moved=11, first_token_apart=3) == []


def test_info():
    result = invoke("info")
    assert result.exit_code == 0
    for word in ("lemmata", lemmata.__version__, RELEASE, "z3-solver", "cvc5", "cache", "sinkhorn", "record"):
        assert word in result.output


def test_info_as_json():
    result = invoke("info", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["backends"]["sinkhorn"]["cpu"] == "reference"
    assert found["versions"]["torch"].startswith(RELEASE)


def test_info_says_what_is_absent(monkeypatch):
    monkeypatch.setattr(info, "_PACKAGES", ("no-such-package",))
    assert info.gather().versions["no-such-package"] == "not installed"


@pytest.mark.parametrize(
    ("available", "capability", "tilelang", "expected"),
    [
        (False, None, None, "none: torch finds no CUDA device"),
        (True, (8, 0), "0.1.15", "none: expected compute capability (9, 0), got (8, 0)"),
        (True, (9, 0), "not installed", "none: tilelang is not installed: pip install 'lemmata[cuda]'"),
        (True, (9, 0), "0.1.15", "tilelang"),
    ],
)
def test_the_cuda_backend_or_why_there_is_none(monkeypatch, available, capability, tilelang, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(info, "installed", lambda package: tilelang)
    assert info.cuda_backend() == expected


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with one operator and no record."""
    for folder in ("kernels", "bench/results"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "kernels" / "build.py").write_text("pass\n")
    (tmp_path / "kernels" / "op.py").write_text("pass\n")
    for module in (record, digest):
        monkeypatch.setattr(module, "_PACKAGE", tmp_path)
    real = dict(OPERATORS)
    OPERATORS.clear()
    OPERATORS["op"] = Operator("op", "Op", ("op", "op_other"), ("op:factory",))
    yield tmp_path
    OPERATORS.clear()
    OPERATORS.update(real)


def write(package, **kernels):
    content = {"device": {"name": "H200"}, "versions": {}, "kernels": kernels, "tests": {}, "figures": []}
    (package / "bench" / "results" / "h200.json").write_text(json.dumps(content))


def test_a_record_is_stale_when_its_kernel_changes(package):
    assert info.gather().records == {}
    write(package, op=record.kernel_digest("op"))
    assert info.gather().records == {"h200": {"op": "of the present kernel"}}
    (package / "kernels" / "op.py").write_text("from .build import build\n")
    assert info.gather().records == {"h200": {"op": "kernel changed since"}}
    write(package, op=record.kernel_digest("op"))
    (package / "kernels" / "build.py").write_text("flags = 1\n")
    assert info.gather().records == {"h200": {"op": "kernel changed since"}}
    write(package)
    assert info.gather().records == {"h200": {"op": "not recorded"}}


def test_a_record_keeps_what_is_of_the_same_kernels(package, monkeypatch):
    with pytest.raises(RuntimeError, match="record: expected a CUDA device, got none"):
        record.update(tests={})
    gpu = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: gpu)
    path = record.update(tests={"op[a]": "passed", "b": "failed"}, figures=[{"op": "op", "us": 1}])
    assert path == package / "bench" / "results" / "nvidia-h200.json"
    record.update(tests={"b": "passed"}, figures=[{"op": "op_other", "us": 2}])
    record.update(figures=[{"op": "op", "us": 3}])
    (found,) = record.records()
    assert found.tests == {"op[a]": "passed", "b": "passed"}
    of = {"kernels": {"op": record.kernel_digest("op")}}
    assert found.figures == [{"op": "op_other", "us": 2} | of, {"op": "op", "us": 3} | of]
    assert not any(map(found.earlier, found.figures))
    assert not found.stale("op")
    record.update(tests={"op[other]": "passed"})
    (package / "kernels" / "other.py").write_text("pass\n")
    OPERATORS["other"] = Operator("other", "Other", ("other",), ("other:factory",))  # whose kernel no test has run
    record.update(tests={})
    (found,) = record.records()
    assert (found.tests, found.kernels.keys()) == ({"op[a]": "passed"}, {"op", "other"})
    record.update(tests={"b": "passed", "other": "passed", "op[other]": "passed"})
    (package / "kernels" / "op.py").write_text("from .build import build\n")
    record.update(tests={"op": "passed"})
    (found,) = record.records()
    assert found.tests == {"other": "passed", "op": "passed"}
    assert [figure["us"] for figure in found.figures if found.earlier(figure)] == [2, 3]
    assert found.behind("op")
    assert info._state(found, "op") == "tests of the present kernel, figures of an earlier one"


def test_a_package_that_is_absent_takes_nothing_from_a_record(package, monkeypatch):
    gpu = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: gpu)
    there = {"tilelang": "1"}
    monkeypatch.setattr(record, "installed", lambda name: there.get(name, "not installed"))
    record.update(tests={"op[a]": "passed"})
    there["sgl-flash-mla"] = "2"
    record.update(tests={"op[b]": "passed"})
    del there["sgl-flash-mla"]
    record.update(tests={"op[c]": "passed"})
    (found,) = record.records()
    assert found.tests.keys() == {"op[a]", "op[b]", "op[c]"}
    assert found.versions["sgl-flash-mla"] == "2"
    there["tilelang"] = "3"
    record.update(tests={"op[d]": "passed"})
    (found,) = record.records()
    assert found.tests.keys() == {"op[d]"}


def test_a_long_record_reads_the_sources_no_more_often(package, monkeypatch):
    gpu = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: gpu)
    asked, counted = [], record.kernel_digest
    monkeypatch.setattr(record, "kernel_digest", lambda op: asked.append(op) or counted(op))
    counts = []
    for tests in (1, 1000):
        record.update(tests={f"op[{i}]": "passed" for i in range(tests)})
        asked.clear()
        record.update(tests={})
        counts.append(len(asked))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_file_that_is_no_record(package, content):
    (package / "bench" / "results" / "h200.json").write_text(content)
    result = invoke("info")
    assert result.exit_code == 1
    assert "h200.json: expected a GPU record, got" in result.output
    assert len(result.output.splitlines()) == 1


def test_the_digest_of_no_kernel():
    with pytest.raises(ValueError, match=r"op: expected one of .*sinkhorn.*, got 'softmax'"):
        record.kernel_digest("softmax")


@pytest.mark.parametrize("module", ["lemmata", "lemmata.cli"])
def test_a_module_is_the_command(module: str) -> None:
    command = [sys.executable, "-m", module, "prove", "nosuch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("lemmata prove: op: expected")


def test_an_interrupted_proof_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(request: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("lemmata.proofs.command.run", interrupted)
    done = CliRunner().invoke(app, ["prove", "sinkhorn"])
    assert done.exit_code == 130
    assert "the verdicts that are printed are kept" in done.output


def test_help_imports_nothing_heavy():
    code = """if True:
        import sys
        import lemmata.integrations.transformers
        from typer.testing import CliRunner
        from lemmata.cli import app
        result = CliRunner().invoke(app, ["--help"])
        assert result.exit_code == 0 and "demo" in result.output and "info" in result.output
        assert not {"tilelang", "z3", "cvc5", "transformers"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(p for p in sys.path if p)})
