"""The documentation says what the source says: what is generated is fresh, what is named exists, and the site builds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from claims import proofs
from engine_diagrams import IMPORTS, ROOMS
from lemmata.bench import pages as cache
from lemmata.operators import OPERATORS, of_function
from links import broken, clicks
from pages import ENGINE, GENERATED, ROOT, VERDICTS, files, fill, is_of, kept
from test_rooms import MAY

FINDS = (
    *(
        "options",
        "base/failures",
        "base/text",
        "compiler/rewrite",
        "compiler/source_lines",
        "compiler/source_text",
        "smt/witness",
    ),
    "smt/constructs",
    *("semantics/algebra", "semantics/loops", "access/sites", "order/possible", "order/words"),
    *("forms/choices", "forms/summing", "forms/refutation", "forms/pretty", "forms/statement", "reference/shapes"),
    *("execution/changes", "execution/invariants", "execution/obligations"),
    *("layers/examples", "layers/lemmas", "layers/mutants", "layers/row_major", "layers/scripts", "layers/tiling"),
)
"""Modules in which no error can make a false theorem, each of which says why.

They find what others check, print, declare, or ask what the guards against hollow proofs want to know.
"""
NOT_TRUSTED = ("guards", "interpreter", "emitted")
"""Errors there can hide a hollow proof, or miss a mutant or an error of the compiler, but cannot make a false theorem."""


def lines(files: Iterable[Path]) -> int:
    return sum(len(file.read_text().splitlines()) for file in files)


def sizes() -> str:
    """The table of the engine's rooms by lines: those trusted, and the others apart."""
    finding = {ENGINE / f"{name}.py" for name in FINDS}
    folders = {room: ENGINE / room for room in MAY} | {"the door": ENGINE}
    rooms = {room: [f for f in folder.glob("*.py") if f not in finding] for room, folder in folders.items()}
    trusted = {room: lines(files) for room, files in rooms.items() if room not in NOT_TRUSTED}
    rows = [f"| {room} | {count} |" for room, count in trusted.items()]
    others = [f"| {room}: not trusted | {lines(rooms[room])} |" for room in NOT_TRUSTED]
    total = f"| **trusted, together** | **{sum(trusted.values())}** |"
    found = f"| what only finds a proof, prints or declares: not trusted | {lines(finding)} |"
    return "\n".join(["| room of the engine | lines |", "|---|---|", *rows, total, found, *others])


BLOCKS = [(page, name, make) for page, blocks in GENERATED.items() for name, make in blocks.items()]
BLOCKS.append(("docs/proofs.md", "sizes", sizes))


@pytest.mark.parametrize(("page", "name", "make"), BLOCKS, ids=[f"{page}-{name}" for page, name, _ in BLOCKS])
def test_what_is_generated_is_fresh(page: str, name: str, make: Callable[[], str]) -> None:
    file = ROOT / page
    expected = fill(file.read_text(), name, make())
    if "LEMMATA_UPDATE" in os.environ:
        file.write_text(expected)
    assert file.read_text() == expected, "run this test with LEMMATA_UPDATE=1"


def test_a_stale_page_and_lost_markers_are_noticed() -> None:
    page = "<!-- a -->\nold\n<!-- end of a -->"
    assert fill(page, "a", "new") != page
    with pytest.raises(ValueError, match="expected one pair of markers, got 0"):
        fill(page, "b", "new")


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACES = (ROOT, ENGINE, ROOT / "src" / "lemmata")


def absent(text: str) -> set[str]:
    """The Python files that a page names and that are nowhere; ``OP.py`` stands for any operator's."""
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    return {n for n in named if not n.endswith("OP.py") and not any((p / n).exists() for p in PLACES)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    assert not absent(page.read_text())


def too_long(text: str) -> list[str]:
    """The lines of programs that a page of the site, 92 letters wide, would cut off."""
    programs = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line for program in programs for line in program.splitlines() if len(line) > 92]


@pytest.mark.parametrize("page", [*(ROOT / "docs").glob("*.md")], ids=lambda p: p.name)
def test_programs_are_no_wider_than_their_page(page: Path) -> None:
    assert too_long(page.read_text()) == []


def test_a_program_that_is_too_wide_is_noticed() -> None:
    assert too_long(f"```sh\nls\n{'x' * 93}\n```\n{'y' * 93}\n") == ["x" * 93]


def test_a_file_that_does_not_exist_is_noticed() -> None:
    assert absent("see `kernels/csa.py`, `order/nothing.py` and `proofs/OP.py`") == {"order/nothing.py"}


def test_the_drawing_of_the_rooms_is_that_of_the_walls() -> None:
    assert {room: set(below.split()) for room, below in IMPORTS.items()} == {
        room: set(below.split()) for room, below in (MAY | {"verify": "layers"}).items() if below
    }
    assert set(ROOMS) == {"verify", *MAY}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


@pytest.mark.parametrize("function", [f for operator in OPERATORS.values() for f in operator.functions])
def test_a_new_reader_needs_two_clicks(function: str) -> None:
    operator = of_function(function)
    assert operator
    readme = ROOT / "README.md"
    assert f"`{function}`" in readme.read_text()
    far, kinds = clicks(readme), files(operator)
    assert set(kinds) == {"formula", "kernel", "op", "proof", "tests", "bench"}
    for paths in kinds.values():
        assert paths or not operator.kernels
        assert all(far[(ROOT / path).resolve()] <= 2 for path in paths)


def test_a_lost_page_and_a_lost_anchor_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("[b](b.md), [c](c.md#one), [d](c.md#two), `[e](e.md)`")
    (tmp_path / "c.md").write_text("## One\n\n[d](d.py)\n")
    assert broken(tmp_path / "a.md") == [str(tmp_path / "b.md"), f"{tmp_path / 'c.md'}#two"]
    far = clicks(tmp_path / "a.md")
    assert far[tmp_path / "d.py"] == 2
    assert tmp_path / "e.md" not in far


def test_a_page_of_the_cache_becomes_the_rows_that_it_holds() -> None:
    (reads,) = re.findall(r"```python\n(import torch\n.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    names: dict[str, Callable[[Tensor, int], Tensor]] = {}
    exec(reads, names)
    torch.manual_seed(0)
    held = cache.random_rows(2, 3 * cache.PAGE, "cpu")
    written = cache.pages(held).reshape(6, -1)
    assert torch.equal(names["rows"](written, cache.PAGE), held.flatten(0, 1))
    written[4, 5] ^= 1  # the last bit of a number
    assert not torch.equal(names["rows"](written, cache.PAGE), held.flatten(0, 1))


def test_the_record_of_verdicts_is_of_the_suite() -> None:
    recorded = [(kernel["op"], kernel["name"]) for kernel in json.loads(VERDICTS.read_text())["kernels"]]
    suite = [(op, proof.name) for op in OPERATORS for proof in proofs(op)]
    assert recorded == suite, "run: lemmata prove --json | python tests/pages.py"


def test_a_verdict_is_the_recorded_one() -> None:
    record = next(kernel for kernel in json.loads(VERDICTS.read_text())["kernels"] if " n=2 " in kernel["name"])
    proof = next(proof for proof in proofs(record["op"]) if proof.name == record["name"])
    seen = json.loads(proof.run(fresh=True).to_json())["layers"]
    for layer, wanted in zip(seen, record["layers"], strict=True):
        assert {key: layer[key] for key in wanted if key != "seconds"} == {
            k: v for k, v in wanted.items() if k != "seconds"
        }


def test_every_mutant_that_survives_has_its_reason() -> None:
    page = (ROOT / "docs" / "mutants.md").read_text()
    assert re.findall(r"^- equivalent: `.*`: *$|^Reasons: .*\bNone\b", page, re.MULTILINE) == []


def test_only_a_whole_suite_that_holds_is_recorded() -> None:
    with pytest.raises(ValueError, match="expected that everything holds"):
        kept({"holds": False, "kernels": []})


def test_the_wrong_twin_of_the_example_is_refuted_as_the_readme_says(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    example = next(e for e in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "verify" in e)
    (tmp_path / "wrong.py").write_text(example.replace("i < n", "i <= n"))
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(tmp_path / "wrong.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    said = re.findall(r"`([^`]*)`", text[text.index("With `i <= n`") :])[1:3]
    assert done.stdout.startswith("False\n")
    assert all(words in done.stdout for words in said), done.stderr


def test_a_test_is_of_the_operator_that_its_parameters_name() -> None:
    of = {
        "tests/test_ops.py::test_values[cuda-indexer_topk]": "indexer",
        "tests/test_hca.py::test_a_query_without_a_key[cuda-csa]": "csa",
        "tests/test_indexer.py::test_scores[cuda-bf16]": "indexer",
        "tests/test_ops.py::test_gradient[cuda-1.0-4-indexer_loss_dense]": "indexer_loss",
    }
    assert {test: [op for op in OPERATORS if is_of(op, test)] for test in of} == {test: [op] for test, op in of.items()}
    assert not any(is_of(op, "tests/test_transformers.py::test_a_model[cuda]") for op in OPERATORS)
