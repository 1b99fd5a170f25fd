"""``python -m lemmata`` is the command ``lemmata``."""

from .cli import app

app()
