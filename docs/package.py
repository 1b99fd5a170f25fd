"""A hook of MkDocs: lemmata as a package that a reader of sources can follow, with every folder's ``__init__``.

The folders hold none, and `lemmata.proofs` has its two functions by modules that can be called. What type checkers read of
a folder, its ``__init__.pyi``, becomes its ``__init__`` here.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

PACKAGE = Path(__file__).parent.parent / "src" / "lemmata"


@event_priority(100)  # before docstrings are looked for
def on_config(config: Any) -> Any:
    """Copy the package to a folder of its own and let docstrings be read there."""
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    copy = root / "lemmata"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for folder in (path for path in copy.iterdir() if path.is_dir()):
        stub, init = folder / "__init__.pyi", folder / "__init__.py"
        if stub.exists():
            for line in stub.read_text().splitlines():
                (folder / f"{line.rpartition(' ')[2]}.py").unlink()  # the module that can be called
            stub.rename(init)
        init.touch()
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(root)]
    return config
