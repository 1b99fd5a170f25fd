"""The proof engine: from the IR that TileLang makes of a kernel to conditions, and from conditions to a verdict."""

import tilelang  # noqa: F401  it carries the tvm that the modules here import
