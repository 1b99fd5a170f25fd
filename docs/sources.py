"""A hook of MkDocs: a page that links to a source, as ``../kernels/csa.py``, links to a page of the site that shows it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(\.\./([\w./-]+\.(?:py|md|json|yml))(#[\w-]+)?\)")
PAGE = "---\nsearch:\n  exclude: true\n---\n# {title}\n\n````````{language}\n{source}\n````````\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each source that a page links to."""
    linked = {path for page in files.documentation_pages() for path, _ in LINK.findall(page.content_string)}
    for path in sorted(linked):
        source = (ROOT / path).read_text()
        title = path.replace("_", r"\_").replace("/", "/<wbr>")  # __init__ would be bold, and long paths break anywhere
        content = PAGE.format(title=title, language=path.rpartition(".")[2], source=source)
        files.append(File.generated(config, f"sources/{path}.md", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Link to the pages that `on_files` adds."""
    return LINK.sub(lambda link: f"](sources/{link[1]}.md)", markdown)
