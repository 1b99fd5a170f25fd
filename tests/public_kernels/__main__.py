"""Prove the public kernels and write what became of them to ``docs/public_kernels.json``.

In tests/: ``python -m public_kernels FOLDER...``, where each folder holds an unpacked package or several; installed packages
are found without. ``--only PATTERN`` proves some kernels anew and keeps the other rows.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from lemmata.proofs.engine.cache import versions
from lemmata.proofs.processes import reports

from .table import ENTRIES, ROWS_FILE, Tried, row, rows

LAYERS = ("L0", "L1")


def main() -> None:
    """Read the command line, prove, and write a row for each kernel as its layers end."""
    parser = argparse.ArgumentParser(prog="python -m public_kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--only", default="", metavar="PATTERN", help="a regular expression for names of kernels")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600, help="that a layer may take")
    asked = parser.parse_args()
    folders = tuple(path.resolve() for path in asked.folders)
    numbers = [n for n, entry in enumerate(ENTRIES) if re.search(asked.only, entry.name)]
    tasks = [Tried(n, (layer,), folders) for n in numbers for layer in LAYERS]
    found = {r["name"]: r for r in rows()} if asked.only and ROWS_FILE.exists() else {}
    with reports(tasks, asked.jobs, asked.seconds) as each:
        for number in numbers:
            entry = ENTRIES[number]
            found[entry.name] = row(entry, [next(each).layers[0] for _ in LAYERS])
            print(entry.name, *(found[entry.name][layer]["verdict"] for layer in LAYERS), sep="  ", flush=True)
            kept = [found[e.name] for e in ENTRIES if e.name in found]
            ROWS_FILE.write_text(json.dumps({"versions": dict(versions()), "kernels": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
