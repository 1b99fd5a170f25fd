"""What a module is made of: its code and, through its imports, that of every module of lemmata that it needs."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

_PACKAGE = Path(__file__).parent


def digest(modules: Iterable[str]) -> str:
    """Return the SHA-256 of the modules' code and of all that they import from lemmata, at whatever depth.

    It does not change with a comment, a docstring or an empty line: they change nothing that was measured or tested.
    """
    out = hashlib.sha256()
    for name, source in sorted(sources(modules).items()):
        text = code(source)
        out.update(f"{name} {len(text)}\n".encode() + text)
    return out.hexdigest()


@functools.cache
def code(source: bytes) -> bytes:
    """Return a source without its comments, docstrings and empty lines; the same bytes under each version of Python."""
    lines = list(map(bytearray, source.splitlines()))
    for row, first, last in sorted([*_docstrings(source), *_comments(source)], reverse=True):  # the last of a row first
        del lines[row][first:last]
    return b"".join(line.rstrip() + b"\n" for line in lines if line.strip())


def sources(modules: Iterable[str]) -> dict[str, bytes]:
    """Return the sources by the full names of the modules, these and all that they import from lemmata.

    Raises:
        FileNotFoundError: one of ``modules`` does not exist.
    """
    found: dict[str, bytes] = {}
    pending = list(modules)
    for name in pending:  # grows while it is walked
        if name in found:
            continue
        path = _file(name)
        if path is None:
            raise FileNotFoundError(f"{name}: expected a module of lemmata, got none")
        found[name] = path.read_bytes()
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        pending += [imported for imported in _imports(found[name], package) if _file(imported)]
    return found


def _docstrings(source: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield where strings stand that are statements: the row, the first byte in it, and one more than the last."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            end = node.end_lineno or node.lineno
            for row in range(node.lineno, end + 1):
                last = (node.end_col_offset or 0) if row == end else sys.maxsize
                yield row - 1, node.col_offset if row == node.lineno else 0, last


def _comments(source: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield where comments stand, as for docstrings."""
    lines = source.splitlines()
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            yield row - 1, len(lines[row - 1].decode()[:column].encode()), sys.maxsize


def _file(module: str) -> Path | None:
    """Return the file of a module of lemmata; None of a folder without ``__init__.py``, and of what is no module of lemmata."""
    root, *parts = module.split(".")
    path = _PACKAGE.joinpath(*parts)
    files = path / "__init__.py", path.with_suffix(".py")
    return next((file for file in files if file.is_file()), None) if root == "lemmata" else None


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Yield the full names of what a source imports, wherever in it; of a name that may be a module, both readings."""
    for module, names in _statements(source, package):
        yield from (f"{module}.{name}" for name in names)
        if not names or not all(_file(f"{module}.{name}") for name in names):
            yield module


@functools.cache
def _statements(source: bytes, package: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the modules that a source imports, by their full names, and what it imports from each; nothing if it is all."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found.append((module, tuple(alias.name for alias in node.names)))
    return tuple(found)
