"""Pictures in docs/ are those that the records make today, and each is shown."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import pytest

import pictures
from lemmata.bench import bars
from lemmata.operators import Operator
from lemmata.record import Record, kernel_digest
from pages import ROOT
from pictures import FOLDER, PICTURES

PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_fresh(name: str) -> None:
    file, drawn = FOLDER / f"{name}.svg", PICTURES[name]()
    if "LEMMATA_UPDATE" in os.environ:
        file.write_text(drawn, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == drawn, "run this test with LEMMATA_UPDATE=1, or docs/pictures.py"


def test_every_picture_is_drawn_and_every_drawn_one_is_shown() -> None:
    assert {path.stem for path in FOLDER.glob("*.svg")} == set(PICTURES)
    shown = set(re.findall(r"pictures/([\w-]+)\.svg", "\n".join(page.read_text() for page in PAGES)))
    assert shown == set(PICTURES)


def test_the_page_of_figures_shows_those_of_every_operator() -> None:
    page = (ROOT / "docs" / "figures.md").read_text()
    assert [name for name in PICTURES if name.startswith("times-") and f"pictures/{name}.svg" not in page] == []


def test_an_operator_without_figures_has_a_picture_that_says_so() -> None:
    assert "no record holds a figure yet" in pictures.times(Operator("double", "Double", ("double",), ()))


def test_a_picture_of_an_earlier_kernel_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pictures.records()
    present = [
        f | {"kernels": {"sinkhorn": kernel_digest("sinkhorn")}}
        for r in real
        for f in r.figures
        if f["op"] == "sinkhorn"
    ]
    for digest, said in ((None, True), (kernel_digest("sinkhorn"), False)):
        figures = [f | {"kernels": {"sinkhorn": digest}} for f in present]
        monkeypatch.setattr(pictures, "records", lambda figures=figures: [replace(real[0], figures=figures)])
        assert ("of an earlier kernel" in PICTURES["times-sinkhorn"]()) is said


def test_a_picture_of_other_figures_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted error: figures that are a tenth off."""
    before, real = PICTURES["times-csa"](), pictures.records()

    def slower() -> list[Record]:
        return [replace(r, figures=[f | {"burst_us": f["burst_us"] * 1.1} for f in r.figures]) for r in real]

    monkeypatch.setattr(pictures, "records", slower)
    assert PICTURES["times-csa"]() != before


def test_one_case_of_an_earlier_kernel_among_others_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pictures.records()[0]
    ours = [f for f in real.figures if f["op"] == "sinkhorn"]
    digests = {shape: str(number) for number, shape in enumerate({f["shape"] for f in ours})}
    digests[ours[0]["shape"]] = kernel_digest("sinkhorn")
    figures = [f | {"kernels": {"sinkhorn": digests[f["shape"]]}} for f in ours]
    monkeypatch.setattr(pictures, "records", lambda: [replace(real, figures=figures)])
    drawn = PICTURES["times-sinkhorn"]()
    assert "of an earlier kernel" not in drawn
    assert drawn.count(", earlier kernel<") == len(digests) - 1
    assert f">{ours[0]['shape']}<" in drawn


def test_a_long_name_of_a_contender_takes_lines_beside_its_bar() -> None:
    figure = {"burst_us": 1.0, "sustained_us": 1.0, "bound_us": 1.0}
    names = "lemmata", "a contender whose name is far too long for one line"
    heights = []
    for case in (names[:1], names):
        drawn = bars.picture("t", [bars.Panel("p", {"c": {n: figure | {"contender": n} for n in case}})])
        heights.append(int(drawn.split('height="')[1].split('"')[0]))
    assert heights[1] - heights[0] == bars.STEP + bars.LINE
    assert all(f">{words}<" in drawn for words in ("a contender whose name is", "far too long for one line"))
