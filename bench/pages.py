"""FlashMLA's cache in fp8, as its decode reads it for DeepSeek-V4.

Of a row of 512 numbers the first 448 are in e4m3, divided by a power of two for each 64 of them, and the last 64 in bf16. The
powers are exponents in e8m0, a byte each and an eighth that is unused.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

D, NARROW, GROUP = 512, 448, 64
DATA, SCALES = NARROW + 2 * (D - NARROW), 8  # bytes of a row
PAGE = 64  # rows
BIAS = 127
FP8, U8 = torch.float8_e4m3fn, torch.uint8
LARGEST_FP8 = 448.0


def _quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first numbers of rows in e4m3, in groups, and for each group the exponent of its power of two."""
    groups = rows[..., :NARROW].float().view(*rows.shape[:-1], NARROW // GROUP, GROUP)
    exponent = torch.frexp(groups.abs().amax(-1) / LARGEST_FP8).exponent
    return (groups / _power(exponent)).to(FP8), exponent


def _power(exponent: Tensor) -> Tensor:
    return ((exponent + BIAS) << 23).view(torch.float32).unsqueeze(-1)


def random_rows(B: int, N: int, device: str) -> Tensor:
    """Return random rows [B, N, D] in bf16 that pages hold exactly."""
    rows = torch.randn(B, N, D, device=device, dtype=torch.bfloat16)
    values, exponent = _quantised(rows)
    rows[..., :NARROW] = (values.float() * _power(exponent)).flatten(-2)
    return rows


def pages(rows: Tensor) -> Tensor:
    """Return rows [B, N, D] in FlashMLA's cache, bytes [pages, PAGE, 1, 584]: the data of a page's rows, then their scales."""
    values, exponent = _quantised(rows)
    data = torch.cat([values.flatten(-2).view(U8), rows[..., NARROW:].contiguous().view(U8)], -1).view(-1, PAGE * DATA)
    scales = pad(exponent + BIAS, (0, 1)).to(U8).view(-1, PAGE * SCALES)
    whole = torch.cat([data, scales], -1)
    stride = -(-whole.shape[1] // DATA) * DATA  # FlashMLA asks for a multiple
    return pad(whole, (0, stride - whole.shape[1]))[:, : whole.shape[1]].view(-1, PAGE, 1, DATA + SCALES)
