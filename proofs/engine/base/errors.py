"""What the engine raises when it must not answer."""


class Unsupported(Exception):
    """The kernel uses something that the engine does not model. Never a verdict."""


class UnsupportedVersion(Exception):
    """The installed TileLang is not the one that the engine reads."""
