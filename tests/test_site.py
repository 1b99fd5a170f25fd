"""The site that MkDocs builds: built once, then read as a browser would."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import lemmata
from lemmata.integrations import automodel, transformers
from lemmata.operators import OPERATORS
from lemmata.reference import contract
from site_faults import faults, inventory

ROOT = Path(__file__).parents[1]


def public() -> set[str]:
    """Every name that users import."""
    from lemmata.proofs import interpret, verify

    names = {f"lemmata.{name}" for name in lemmata.__all__}
    names |= {f"{transformers.__name__}.{name}" for name in transformers.__all__}
    names |= {f"{automodel.__name__}.{n}" for n in set(automodel.__all__) - set(SHARED)}
    names |= {
        f"{c.__module__}.{n}"
        for n, c in inspect.getmembers(contract, inspect.isclass)
        if c.__module__ == contract.__name__
    }
    for module in (verify, interpret):
        others = (getattr(module, name) for name in module.__all__)  # type: ignore[attr-defined]
        names |= {f"{o.__module__}.{o.__qualname__}" for o in others if inspect.isclass(o)}
    return names | {f"lemmata.proofs.{name}" for name in ("verify", "interpret", "second_opinion")} | MORE


SHARED = "FallbackError", "Path", "Swap", "UnknownVersionError", "paths"  # by the integrations
MORE = {
    *(
        f"lemmata.proofs.engine.execution.invariants.{name}"
        for name in ("Invariant", "Ghost", "Determined", "Auxiliary")
    ),
    "lemmata.proofs.engine.options.Options",
    "lemmata.operators.OPERATORS",
    "lemmata.operators.find",
    "lemmata.record.records",
}


def test_the_site(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list(faults(tmp_path)) == []
    assert public() - inventory(tmp_path) == set()
    assert "csa_fwd" in (tmp_path / "sources" / "kernels" / "csa.py" / "index.html").read_text()
    order = (tmp_path / "sources" / "proofs" / "engine" / "order" / "__init__.py" / "index.html").read_text()
    assert "<title>proofs/engine/order/__init__.py - " in order
    csa = (tmp_path / "csa" / "index.html").read_text()
    assert csa.count("<math") > 10
    first = (tmp_path / "index.html").read_text()
    assert all(f'href="{operator.name}/"' in first for operator in OPERATORS.values()), "a page that no menu names"


RETURNS = '<span class="doc-section-title">Returns:</span><ul>{}</ul>'
ROW = '<li class="doc-section-item">out</li>'


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (r"Let \(x\) be", r"a formula stands raw: '\\(x\\) be'"),
        ("the sum x_{m-1} of", "a formula stands raw: 'x_{m-1} of'"),
        ("<td><code>the_longest_of_all_names</code></td>", "a table is as wide as the_longest_of_all_names"),
        ("<td><code>the_<wbr>longest_<wbr>of_<wbr>all_<wbr>names</code></td>", None),
        ("$$x$$", "a formula stands raw: '$$x$$'"),
        ("<code>re.compile(r'\\(')</code>", None),
        ('<a href="b.html">', "dead link b.html"),
        ('<a href="#two">', "dead link #two"),
        ('<a href="#one">', None),
        ('<a href="https://example.org">', None),
        ('<script src="https://example.org/a.js"></script>', "loads https://example.org/a.js"),
        (RETURNS.format(ROW), None),
        ("<code>``[R, k]`` int32</code>", "marks of code stand raw"),
        (RETURNS.format(ROW + ROW), "2 rows of Returns"),
    ],
)
def test_what_is_wrong_with_a_page_is_noticed(body: str, fault: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(f'<p id="one">{body}</p>')
    assert list(faults(tmp_path)) == ([f"a.html: {fault}"] if fault else [])


def test_a_name_without_an_entry_is_noticed(tmp_path: Path) -> None:
    entries = zlib.compress(b"lemmata.csa py:function 1 csa/#$ -\n")
    (tmp_path / "objects.inv").write_bytes(b"# compressed using zlib.\n" + entries)
    assert inventory(tmp_path) == {"lemmata.csa"}
    assert "lemmata.hca" in public() - inventory(tmp_path)
