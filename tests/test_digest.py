"""The digest of a kernel changes with the code of each module that it imports, in whatever form, and with no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from lemmata import digest
from lemmata.operators import OPERATORS
from lemmata.record import kernel_digest

FORMS = {
    "import lemmata.kernels.part": {"lemmata.kernels.part"},
    "import lemmata.kernels.part as p": {"lemmata.kernels.part"},
    "from lemmata.kernels import part": {"lemmata.kernels.part"},
    "from lemmata.kernels.part import f": {"lemmata.kernels.part"},
    "from . import part": {"lemmata.kernels.part"},
    "from . import part as p, whole": {"lemmata.kernels.part", "lemmata.kernels.whole"},
    "from .part import f": {"lemmata.kernels.part"},
    "from .part import *": {"lemmata.kernels.part"},
    "from .part import (\n    f,\n    g,\n)": {"lemmata.kernels.part"},
    "def late():\n    from .part import f": {"lemmata.kernels.part"},
    "if True:\n    import lemmata.kernels.part": {"lemmata.kernels.part"},
    "from .. import reference": set(),
    "from ..reference import formula": {"lemmata.reference.formula"},
    "from ..reference.formula import f": {"lemmata.reference.formula"},
    "from .room import lamp": {"lemmata.kernels.room.lamp"},
    "from .room.lamp import f": {"lemmata.kernels.room.lamp"},
    "from .box import f": {"lemmata.kernels.box", "lemmata.kernels.room.lamp"},
    "from .whole import f": {"lemmata.kernels.whole", "lemmata.kernels.part", "lemmata.reference.formula"},
    "import torch, os.path\nfrom torch import nn": set(),
    "'from .part import f'": set(),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of a few modules; two of them import."""
    files = {
        "kernels/part.py": "",
        "kernels/whole.py": "from .part import f\nfrom ..reference.formula import g\n",
        "kernels/box/__init__.py": "from ..room import lamp\n",
        "kernels/room/lamp.py": "",
        "reference/formula.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(digest, "_PACKAGE", tmp_path)
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_import_is_followed(package: Path, form: str) -> None:
    (package / "kernels" / "op.py").write_text(form + "\n")
    wanted = FORMS[form] | ({"lemmata.kernels.part", "lemmata.reference.formula"} if "whole" in form else set())
    assert digest.sources(["lemmata.kernels.op"]).keys() == {"lemmata.kernels.op"} | wanted
    before = digest.digest(["lemmata.kernels.op"])
    for file in package.rglob("*.py"):
        name = ".".join(["lemmata", *file.relative_to(package).with_suffix("").parts]).removesuffix(".__init__")
        text = file.read_text()
        file.write_text(text + "changed = 1\n")
        assert (digest.digest(["lemmata.kernels.op"]) != before) == (name in wanted | {"lemmata.kernels.op"}), name
        file.write_text(text)
    assert digest.digest(["lemmata.kernels.op"]) == before


CODE = b"""import os

MODE = "a # b"
def f(x):
    return x + 1
TEXT = '''
# kept
'''
"""
SAME = {
    "comments": CODE.replace(b"os\n", "os  # é, then more\n# and more\n".encode()),
    "docstrings": b'"""Of the module."""\n'
    + CODE.replace(b"    return", b'    """Of a function,\n\n    # on rows.\n    """\n    return'),
    "a docstring between others": CODE.replace(b"TEXT", '"""Of é."""  # é\nTEXT'.encode()),
    "empty lines": CODE.replace(b"def", b"\n\n  \ndef").replace(b"x + 1", b"x + 1  "),
}
OTHER = {
    "a number": CODE.replace(b"1", b"2"),
    "a comment in a string": CODE.replace(b"a # b", b"a # c"),
    "a comment in rows of text": CODE.replace(b"# kept", b"# lost"),
    "how far a line is to the right": CODE.replace(b"    return", b"  return"),
}


@pytest.mark.parametrize("source", SAME.values(), ids=SAME)
def test_words_about_the_code_change_nothing(source: bytes) -> None:
    assert source != CODE
    assert digest.code(source) == digest.code(CODE)


@pytest.mark.parametrize("source", OTHER.values(), ids=OTHER)
def test_the_code_changes_the_digest(source: bytes) -> None:
    assert source != CODE
    assert digest.code(source) != digest.code(CODE)


def test_modules_that_import_one_another_are_each_taken_once(package: Path) -> None:
    (package / "kernels" / "part.py").write_text("from .whole import g\n")
    assert len(digest.sources(["lemmata.kernels.whole", "lemmata.kernels.part"])) == 3


def test_a_module_that_does_not_exist_is_named(package: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lemmata\.kernels\.absent: expected a module of lemmata, got none"):
        digest.digest(["lemmata.kernels.absent"])


def test_kernels_of_lemmata_rest_on_how_they_are_built() -> None:
    for operator in (operator for operator in OPERATORS.values() if operator.kernels):
        found = digest.sources(operator.kernel_modules)
        assert "lemmata.kernels.build" in found
        assert not [name for name in found if not name.startswith("lemmata.kernels.")], "kernels import tilelang alone"
    assert len({kernel_digest(op) for op in OPERATORS}) == len(OPERATORS) - 1, "swa runs the kernels of hca"
