"""A hook of MkDocs: pictures stand in the page itself, so that they follow its light or dark mode."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PICTURE = re.compile(r'<p><img alt="([^"]*)" src="(?:\.\./)*(pictures/[\w-]+\.svg)" ?/?></p>')


def on_page_content(content: str, **_: Any) -> str:
    """Put each picture where a page shows it, with its words below."""

    def shown(found: re.Match[str]) -> str:
        drawn = (Path(__file__).parent / found[2]).read_text(encoding="utf-8")
        return f'<figure class="picture">{drawn}<figcaption>{found[1]}</figcaption></figure>'

    return PICTURE.sub(shown, content)
