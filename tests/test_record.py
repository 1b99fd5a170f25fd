"""The README says what the committed record says, and the record says what was run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from lemmata.bench.report import markdown
from lemmata.record import records
from specs import SPECS

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def test_the_figures_of_the_readme_are_those_of_the_record() -> None:
    (record,) = records()
    text = README.read_text()
    expected = BLOCK.sub(lambda m: f"{m[1]}\n{markdown(record.figures)}\n\n{m[2]}", text)
    if "LEMMATA_UPDATE" in os.environ:
        README.write_text(expected)
    assert README.read_text() == expected, "run this test with LEMMATA_UPDATE=1"
    assert expected.count("| sinkhorn | forward 4096 |") == 2


def figure(contender: str, burst_us: float, noise: float) -> dict[str, Any]:
    bound = {"bound_us": 1.0, "bound": "memory"}
    return {"op": "x", "shape": "s", "contender": contender, "burst_us": burst_us, "noise": noise, **bound}


def test_a_slower_kernel_is_marked() -> None:
    assert "**0.50 x, slower**" in markdown([figure("lemmata", 2.0, 0.01), figure("peer", 1.0, 0.01)])


def test_a_noisy_figure_says_so() -> None:
    rows = markdown([figure("lemmata", 2.0, 0.151), figure("peer", 1.0, 0.05)])
    assert "| 2.00 (spread 15%) |" in rows
    assert "| peer | 1.00 |" in rows


def test_the_record_holds_the_gpu_tests_of_every_operator_it_knows() -> None:
    (record,) = records()
    assert len(record.kernels) >= 3
    for spec in (spec for spec in SPECS if spec.operator in record.kernels):
        seen = {name for name in record.tests if re.search(rf"[-\[]{spec.name}\]", name)}
        assert sum("test_gpu.py" in name for name in seen) >= 5
        assert sum("cuda" in name for name in seen) >= (25 if spec.differentiable else 15)
    assert not [name for name, verdict in record.tests.items() if verdict == "failed"]
