"""Where the commands print: as wide as a terminal is, and as wide as a table needs elsewhere."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table


def console(wide: int) -> Console:
    """Return a console: of the terminal's width or that of ``COLUMNS``, and of ``wide`` columns in a file or a pipe."""
    found = Console(highlight=False)
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=wide)


def facts() -> Table:
    """Return an empty table of names and what they are; a long word is folded, not cut off."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    return table


def columns(first: str, *others: str) -> Table:
    """Return an empty table: the first column of words, the others of numbers, close together on a narrow terminal."""
    padding = (0, 1) if console(160).width >= 80 else (0, 1, 0, 0)
    table = Table(box=None, pad_edge=False, header_style=None, padding=padding)
    table.add_column(first, overflow="fold")
    for column in others:
        table.add_column(column, justify="right", overflow="fold")
    return table
