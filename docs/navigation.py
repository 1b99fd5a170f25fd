"""A hook of mkdocs: the page of each operator in the registry, by its title."""

from __future__ import annotations

from typing import Any

from lemmata.operators import OPERATORS


def on_config(config: Any) -> Any:
    """Fill in the section of operators."""
    pages = [{operator.title: f"{operator.name}.md"} for operator in OPERATORS.values()]
    for section in config["nav"]:
        if "Operators" in section:
            section["Operators"] = sorted(pages, key=lambda page: next(iter(page)))
    return config
