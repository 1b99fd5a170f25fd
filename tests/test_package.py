"""What a user installs: fast to import, without tilelang or z3, and one name in site-packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def python(code: str, path: str = str(ROOT / "src")) -> str:
    """Run code in a fresh process that finds lemmata at that path."""
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


HIDE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tilelang", "tvm", "z3", "cvc5", "transformers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def test_importing_needs_torch_alone() -> None:
    code = HIDE + "import torch, lemmata; print(lemmata.sinkhorn(torch.zeros(1, 4, 4))[0, 0, 0].item())"
    assert float(python(code)) == pytest.approx(0.25, rel=1e-5)


def test_importing_loads_neither_tilelang_nor_z3() -> None:
    loaded = python("import sys, lemmata; print(*{m.split('.')[0] for m in sys.modules})").split()
    assert "lemmata" in loaded
    assert not {"tilelang", "tvm", "z3", "transformers", "rich", "typer"} & set(loaded)


def loaded_beyond_torch(imports: str) -> set[str]:
    """The modules that an import loads and that of torch does not; of lemmata's, the folder or the file."""
    alone = "import sys, torch, torch.utils.flop_counter; torch_alone = set(sys.modules)"  # a CUDA build loads triton with it
    code = f"{alone}; {imports}; print(*set(sys.modules) - torch_alone)"
    return {".".join(name.split(".")[: 2 if name.startswith("lemmata") else 1]) for name in python(code).split()}


def test_importing_loads_bindings_and_references_alone() -> None:
    few = {"lemmata", "lemmata.bindings", "lemmata.reference", "lemmata.operators", "lemmata.models"}
    launching = {"lemmata.shipping", "lemmata.digest"}  # which need no package
    assert loaded_beyond_torch("import lemmata") - {"torch"} == few | launching
    assert {"lemmata.cli", "typer"} <= loaded_beyond_torch("import lemmata, lemmata.cli"), "the test would see more"


def test_a_cuda_call_without_tilelang_says_what_to_install() -> None:
    code = HIDE + (
        "from lemmata.bindings.registry import lazily\n"
        "try: lazily('lemmata.kernels.sinkhorn', 'forward').__closure__[0].cell_contents()\n"
        "except RuntimeError as error: print(error)"
    )
    assert "pip install 'lemmata[cuda]'" in python(code)


def test_the_wheel_owns_one_top_level_name(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build folder in the checkout would keep modules that were deleted
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"lemmata"}
    records = {f"bench/results/{path.name}" for path in (ROOT / "bench" / "results").glob("*.json")}
    for needed in {
        "py.typed",
        "bench/picture.css",
        "kernels/sinkhorn.py",
        "proofs/engine/__init__.py",
        "proofs/__init__.pyi",
    } | records:
        assert f"lemmata/{needed}" in names

    ours = {f"lemmata/{f.relative_to(ROOT / 'src' / 'lemmata')}" for f in (ROOT / "src" / "lemmata").rglob("*.py")}
    for folder in ("kernels", "reference", "bindings", "proofs", "bench"):
        ours |= {f"lemmata/{f.relative_to(ROOT)}" for f in (ROOT / folder).rglob("*.py")}
    assert {n for n in names if n.endswith(".py")} == ours
    assert str(tmp_path) in python("import lemmata; print(lemmata.__file__)", path=str(tmp_path / "installed"))


def test_no_folder_of_ours_shadows_a_package() -> None:
    for name in ("kernels", "reference", "bindings", "proofs", "bench"):
        assert not (ROOT / name / "__init__.py").exists()
        if not (ROOT / "PKG-INFO").exists():  # an sdist holds copies
            assert (ROOT / "src/lemmata" / name).resolve() == ROOT / name


def examples(text: str) -> list[str]:
    """The programs of a page."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_examples_of_the_readme_run(tmp_path: Path) -> None:
    programs = examples((ROOT / "README.md").read_text())
    assert len(programs) >= 2
    for program in programs:
        assert len([line for line in program.splitlines() if line.strip()]) <= 15
        expected = re.findall(r"# prints (.*)", program)
        assert expected
        file = tmp_path / "example.py"  # TileLang reads the source of a kernel
        file.write_text(program)
        assert python(f"import runpy; runpy.run_path({str(file)!r})").split("\n")[:-1] == expected
