"""Every operator of the registry is complete; a new one needs its own files and one line there."""

from __future__ import annotations

import ast
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

import lemmata
from claims import proofs
from lemmata.operators import OPERATORS, Kernel, Operator, find, of_function
from lemmata.proofs.suite import Proof
from lemmata.reference.contract import Contract
from specs import SPECS

ROOT = Path(__file__).parent.parent
TOY = Path(__file__).parent / "toy"
EACH = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
DOUBLE = Operator("double", "Double", ("double",), ("double:double_fwd",))
LINE = '        Operator("double", "Double", ("double",), ("double:double_fwd",)),\n'
WITHOUT_KERNELS: set[str] = set()
"""Operators that run the PyTorch reference on a GPU too, so that nothing of them is built or proved."""
EXPORT = "from .bindings.double import double\n"


def names(file: Path) -> set[str]:
    """What a module defines or imports at its top level, under a condition or not."""
    found: set[str] = set()
    body = ast.parse(file.read_text()).body
    for node in itertools.chain(body, *(node.body for node in body if isinstance(node, ast.If))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def lacks(operator: Operator, root: Path) -> Iterator[str]:
    """Yield what the operator needs and the tree does not have, a line each."""
    needed: dict[str, tuple[str, ...]] = {
        f"reference/{operator.name}.py": (),
        f"bindings/{operator.name}.py": operator.public,
        f"bench/{operator.name}.py": ("cases", "compilations"),
        f"docs/{operator.name}.md": (),
        f"tests/specs_{operator.name}.py": ("SPECS",),
        "src/lemmata/__init__.py": operator.public,
    }
    if operator.kernels:
        needed[f"bindings/{operator.name}.py"] += ("shipped",)
        needed[f"proofs/{operator.name}.py"] = ("proofs",)
    for kernel in operator.kernels:
        module, _, factory = kernel.partition(":")
        needed[f"kernels/{module}.py"] = (*needed.get(f"kernels/{module}.py", ()), factory)
    for path, wanted in needed.items():
        if not (root / path).is_file():
            yield f"{operator.name}: no {path}"
        elif missing := set(wanted) - (names(root / path) if path.endswith(".py") else set()):
            yield f"{operator.name}: {path} has no {', '.join(sorted(missing))}"


@EACH
def test_an_operator_lacks_nothing(operator: Operator) -> None:
    assert list(lacks(operator, ROOT)) == []
    assert bool(operator.kernels) == (operator.name not in WITHOUT_KERNELS)
    assert any(isinstance(value, Contract) for value in vars(operator.module("reference")).values())
    specs = [spec for spec in SPECS if spec.operator == operator.name]
    assert {of_function(spec.contract.op) for spec in specs} == {operator}, "a record for each function"
    assert {spec.contract.op for spec in specs} == set(operator.functions)


def test_every_public_function_belongs_to_one_operator() -> None:
    functions = [function for operator in OPERATORS.values() for function in operator.public]
    assert sorted(functions) == sorted(lemmata.__all__)
    assert of_function("softmax") is None


def test_an_unknown_operator_is_named() -> None:
    with pytest.raises(ValueError, match=r"op: expected one of sinkhorn, .*, got 'softmax'"):
        find("softmax")


def test_of_an_operator_without_kernels_nothing_is_built_or_proved(tmp_path: Path) -> None:
    operator = replace(OPERATORS["topk"], kernels=())
    assert list(operator.shipped()) == []
    for path in ("reference", "bindings", "bench", "docs", "tests", "src/lemmata"):
        (tmp_path / path).mkdir(parents=True)
    for path in (
        "reference/topk.py",
        "bench/topk.py",
        "docs/topk.md",
        "tests/specs_topk.py",
        "src/lemmata/__init__.py",
    ):
        (tmp_path / path).write_text((ROOT / path).read_text())
    (tmp_path / "bindings/topk.py").write_text("def topk(): ...\n")
    assert list(lacks(operator, tmp_path)) == []
    unlike = replace(operator, kernels=("indexer:indexer_scores",))
    assert list(lacks(unlike, tmp_path)) == [
        "topk: bindings/topk.py has no shipped",
        "topk: no proofs/topk.py",
        "topk: no kernels/indexer.py",
    ]


@functools.cache
def proved(name: str) -> set[str]:
    """The kernels that the operator's proofs are about."""
    found = list(proofs(name))
    assert {proof.op for proof in found} == ({name} if OPERATORS[name].kernels else set())
    return {str(proof.kernel.attrs["global_symbol"]) for proof in found}


@EACH
def test_what_is_shipped_proved_and_timed_is_what_is_declared(operator: Operator) -> None:
    pytest.importorskip("tilelang")
    declared = {kernel.partition(":")[2] for kernel in operator.kernels}
    shipped = list(operator.shipped())
    assert bool(shipped) == bool(declared)
    assert {factory.__name__ for factory, _ in shipped} <= declared
    assert {factory.__module__ for factory, _ in shipped} <= set(operator.kernel_modules)
    assert {factory.__name__ for factory, _ in shipped} <= set().union(*map(proved, OPERATORS)), "another may prove it"
    timed = {case.op for case in operator.module("bench").cases()}
    assert timed <= set(operator.functions)
    assert timed
    assert bool(list(operator.module("bench").compilations())) == bool(declared)


class Less(NamedTuple):
    """What ships with fewer layers proved than ``EVERY``: kernels whose configs have these fields, and the layers."""

    kernels: tuple[str, ...]
    fields: Mapping[str, object]
    layers: tuple[str, ...]
    reason: str

    def holds(self, kernel: Kernel) -> bool:
        """Whether it says something of a kernel that ships."""
        factory, cfg = kernel
        return factory.__name__ in self.kernels and all(getattr(cfg, f) == v for f, v in self.fields.items())


EVERY = {"L0", "L1", "L2", "range"}
LESS = (Less(("topk", "topk_merge"), {}, ("L0", "lemmas"), "theorem listed says where they write"),)
"""All that ships and is not proved in every layer."""


def layers_of(claimed: Iterable[Proof]) -> dict[str, set[str]]:
    """The layers that are claimed of kernels, by their text."""
    found: dict[str, set[str]] = {}
    for proof in claimed:
        found.setdefault(proof.kernel.script(), set()).update(proof.claimed())
    return found


def unproved(shipped: Iterable[Kernel], claimed: Mapping[str, set[str]]) -> Iterator[str]:
    """Yield the kernels that ship of which other layers are claimed than should be: all, or what ``LESS`` says."""
    for kernel in shipped:
        factory, cfg = kernel
        layers = claimed.get(factory(cfg).script(), set())
        less = [one for one in LESS if one.holds(kernel)]
        if layers != set(less[0].layers) if less else not layers >= EVERY:
            yield f"{factory.__name__}({cfg}): {', '.join(sorted(layers)) or 'no proof'}"


@functools.cache
def suite() -> tuple[list[Kernel], dict[str, set[str]]]:
    """All kernels that ship, and the layers that are claimed of kernels."""
    shipped = dict.fromkeys(kernel for operator in OPERATORS.values() for kernel in operator.shipped())
    return list(shipped), layers_of(proof for op in OPERATORS for proof in proofs(op))


def test_every_kernel_that_ships_is_proved_in_every_layer_it_should_be() -> None:
    pytest.importorskip("tilelang")
    shipped, claimed = suite()
    assert list(unproved(shipped, claimed)) == []
    assert [one for one in LESS if not any(map(one.holds, shipped))] == []


@pytest.mark.parametrize("layers", [(), ("L0",)])
def test_a_kernel_that_ships_without_its_proof_is_named(layers: tuple[str, ...]) -> None:
    """Planted: a proof of one config is left out, or leaves out a layer."""
    pytest.importorskip("tilelang")
    config = {"k": 1024, "threads": 256, "ratio": 4}
    mine = [p for p in proofs("topk") if p.name == "topk k=1024 threads=256 ratio=4 float32"]
    assert [dict(p.statics) for p in mine] == [config]
    kept = [p for p in proofs("topk") if p not in mine]
    planted = layers_of([*kept, *(replace(p, layers=layers) for p in mine if layers)])
    (found,) = unproved(OPERATORS["topk"].shipped(), planted)
    assert found.startswith("topk(Config(k=1024, dtype='float32', threads=256, ratio=4)): ")
    assert found.endswith(", ".join(layers) or "no proof")


def test_importing_the_registry_loads_no_kernel() -> None:
    code = "import sys, lemmata.operators; print('tilelang' in sys.modules or 'z3' in sys.modules)"
    assert run(ROOT, "-c", code).stdout == "False\n"


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the project at ``root``."""
    paths = {"PYTHONPATH": f"{root / 'src'}:{root / 'tests'}", "XDG_CACHE_HOME": str(root / "cache")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env=os.environ | paths,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with one more operator: its own files, and one line in the registry."""
    root = tmp_path_factory.mktemp("tree")
    for folder in ("src", "kernels", "reference", "bindings", "proofs", "bench", "tests", "docs"):
        ignored = shutil.ignore_patterns("toy", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT / folder, root / folder, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", root)
    for name in ("kernels", "reference", "bindings", "proofs", "bench"):
        link = root / "src" / "lemmata" / name
        if not link.is_symlink():  # an sdist holds copies
            shutil.rmtree(link)
            link.symlink_to(Path("..", "..", name))
    shutil.copytree(TOY, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    registry = root / "src/lemmata/operators.py"
    before, last, after = registry.read_text().rpartition("        Operator(")
    registry.write_text(before + LINE + last + after)
    return root


def test_a_new_operator_that_lacks_something_is_told_what(tree: Path) -> None:
    package = tree / "src/lemmata/__init__.py"
    assert list(lacks(DOUBLE, tree)) == ["double: src/lemmata/__init__.py has no double"]
    private = package.read_text()
    package.write_text(private.replace("\n__all__", EXPORT + "\n__all__"))
    assert list(lacks(DOUBLE, tree)) == []
    folders = set()
    for file in sorted(file for file in TOY.rglob("*") if file.suffix in (".py", ".md")):
        path = file.relative_to(TOY)
        text = (tree / path).read_text()
        (tree / path).unlink()
        assert list(lacks(DOUBLE, tree)) == [f"double: no {path}"]
        (tree / path).write_text(text)
        folders.add(path.parts[0])
    assert len(folders) == 7
    proofs = tree / "proofs/double.py"
    text = proofs.read_text()
    proofs.write_text(text.replace("def proofs", "def theorems"))
    assert list(lacks(DOUBLE, tree)) == ["double: proofs/double.py has no proofs"]
    proofs.write_text(text)
    package.write_text(private)


SEEN = """
import json
from typer.testing import CliRunner
import torch
from lemmata import warmup
from lemmata.bindings.double import double
from lemmata.cli import app
from specs import SPECS

def invoke(*words):
    done = CliRunner().invoke(app, list(words))
    return done.stdout

print(json.dumps({
    "call": double(torch.ones(3)).tolist(),
    "info": list(json.loads(invoke("info", "--json"))["backends"]),
    "warmup": [factory.__name__ for factory, _ in warmup.kernels()],
    "bench": CliRunner().invoke(app, ["bench", "softmax"]).output,
    "prove": json.loads(invoke("prove", "double", "--json")),
    "specs": [spec.name for spec in SPECS],
}))
"""


def test_a_new_operator_is_seen_everywhere(tree: Path) -> None:
    pytest.importorskip("tilelang")
    done = run(tree, "-c", SEEN)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["call"] == [2, 2, 2]
    assert seen["info"] == [*list(OPERATORS)[:-1], "double", list(OPERATORS)[-1]]
    assert "double_fwd" in seen["warmup"]
    assert " double, " in seen["bench"]
    assert seen["prove"]["holds"], seen["prove"]
    assert [layer["name"] for kernel in seen["prove"]["kernels"] for layer in kernel["layers"]] == ["L0", "L1"]
    assert "double" in seen["specs"]


@pytest.mark.parametrize(("call", "found"), [("_fwd(x)", "1 passed"), ("_fwd(_fwd(x))", "1 failed")])
def test_the_generic_tests_run_on_a_new_operator(tree: Path, call: str, found: str) -> None:
    file = tree / "bindings/double.py"
    right = file.read_text()
    file.write_text(right.replace("_fwd(x)", call))
    only = ["-q", "-p", "no:xdist", "--assert=plain", "tests/test_ops.py", "-k", "double and test_values"]
    done = run(tree, "-m", "pytest", *only)
    file.write_text(right)
    assert found in done.stdout, done.stdout
