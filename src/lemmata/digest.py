"""What a module is made of: its source and, through its imports, that of every module of lemmata that it needs."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_PACKAGE = Path(__file__).parent


def digest(modules: Iterable[str]) -> str:
    """Return the SHA-256 of the modules' sources and of all that they import from lemmata, at whatever depth."""
    out = hashlib.sha256()
    for name, source in sorted(sources(modules).items()):
        out.update(f"{name} {len(source)}\n".encode() + source)
    return out.hexdigest()


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


def _file(module: str) -> Path | None:
    """Return the file of a module of lemmata; None of a folder without ``__init__.py``, and of what is no module of lemmata."""
    root, *parts = module.split(".")
    path = _PACKAGE.joinpath(*parts)
    files = path / "__init__.py", path.with_suffix(".py")
    return next((file for file in files if file.is_file()), None) if root == "lemmata" else None


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Yield the full names of what a source imports, wherever in it; of a name that may be a module, both readings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
            if not all(_file(f"{module}.{alias.name}") for alias in node.names):
                yield module
