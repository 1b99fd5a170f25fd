"""Pictures of the proof engine: the way of a kernel through its rooms, and which room imports which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lemmata.bench import svg

WIDE, HIGH = 112, 40

ROOMS: Mapping[str, tuple[int, int, str]] = {
    "verify": (420, 24, "the door"),
    "layers": (420, 108, "what is claimed"),
    "order": (520, 192, "races, asynchrony"),
    "execution": (640, 192, "symbolic execution"),
    "interpreter": (124, 276, "numeric runs"),
    "guards": (250, 276, "hollow? mutants"),
    "access": (532, 276, "every access"),
    "reference": (712, 276, "symbolic torch"),
    "semantics": (156, 360, "what IR means"),
    "emitted": (8, 360, "what is printed"),
    "contract": (506, 360, "hypotheses"),
    "forms": (700, 360, "normal form"),
    "compiler": (290, 444, "TileLang's IR"),
    "smt": (590, 444, "Z3, cvc5"),
    "base": (440, 528, "conditions, reports"),
}
"""Where a room stands, and what it is about."""

IMPORTS: Mapping[str, str] = {
    "verify": "layers",
    "layers": "execution order interpreter guards",
    "order": "access",
    "execution": "semantics reference",
    "interpreter": "semantics",
    "guards": "compiler contract",
    "access": "compiler contract",
    "reference": "forms",
    "semantics": "compiler",
    "emitted": "compiler",
    "contract": "smt",
    "forms": "smt",
    "compiler": "base",
    "smt": "base",
}
"""The rooms that a room imports, but for those behind them."""


ASIDE = "interpreter", "guards", "emitted"
"""Rooms in which no error can make a false theorem."""


def rooms() -> str:
    """Return the rooms of the engine, each with arrows to those that it imports."""
    return svg.picture(840, 592, "The rooms of the proof engine; an arrow points to what a room imports", _rooms())


def _rooms() -> Iterator[str]:
    for room, imported in IMPORTS.items():
        x, y, _ = ROOMS[room]
        for below in imported.split():
            to, under, _ = ROOMS[below]
            lean = max(-36, min(36, (to - x) / 6))  # arrows leave and arrive a little to the side where they go
            yield svg.line(x + WIDE / 2 + lean, y + HIGH, to + WIDE / 2 - lean, under - 2, "edge", head=True)
    for room, (x, y, about) in ROOMS.items():
        yield svg.box(x, y, WIDE, HIGH, [room, about], "box aside" if room in ASIDE else "box")


def way() -> str:
    """Return the way that a kernel, its contract and its reference take through the rooms to a verdict."""
    return svg.picture(790, 560, "The way of a kernel through the rooms of the engine to a verdict", _way())


def _way() -> Iterator[str]:
    kernel, contract, reference = 100, 385, 670
    for x, words in ((kernel, "TileLang kernel"), (contract, "contract"), (reference, "PyTorch reference")):
        yield svg.text(x, 24, words, "mid bold") + svg.line(x, 32, x, 54, "edge", head=True)
    yield svg.box(25, 56, 150, 46, ["compiler", "reads the IR"])
    yield svg.box(310, 56, 150, 46, ["contract", "hypotheses"])
    yield svg.box(595, 56, 150, 46, ["reference", "run on symbolic tensors"])
    yield svg.box(290, 160, 190, 46, ["access", "every access of the kernel"])
    yield svg.line(150, 102, 288, 176, "edge", head=True) + svg.text(226, 138, "thread and device level", "soft small")
    yield svg.line(contract, 102, contract, 158, "edge", head=True)
    yield svg.box(25, 232, 150, 46, ["semantics", "what the IR means"])
    yield svg.line(70, 102, 70, 230, "edge", head=True) + svg.text(80, 180, "tile level", "soft small")
    yield svg.box(250, 262, 120, 46, ["layers", "bounds, coverage"])
    yield svg.box(400, 262, 130, 46, ["order", "races, asynchrony"])
    yield svg.line(340, 206, 318, 260, "edge", head=True) + svg.line(430, 206, 456, 260, "edge", head=True)
    yield svg.box(595, 212, 150, 46, ["execution", "on symbols, by invariants"])
    yield svg.line(reference, 102, reference, 210, "edge", head=True)
    yield svg.line(175, 244, 593, 232, "edge", head=True)
    yield svg.box(25, 362, 150, 46, ["interpreter", "runs it on numbers"], "box aside")
    yield svg.line(100, 278, 100, 360, "edge", head=True)
    yield svg.box(595, 362, 150, 46, ["forms", "normal form"])
    yield svg.line(reference, 258, reference, 360, "edge", head=True) + svg.text(
        680, 314, "two forms: equal?", "soft small"
    )
    yield svg.box(270, 362, 240, 62, ["conditions", "“if the contract holds,", "this index is in range”"])
    yield svg.line(318, 308, 340, 360, "edge", head=True) + svg.line(456, 308, 440, 360, "edge", head=True)
    yield svg.line(595, 388, 512, 388, "edge", head=True)
    yield svg.box(300, 462, 180, 46, ["smt", "Z3, cvc5: a counterexample?"])
    yield svg.line(390, 424, 390, 460, "edge", head=True) + svg.line(390, 508, 390, 530, "edge", head=True)
    yield svg.text(390, 548, "report: a verdict for each layer", "mid bold")
