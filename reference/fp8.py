"""Numbers as a cache in fp8 has them: e4m3 in blocks of 64, each with a power of two for a scale.

Of a block x the scale is the least power of two by which 448, the largest number of e4m3, reaches the largest |x|:

    s = 2^ceil(log2(max(max|x|, 1e-4) fp32(1 / 448))),   x becomes s e4m3(x / s)

with ties to even. The gradient of the result is that of x: a model is trained as if nothing had been rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK, FLOOR, LARGEST = 64, 1e-4, 448.0


def through_fp8(x: Tensor, channels: int) -> Tensor:
    """Return x [..., D] with the first channels, a multiple of 64, as e4m3 keeps them."""
    blocks = x[..., :channels].float().unflatten(-1, (channels // BLOCK, BLOCK))  # type: ignore[no-untyped-call]
    size = blocks.abs().amax(-1, keepdim=True).clamp(min=FLOOR) * torch.tensor(1 / LARGEST, dtype=torch.float32)
    mantissa, exponent = torch.frexp(size)  # from 1/2 to below 1
    power = torch.ldexp(torch.ones_like(size), exponent - (mantissa == 0.5).int())
    scale = torch.where(size.isfinite(), power, size)  # what is not finite spoils its block
    rounded = (blocks / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).float() * scale
    return torch.cat([rounded.flatten(-2).type_as(x), x[..., channels:]], -1)
