"""``python programs.py PAGE FOLDER`` writes the Python programs of a page, each under the name of its section."""

import re
import sys
from pathlib import Path


def programs(text: str) -> dict[str, str]:
    """Return the first program of each section of a page, by the section's title in lower case with underscores."""
    found = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        if code := re.search(r"```python\n(.*?)```", section, re.DOTALL):
            found["_".join(re.findall(r"\w+", section.splitlines()[0].lower()))] = code[1]
    return found


if __name__ == "__main__":
    for name, code in programs(Path(sys.argv[1]).read_text(encoding="utf-8")).items():
        (Path(sys.argv[2]) / f"{name}.py").write_text(code, encoding="utf-8")
