"""The time that importing lemmata adds to importing torch, each time in a fresh process.

``pytest bench/importing.py`` takes it on any machine. The aim is 0.1 s; no test asserts a time, since machines differ. What the
benchmark times is the whole process; the import alone is among the extra information, as ``import_s``.
"""

from __future__ import annotations

import subprocess
import sys

from pytest_benchmark.fixture import BenchmarkFixture

_CODE = "import time, torch; begin = time.process_time(); import lemmata; print(time.process_time() - begin)"


def test_import(benchmark: BenchmarkFixture) -> None:
    """Import lemmata after torch."""
    seconds: list[float] = []

    def fresh() -> None:
        done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True)
        seconds.append(float(done.stdout))

    benchmark.pedantic(fresh, rounds=5)  # type: ignore[no-untyped-call]
    benchmark.extra_info["import_s"] = min(seconds)
