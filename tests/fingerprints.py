"""Read releases of a library and write the table of fingerprints: ``python tests/fingerprints.py LIBRARY RELEASE=PATH ...``.

LIBRARY is transformers or automodel. PATH is the release's ``transformers/models/deepseek_v4/modeling_deepseek_v4.py``, or
its folder ``nemo_automodel/components/models/deepseek_v4``, beside ``common``. Give all releases; ``ruff format``
lays the table out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from packaging.version import Version

from lemmata.integrations import automodel_originals, originals
from lemmata.integrations.originals import fingerprints

_FOLDER = Path(__file__).parents[1] / "src/lemmata/integrations"
_HEAD = '''"""The releases of {} that were read, and the fingerprints of the functions that the swaps replace.

``tests/fingerprints.py`` writes this file.
"""

'''


def of_transformers(path: Path) -> dict[str, str]:
    """Return the fingerprints of a release of transformers."""
    return fingerprints(path.read_text())


def of_automodel(folder: Path) -> dict[str, str]:
    """Return the fingerprints of a release of NeMo AutoModel."""
    text = "\n".join((folder / f"{module}.py").read_text() for module in automodel_originals.MODULES)
    return fingerprints(text.replace("from __future__ import annotations", ""), automodel_originals.ORIGINALS)


LIBRARIES = {
    "transformers": (of_transformers, originals.ORIGINALS, _FOLDER / "fingerprints.py"),
    "automodel": (of_automodel, automodel_originals.ORIGINALS, _FOLDER / "automodel_fingerprints.py"),
}


def table(library: str, paths: dict[str, Path]) -> str:
    """Return the text of a library's table."""
    read, named, _ = LIBRARIES[library]
    releases = sorted(paths, key=Version)
    functions: dict[str, list[str]] = {name: [] for names in named.values() for name in names}
    for release in releases:
        found = read(paths[release])
        for name, seen in functions.items():
            if found[name] not in seen:
                seen.append(found[name])
    rows = [f"    {json.dumps(name)}: {_tuple(seen)}," for name, seen in functions.items()]
    return "\n".join([f"{_HEAD.format(library)}RELEASES = {_tuple(releases)}", "FUNCTIONS = {", *rows, "}", ""])


def _tuple(words: list[str]) -> str:
    return f"({', '.join(map(json.dumps, words))},)"


if __name__ == "__main__":
    library, *releases = sys.argv[1:]
    pairs = [argument.split("=", 1) for argument in releases]
    LIBRARIES[library][2].write_text(table(library, {release: Path(path) for release, path in pairs}))
