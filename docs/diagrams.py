"""Pictures that no record holds: the way to a verdict, the keys of a query, a page of a cache, who does what in a block."""

from __future__ import annotations

from collections.abc import Iterator

from lemmata.bench import svg


def verdict() -> str:
    """Return the way of a kernel through the engine."""
    parts = [
        svg.box(20, 20, 190, 46, ["kernel", "TileLang, as it ships"]),
        svg.box(300, 20, 190, 46, ["contract", "sizes, dtypes, ranges"]),
        svg.box(580, 20, 190, 46, ["reference", "plain PyTorch"]),
        svg.box(20, 110, 190, 46, ["IR of TileLang", "tile, thread, device level"]),
        svg.box(300, 110, 190, 46, ["hypotheses", "about symbolic sizes"]),
        svg.box(580, 110, 190, 46, ["reference on symbols", "unmodified"]),
        svg.line(115, 66, 115, 108, "edge", head=True),
        svg.line(395, 66, 395, 108, "edge", head=True),
        svg.line(675, 66, 675, 108, "edge", head=True),
        svg.box(20, 210, 230, 62, ["L0, L1", "bounds, overflow, coverage,", "races, asynchrony, deadlock"]),
        svg.box(540, 210, 230, 62, ["L2, range", "kernel on symbols = reference,", "over the extended reals"]),
        svg.line(90, 156, 90, 208, "edge", head=True),
        svg.line(340, 156, 210, 208, "edge", head=True),
        svg.line(450, 156, 580, 208, "edge", head=True),
        svg.line(700, 156, 700, 208, "edge", head=True),
        svg.line(210, 146, 560, 208, "edge", head=True),
        svg.box(60, 316, 150, 46, ["Z3, cvc5", "each negation"]),
        svg.box(580, 316, 150, 46, ["normal form", "equal polynomials"]),
        svg.line(135, 272, 135, 314, "edge", head=True),
        svg.line(655, 272, 655, 314, "edge", head=True),
        svg.box(290, 316, 210, 62, ["verdict", "proved, or a counterexample", "in the kernel's own names"]),
        svg.line(210, 342, 288, 342, "edge", head=True),
        svg.line(580, 342, 502, 342, "edge", head=True),
    ]
    return svg.picture(790, 400, "From a kernel, its contract and its reference to a verdict", parts)


def keys() -> str:
    """Return the keys that a query attends to: tokens of its window, and compressed entries."""
    return svg.picture(790, 300, "Which keys a query attends to, by operator", _keys())


def _keys() -> Iterator[str]:
    tokens, cell, ratio, window, query = 24, 22, 4, 6, 19
    left = 180
    yield svg.text(
        left, 24, f"one query at position {query}; a window of {window}, entries of {ratio} tokens", "soft small"
    )
    yield svg.text(20, 62, "tokens", "bold")
    for t in range(tokens):
        seen = query - window < t <= query
        yield f'<rect x="{left + cell * t}" y="46" width="{cell - 3}" height="24" rx="3" class="{"ours" if seen else "box"}"/>'
    x = left + cell * query + (cell - 3) / 2
    yield svg.text(x, 90, "the query", "mid small")
    yield svg.text(left, 90, "positions from 0", "soft small")
    rows = (
        ("swa", "the window alone", lambda e: False),
        ("csa", "and entries of a list, as indexer_topk names them", lambda e: e in (0, 3)),
        ("hca", "and every entry that ends at the query or before", lambda e: ratio * (e + 1) <= query + 1),
    )
    for number, (op, what, seen) in enumerate(rows):
        y = 122 + 56 * number
        yield svg.text(20, y + 17, op, "bold") + svg.text(60, y + 17, "entries", "soft small")
        for e in range(tokens // ratio):
            kind = "ours" if seen(e) else "box"
            yield f'<rect x="{left + cell * ratio * e}" y="{y}" width="{cell * ratio - 3}" height="24" rx="3" class="{kind}"/>'
        yield svg.text(left, y + 40, what, "soft small")


def page() -> str:
    """Return rows as the operators read them, pages as ``compress_step`` writes them, and one of FlashMLA's, to scale."""
    title = "Rows that csa, hca and swa read, pages that compress_step writes, and a page of FlashMLA's fp8 cache"
    return svg.picture(790, 566, title, [*_rows(), *_written_pages(130), *_page_in_fp8(190)])


def _rows() -> Iterator[str]:
    left = 110
    yield svg.text(14, 24, "what csa, hca and swa read: [B, T, 512] in bf16, row after row", "bold")
    for number, y in ((0, 40), (1, 74)):
        yield svg.text(left - 10, y + 18, f"row {number}", "end small")
        yield svg.box(left, y, 1024 / 2, 26, ["512 numbers in bf16: 1024 bytes"])


def _written_pages(top: int) -> Iterator[str]:
    """Yield a sequence's row of the table and the pages that it names, which lie in any order."""
    left, rows = 110, 64
    yield svg.text(14, top + 14, f"pages that compress_step writes: [pages, {rows}, 512] in bf16, such rows", "bold")
    yield svg.text(left - 10, top + 57, "one sequence", "end small")
    for at, page in enumerate((5, 0, 9)):
        y = top + 40 + 34 * at
        yield svg.box(left, y, 60, 26, [str(page)])
        yield svg.line(left + 60, y + 13, left + 128, y + 13, "edge", head=True)
        yield svg.box(left + 130, y, 382, 26, [f"page {page}: entries {rows * at} to {rows * (at + 1) - 1}"])
    yield svg.text(left + 526, top + 57, f"entry i: row i mod {rows} of page", "soft small")
    yield svg.text(left + 526, top + 73, f"table[sequence, i // {rows}]", "soft small")
    words = "One page for each sequence, as long as it gets, is a tensor that csa and hca read."
    yield svg.text(14, top + 158, words, "soft small")


def _page_in_fp8(down: int) -> Iterator[str]:
    left, rows = 110, 64
    yield svg.text(14, down + 144, f"a page of FlashMLA's cache: {rows} rows in {584 * rows} bytes", "bold")
    for number, y in ((0, down + 160), (1, down + 194), (rows - 1, down + 248)):
        yield svg.text(left - 10, y + 18, f"row {number}", "end small")
        yield svg.box(left, y, 448 / 2, 26, ["448 in e4m3: 448 bytes"])
        yield svg.box(left + 448 / 2, y, 128 / 2, 26, ["64 bf16"])
    yield svg.text(left + 576 / 4, down + 238, "…", "mid bold")
    yield svg.text(left + 576 / 2 + 14, down + 178, "576 bytes; the last 64 numbers are the rotary ones", "soft small")
    for number, x in ((0, left), (1, left + 130), (rows - 1, left + 290)):
        yield svg.box(x, down + 292, 122, 40, [f"scales of row {number}", "7 and 1 of padding"])
    yield svg.text(left + 271, down + 316, "…", "mid bold")
    yield svg.text(left + 424, down + 308, "8 bytes a row: e8m0, each for 64", "soft small")
    yield svg.text(left + 424, down + 324, "numbers; behind all rows of the page", "soft small")
    words = f"byte 0 of a page to {576 * rows}: rows; then scales. Pages begin at multiples of 576."
    yield svg.text(14, down + 360, words, "soft small")


def roles() -> str:
    """Return what the three roles of warps do with one tile of keys, and what they wait for."""
    return svg.picture(
        900, 330, "What the producer and the two consumers of a block do with one tile of keys", _roles()
    )


def _roles() -> Iterator[str]:
    lanes = {"producer": 50, "consumer 0": 140, "consumer 1": 230}
    for name, y in lanes.items():
        yield svg.text(14, y + 32, name, "bold") + svg.line(110, y + 27, 890, y + 27)
    copy, first, second = lanes.values()
    yield svg.box(120, copy, 150, 54, ["copy half 0", "64 keys, by cp.async"])
    yield svg.box(290, copy, 150, 54, ["copy half 1", "64 keys, by cp.async"])
    yield svg.box(690, copy, 190, 54, ["the next tile", "once buffers are free"])
    yield svg.box(230, first, 130, 54, ["scores 0", "q kᵀ, 64 keys"])
    yield svg.box(372, first, 118, 54, ["weights 0", "max, exp2"])
    yield svg.box(502, first, 150, 54, ["acc += w0 k", "columns, half 0"])
    yield svg.box(730, first, 150, 54, ["acc += w1 k", "columns, half 0"])
    yield svg.box(346, second, 144, 54, ["scores 1", "q kᵀ, 64 keys"])
    yield svg.box(502, second, 118, 54, ["acc += w0 k", "columns, half 1"])
    yield svg.box(632, second, 86, 54, ["weights 1", "max, exp2"])
    yield svg.box(730, second, 150, 54, ["acc += w1 k", "columns, half 1"])
    arrows = ((235, copy + 54, 260, first), (366, copy + 54, 366, second), (480, first + 54, 508, second))
    for x1, y1, x2, y2 in (*arrows, (700, second, 740, first + 54)):
        yield svg.line(x1, y1, x2, y2 - 2 if y2 > y1 else y2 + 2, "edge", head=True)
    yield svg.text(
        110,
        24,
        "time, not to scale; arrows are the barriers between roles, but for those that free buffers",
        "soft small",
    )
    yield svg.text(
        110,
        312,
        "w0 and w1 pass through shared memory; the tensor cores multiply for one consumer while the other",
        "soft small",
    )
    yield svg.text(
        110, 327, "computes weights. Each consumer adds up half of the columns over all keys of the tile.", "soft small"
    )
