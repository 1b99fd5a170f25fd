"""The examples run on a CPU, say what they should, and are short."""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from pages import ROOT

EXAMPLES = ROOT / "examples"
SAID = {
    "patch_a_model": ("self_attn +swa", "compressor.indexer +indexer_topk", "generated 8 tokens"),
    "train_a_layer": ("step 20: loss", r"loss from [23]\.\d+ to 0\.[01]\d+"),
    "train": ("by compress, csa, hca, indexer_topk, mhc_head, mhc_post, mhc_pre, swa", "step 0: loss 6"),
    "plot_a_loss": ("drew 300 losses in loss.svg",),
    "serve_a_batch": ("8 decode steps of 2 sequences equal what prefill gave",),
    "prove_your_kernel/scale": (r"L0 +proved  (\d+)/\1 ", r"L1 +proved  (\d+)/\1 ", "L2 +proved  1/1 "),
    "add_an_operator": (r"\[-0.5, 0.0, 0.75\] \[0.25, 1.0, 0.0625\]", "softsign: x: expected float32, got float64"),
}
ARGUMENTS = {"train": ["--steps", "1"], "plot_a_loss": [str(ROOT / "docs" / "losses.json"), "loss.svg"]}
NEEDS = {
    "train": "transformers",
    "patch_a_model": "transformers",
    "prove_your_kernel/scale": "tilelang",
    "tour": "tilelang",
}


def test_every_example_is_run_and_short() -> None:
    files = {path for path in EXAMPLES.rglob("*.py") if not path.name.startswith("test_")}
    assert {path.relative_to(EXAMPLES).with_suffix("").as_posix() for path in files} == set(SAID)
    assert all(len(path.read_text().splitlines()) <= 60 for path in files)


@pytest.mark.parametrize("name", SAID)
def test_an_example_runs(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where some write
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pytest.importorskip(NEEDS.get(name, "torch"))
    path = str(EXAMPLES / f"{name}.py")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [path, *ARGUMENTS.get(name, [])])
    with contextlib.nullcontext() if name != "prove_your_kernel/scale" else pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(path, run_name="__main__")
    said = capsys.readouterr().out
    for words in SAID[name]:
        assert re.search(words, said), said


def test_an_example_that_is_wrong_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tilelang")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    right = (EXAMPLES / "prove_your_kernel" / "scale.py").read_text()
    (tmp_path / "wrong.py").write_text(right.replace("* factor[block * 4 + i]", "* factor[0]"))
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(tmp_path / "wrong.py"), run_name="__main__")
    assert "FAILED" in capsys.readouterr().out


def test_a_proof_is_a_test_of_pytest(tmp_path: Path) -> None:
    pytest.importorskip("tilelang")
    for name in ("scale", "test_scale"):
        text = (EXAMPLES / "prove_your_kernel" / f"{name}.py").read_text()
        (tmp_path / f"{name}.py").write_text(text)
        (tmp_path / f"{name}_wrong.py").write_text(
            text.replace("from scale import", "from scale_wrong import").replace(
                "* factor[block * 4 + i]", "* factor[0]"
            )
        )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_scale.py", "test_scale_wrong.py"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert re.search(r"scale\nL0 +proved .*\n(.*\n)*L2 +FAILED", done.stdout), done.stdout


def trained(asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[float, ...]:
    """The loss at the beginning and at the end of training, and what a byte alone allows."""
    path = str(EXAMPLES / "train.py")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [path, *asked])
    runpy.run_path(path, run_name="__main__")
    return tuple(map(float, re.findall(r"\d+\.\d+", capsys.readouterr().out.splitlines()[-1])))


def test_a_model_that_trains_passes_what_a_byte_alone_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    drawn, written = tmp_path / "loss.svg", tmp_path / "loss.json"
    first, last, alone = trained(["--steps", "40", "--losses", str(written)], monkeypatch, capsys)
    assert last < alone < first - 2
    assert len(json.loads(written.read_text())["losses"]) == 40
    plotter = str(EXAMPLES / "plot_a_loss.py")
    monkeypatch.setattr(sys, "argv", [plotter, str(written), str(drawn)])
    runpy.run_path(plotter, run_name="__main__")
    curve = ElementTree.fromstring(drawn.read_text()).find("{*}polyline")
    assert curve is not None
    assert len(curve.attrib["points"].split()) == 40


def test_a_model_that_does_not_train_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    _, last, alone = trained(["--steps", "3", "--rate", "0"], monkeypatch, capsys)
    assert last > alone + 2


def test_the_losses_that_the_documentation_draws_are_as_it_says() -> None:
    on, untouched = (
        json.loads((ROOT / "docs" / f"{name}.json").read_text()) for name in ("losses", "losses-untouched")
    )
    apart = [abs(a - b) for a, b in zip(on["losses"], untouched["losses"], strict=True)]
    assert f"by {sum(apart) / len(apart):.2f} nats a step in the mean" in (ROOT / "docs" / "training.md").read_text()
    assert max(apart) < 0.13
    assert sum(on["losses"][-20:]) / 20 < min(on["entropies"])


def test_the_notebook_runs() -> None:
    for package in ("tilelang", "transformers"):
        pytest.importorskip(package)
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 6
    assert all(not cell.get("outputs") for cell in cells), "results are the reader's own"
    names: dict[str, object] = {}
    for source in code:
        exec(compile(source, "tour.ipynb", "exec"), names)
    assert {"swa", "csa", "hca", "mhc_pre", "mhc_post", "mhc_head", "compress", "indexer_topk"} == {
        path.last
        for path in names["paths"](names["model"]).values()  # type: ignore[operator]
    }
