"""What an index and pip are told: extras admit only what the code accepts, the archives hold what they must."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    extra: {r.name: r for r in map(Requirement, wanted)} for extra, wanted in PROJECT["optional-dependencies"].items()
}


def admits_more(ours: SpecifierSet, theirs: SpecifierSet, releases: Iterable[str]) -> list[str]:
    """The releases that one set of versions admits and the other does not."""
    return [release for release in releases if ours.contains(release) and not theirs.contains(release)]


def test_the_extra_for_proofs_admits_the_tilelang_that_the_engine_reads() -> None:
    extract = pytest.importorskip("lemmata.proofs.engine.compiler.extract")
    allowed = EXTRAS["proofs"]["tilelang"].specifier
    assert allowed == SpecifierSet(f"=={extract.VERSION}")
    assert admits_more(SpecifierSet(">=0.1.15"), allowed, ["0.1.15", "0.1.16"]) == ["0.1.16"]


def test_the_extra_for_proofs_admits_the_solvers_that_tilelang_does() -> None:
    pytest.importorskip("tilelang")
    theirs = next(r for r in map(Requirement, requires("tilelang") or ()) if r.name == "z3-solver")
    releases = ["4.14.1", "4.15.0", "4.15.4", "4.15.4.0", "4.15.5", "4.16.0", "5.4.1"]
    ours = EXTRAS["proofs"]["z3-solver"].specifier
    assert admits_more(ours, theirs.specifier, releases) == []
    assert ours.contains(version("z3-solver"))


def test_every_pinned_version_is_one_that_the_project_admits() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if "==" in line:
            name, _, release = line.partition("==")
            pinned[name.lower().replace("_", "-")] = release
    wanted = [Requirement(r) for r in PROJECT["dependencies"]] + [r for e in EXTRAS.values() for r in e.values()]
    named = [r for r in wanted if r.name != "lemmata"]
    assert [r.name for r in named if r.name not in pinned] == []
    assert [str(r) for r in named if not r.specifier.contains(pinned[r.name])] == []


def test_every_pinned_package_runs_on_every_python_that_is_admitted() -> None:
    oldest = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))[0]
    refused, read = [], 0
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, release = line.partition("==")
        with contextlib.suppress(PackageNotFoundError):
            if release and version(name) == release:
                read += 1
                pythons = metadata(name).get("Requires-Python", "")
                refused += [] if SpecifierSet(pythons).contains(f"{oldest}.0") else [f"{line} wants {pythons}"]
    assert read > 20
    assert refused == []


def test_every_python_that_is_named_is_admitted() -> None:
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert named == ["3.11", "3.12", "3.13"]
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(Version(f"{n}.0")) for n in named)


def test_the_sdist_holds_what_its_tests_read() -> None:
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines()]
    grafted = {folder for command, *folders in lines if command == "graft" for folder in folders}
    patterns = [pattern for command, *found in lines if command == "include" for pattern in found]
    always = {"src", "pyproject.toml", "setup.py", "setup.cfg", "LICENSE", "MANIFEST.in", "PKG-INFO"}
    built = {"build", "dist", "site"}
    for path in ROOT.iterdir():
        if path.name.startswith((".", "__")) or path.name.endswith(".egg-info") or path.name in always | built:
            continue
        assert path.name in grafted or any(fnmatch(path.name, p) for p in patterns), path.name


def test_the_description_has_absolute_links(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, str] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **kw: given.update(kw))
    runpy.run_path(str(ROOT / "setup.py"))
    relative = re.compile(r"\]\((?!https://|#)")
    assert relative.findall((ROOT / "README.md").read_text()), "the page in the repository has relative ones"
    assert not relative.findall(given["long_description"])
    assert f"]({PROJECT['urls']['Repository']}/blob/main/docs/proofs.md" in given["long_description"]


def test_type_checkers_read_the_functions_that_modules_call() -> None:
    pytest.importorskip("tilelang")
    from lemmata.proofs import interpret, second_opinion, verify
    from lemmata.proofs.engine.interpreter.interpret import interpret as interprets
    from lemmata.proofs.engine.interpreter.second_opinion import second_opinion as seconds
    from lemmata.proofs.engine.verify import verify as verifies

    stub = (ROOT / "proofs" / "__init__.pyi").read_text()
    for module, function in ((verify, verifies), (interpret, interprets), (second_opinion, seconds)):
        origin = function.__module__.removeprefix("lemmata.proofs")
        assert f"from {origin} import {function.__name__} as {function.__name__}\n" in stub
        assert inspect.signature(module) == inspect.signature(function), "the first argument is there"  # type: ignore[arg-type]
    assert next(iter(inspect.signature(verify).parameters)) == "kernel"
    assert stub.count("import") == 3


USER = """
from torch import exp
from lemmata.proofs import interpret, second_opinion, verify
from lemmata.reference.contract import Contract

def proved(kernel: object, contract: Contract) -> None:
    reveal_type(interpret(kernel))
    reveal_type(second_opinion(kernel, contract, exp, sizes={}))
    reveal_type(verify(kernel, contract, layers=["L0"], seed=3))
    verify(kernel, contract, nonsense=3)
"""


def test_a_type_checker_takes_the_modules_that_are_called(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    options = ["--strict", "--explicit-package-bases", "--follow-imports=silent", "--ignore-missing-imports"]
    command = [sys.executable, "-m", "mypy", *options, "--config-file=", "--cache-dir", str(tmp_path), "user.py"]
    found = os.environ | {"MYPYPATH": str(ROOT / "src")}
    said = subprocess.run(command, cwd=tmp_path, env=found, capture_output=True, text=True, check=False).stdout
    assert re.findall(r'Revealed type is "(.*)"', said) == [
        "None",
        "typing.Sequence[str]",
        "lemmata.proofs.engine.base.report.Report",
    ], said
    assert re.findall(r"user.py:(\d+): error: (.*)", said) == [
        ("10", 'Unexpected keyword argument "nonsense" for "verify"  [call-arg]')
    ], said
