"""The proof engine: from the IR that TileLang makes of a kernel to conditions, and from conditions to a verdict.

Its folders are rooms, each with a paragraph on what it promises and trusts; ``docs/engine.md`` draws the way through them.
``verify`` is the door, and ``cache`` keeps its verdicts.
"""

import tilelang  # noqa: F401  it carries the tvm that the modules here import
