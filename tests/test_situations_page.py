"""The tables of situations: each row says what runs, since which version, and which tests see it."""

import re
import tomllib
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "situations.md").read_text()
VERSION = Version(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def rows(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] != "situation"]


def faults(page: str) -> list[str]:
    """The rows with an empty cell, a version that is to come, or a test that is not there."""
    wrong = []
    for row in rows(page):
        named = re.findall(r"`(tests/test_\w+\.py)`", row[-1])
        there = [name for name in named if (ROOT / name).is_file()]
        if len(row) != 4 or not all(row) or there != named or not named or Version(row[2]) > VERSION:
            wrong.append(row[0])
    return wrong


def test_every_row_is_whole() -> None:
    assert len(rows(PAGE)) > 60
    assert faults(PAGE) == []


def test_a_test_of_situations_that_no_row_names_is_noticed() -> None:
    of_models = {f"tests/{file.name}" for file in (ROOT / "tests").glob("test_transformers_*.py")}
    assert {name for name in of_models if f"`{name}`" not in PAGE} <= {
        "tests/test_transformers_attention.py",  # each kind of layer alone
        "tests/test_transformers_indexer.py",
        "tests/test_transformers_versions.py",
    }


def test_faulty_rows_are_noticed() -> None:
    right = "| threads | the same bits | 0.1.0 | `tests/test_situations.py` |"
    wrong = (
        right.replace("0.1.0", "99.0"),
        right.replace("test_situations", "test_absent"),
        right.replace("the same bits", ""),
        right.replace("`tests/test_situations.py`", "somebody"),
    )
    assert faults(right) == []
    assert all(faults(row) == ["threads"] for row in wrong)
