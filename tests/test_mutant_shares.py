"""The mutants of one kernel in shares: the same names and fates however many there are, and nothing lost in silence."""

from __future__ import annotations

import runpy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from typer.testing import CliRunner

from lemmata import cli
from lemmata.proofs import tasks
from lemmata.proofs.engine.base.report import Mutation
from lemmata.proofs.engine.guards import mutation
from lemmata.proofs.engine.options import Options
from lemmata.proofs.engine.verify import verify
from lemmata.proofs.tasks import InFile, Share, merged
from test_command_line import tasks_cleared

# a block of 32 threads, so that each mutant is tried in a tenth of a second
DOUBLE = """
import tilelang.language as T, torch
from lemmata.reference.contract import Contract, Static, TensorSpec

@T.prim_func
def double(x: T.Tensor((32,), "float32"), y: T.Tensor((32,), "float32")):
    with T.Kernel(1, threads=32):
        i = T.get_thread_binding()
        if i < 32:
            y[i] = x[i] + x[i]

x, y = (TensorSpec(name, "n", (torch.float32,)) for name in "xy")
contract = Contract("double", {}, {"n": Static.one_of(32)}, (x,), (y,), probes=({}, {}))
options = {"pass_configs": {"tl.disable_safe_memory_legalize": True}, "statics": {"n": 32}}

def reference(x):
    return 2 * x
"""


@cache
def double() -> dict[str, Any]:
    """The names in a file with a kernel that adds x[i] to x[i], so that some mutants differ by their occurrence alone."""
    names: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "double.py"
        file.write_text(DOUBLE)
        names.update(runpy.run_path(str(file)))
    return names


def tried(**options: Any) -> tuple[Mutation, ...]:
    """The fates of mutants of that kernel."""
    names = double()
    asked: Options = {"mutate": True, **names["options"], **options}
    return verify(names["double"], names["contract"], reference=names["reference"], **asked).mutations


@cache
def whole() -> tuple[Mutation, ...]:
    return tried()


@cache
def shares(count: int, every: int = 1) -> list[tuple[Mutation, ...]]:
    return [tried(share=(number, count), every=every) for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fates_do_not_depend_on_the_number_of_shares(count: int) -> None:
    assert merged(shares(count)) == whole()
    assert {m.fate for m in whole()} == {"killed", "equivalent"}


def test_of_every_third_mutant_too_and_of_more_shares_than_mutants() -> None:
    assert merged(shares(2, every=3)) == whole()[::3]
    assert tried(share=(1, 2), every=len(whole())) == ()


def test_shares_that_are_put_together_wrongly_are_noticed() -> None:
    first, second = shares(2)
    assert merged([second, first]) != whole()
    assert (*first, *second) != whole()


def test_names_that_a_share_would_number_by_itself_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: occurrences are counted among the mutants of a share, so that a name loses its number."""
    names = [m.name for m in whole()]
    assert any(", occurrence 2" in name for name in names)
    right = mutation._mutants

    def counted(kernel: Any) -> Any:
        return [type(m)(m.name.split(", occurrence")[0], *list(vars(m).values())[1:]) for m in right(kernel)]

    monkeypatch.setattr(mutation, "_mutants", counted)
    assert [m.name for m in merged(tried(share=(number, 2)) for number in range(2))] != names


def test_a_share_that_tries_fewer_than_it_should_is_an_error(file: Path) -> None:
    """Planted: a mutant is lost."""
    kernel = InFile(file, "double", ("L2",), {"mutate": True})
    share = next(tasks._shares(kernel, mutation.untried(tasks._module(file)["double"], 1)))
    more = (*share.mutants, Mutation("another", "constant", "untried", "", ""))
    with pytest.raises(ValueError, match=r"mutants: expected .*'another'\] in share \(0, \d+\), got "):
        Share(kernel, share.share, more).run()
    assert [m.name for m in share.run().mutations] == [m.name for m in share.mutants]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "double.py"
    path.write_text(DOUBLE)
    tasks_cleared()
    return path


def proved(file: Path, *more: str) -> tuple[int, str, str]:
    """The exit code, what is said, and the table."""
    table = file.parent / "table.md"
    done = CliRunner().invoke(cli.app, ["prove", f"{file}:double", "--mutants", "--table", str(table), *more])
    return done.exit_code, done.output, table.read_text()


DYING = """
import multiprocessing, os
from lemmata.proofs.engine.layers import verdicts
right = verdicts._SHOWN["L2"]
def dying(problem, name):
    if multiprocessing.parent_process() and "x[i] - x[i]" in str(problem.kernel):
        os._exit(9)
    return right(problem, name)
verdicts._SHOWN["L2"] = dying
"""


def test_processes_find_what_one_finds_and_a_share_that_is_cut_off_loses_itself_alone(file: Path) -> None:
    _, said, alone = proved(file)
    count = int(alone.split(" mutants: ")[0].split()[-1])
    assert f"    {count} of {count} mutants of {file}:double" in said.splitlines()
    assert proved(file, "--jobs", "2")[2] == alone
    assert "untried" not in alone
    file.write_text(DOUBLE + "options['every'] = 2\n" + DYING)  # each share has a process to itself
    tasks_cleared()
    status, said, table = proved(file, "--jobs", "2", "--timeout", "300", "--layer", "L2")
    count = (count + 1) // 2
    lost = said.count("    UNTRIED: ")
    assert 0 < lost <= tasks.MUTANTS < count
    assert f"    {count - lost} of {count} mutants of {file}:double" in said.splitlines()
    assert f"Untried: {lost}: the process ended with status 9, perhaps for want of memory." in table
    assert f"{count} mutants: " in table
    assert status == 1
