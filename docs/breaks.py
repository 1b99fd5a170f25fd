"""A hook of MkDocs: a long name may break behind an underscore, where a narrow page would cut it anywhere."""

from __future__ import annotations

import re
from typing import Any

MARKUP = re.compile(r"(<pre\b.*?</pre>|<[^>]*>)", re.DOTALL)
LONG = re.compile(r"\w{20,}")


def on_page_content(content: str, **_: Any) -> str:
    """Say where the long words outside of programs may break."""
    parts = MARKUP.split(content)  # what matches stands at the odd places
    parts[::2] = [LONG.sub(lambda word: word[0].replace("_", "_<wbr>"), text) for text in parts[::2]]
    return "".join(parts)
