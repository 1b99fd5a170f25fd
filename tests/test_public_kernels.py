"""The table of public kernels is of the contracts that stand beside it; one kernel is proved again where its package is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lemmata.proofs.engine.base.report import Failure, Layer
from lemmata.reference.contract import Size
from public_kernels import table
from public_kernels.entry import Entry

FOLDERS = tuple(map(Path, os.environ.get("LEMMATA_PUBLIC_KERNELS", "").split(os.pathsep)))
"""Where the packages are unpacked, if they are."""


def test_each_kernel_has_a_row_of_its_contract_as_it_is() -> None:
    kept = {row["name"]: row["digest"] for row in table.rows()}
    assert kept == {entry.name: table.digest(entry) for entry in table.ENTRIES}


def test_seven_tenths_of_them_hold_and_none_crashes() -> None:
    rows = table.rows()
    assert sum(map(table.holds, rows)) >= 0.7 * len(rows)
    assert not [r["name"] for r in rows if "crash" in (r["L0"]["verdict"], r["L1"]["verdict"])]


def test_a_contract_that_changes_is_noticed() -> None:
    entry = Entry("package.module", "kernel", {"x": torch.empty(2, device="meta")}, {"n": Size(1, 8)}, ["y"])
    changes: list[dict[str, Any]] = [
        {"sizes": {"n": Size(1, 9)}},
        {"outputs": ["x"]},
        {"relations": ("n > 1",)},
        {"arguments": {"x": torch.empty(3, device="meta")}},
    ]
    digests = {table.digest(entry), *(table.digest(replace(entry, **change)) for change in changes)}
    assert len(digests) == len(changes) + 1


def test_a_row_tells_what_fails_and_how() -> None:
    entry = Entry("package.module", "kernel", {}, {}, [])
    failure = Failure("bounds", "read of x: 0 <= i < n", counterexample={"i": 4, "n": 4})
    right, wrong = Layer("L0", 3, 3, 0, 0.5), Layer("L1", 3, 2, 0, 0.5, (failure,))
    row = table.row(entry, [right, wrong])
    assert (row["L0"]["verdict"], row["L1"]["verdict"]) == ("holds", "refuted")
    assert row["L1"]["reason"] == "bounds: read of x: 0 <= i < n when i = 4, n = 4"
    assert not table.holds(row)
    assert table.holds({**row, "L1": row["L0"]})


def test_a_kernel_that_cannot_be_built_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ENTRIES", (Entry("tile_kernels.no_such_module", "kernel", {}, {}, []),))
    (layer,) = table.Tried(0, ("L0",), ()).run().layers
    assert layer.failures[0].verdict == "crash"


@pytest.mark.skipif(not all(map(Path.is_dir, FOLDERS)) or (Path(),) == FOLDERS, reason="needs the packages")
def test_a_kernel_of_a_package_has_the_verdict_of_its_row() -> None:
    number, entry = next((n, e) for n, e in enumerate(table.ENTRIES) if e.factory == "expand_to_mhc_fwd_cuda")
    row = next(row for row in table.rows() if row["name"] == entry.name)
    layers = [table.Tried(number, (name,), FOLDERS).run().layers[0] for name in ("L0", "L1")]
    assert [table.row(entry, layers)[n]["verdict"] for n in ("L0", "L1")] == [row[n]["verdict"] for n in ("L0", "L1")]
