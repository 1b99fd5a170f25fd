"""Errors that the engine raises when it must not answer."""


class Unsupported(Exception):
    """Says that a kernel uses something that the engine does not model. It is never a verdict; ``kind`` is how it fails."""

    kind = "unsupported"


class UnsupportedVersion(Exception):
    """Says that the installed TileLang is not the one that the engine reads."""
