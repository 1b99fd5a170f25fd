"""Read releases of transformers and write the table of fingerprints: ``python tests/fingerprints.py RELEASE=FILE ...``.

FILE is the release's ``transformers/models/deepseek_v4/modeling_deepseek_v4.py``. Give all releases; ``ruff format`` lays
the table out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from packaging.version import Version

from lemmata.integrations.originals import ORIGINALS, fingerprints

_TARGET = Path(__file__).parents[1] / "src/lemmata/integrations/fingerprints.py"
_HEAD = '''"""The releases of transformers that were read, and the fingerprints of the functions that the swaps replace.

``tests/fingerprints.py`` writes this file.
"""

'''


def table(files: dict[str, Path]) -> str:
    """Return the text of the table."""
    releases = sorted(files, key=Version)
    functions: dict[str, list[str]] = {name: [] for names in ORIGINALS.values() for name in names}
    for release in releases:
        found = fingerprints(files[release].read_text())
        for name, seen in functions.items():
            if found[name] not in seen:
                seen.append(found[name])
    rows = [f"    {json.dumps(name)}: {_tuple(seen)}," for name, seen in functions.items()]
    return "\n".join([f"{_HEAD}RELEASES = {_tuple(releases)}", "FUNCTIONS = {", *rows, "}", ""])


def _tuple(words: list[str]) -> str:
    return f"({', '.join(map(json.dumps, words))},)"


if __name__ == "__main__":
    pairs = [argument.split("=", 1) for argument in sys.argv[1:]]
    _TARGET.write_text(table({release: Path(path) for release, path in pairs}))
