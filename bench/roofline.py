"""What one H200 can do at most, measured on such a card with random data, and the bounds that follow."""

from __future__ import annotations

BYTES_PER_S = 4.30e12  # device-to-device copy, read plus write
LAUNCH_US = 1.0  # an empty kernel in a graph
SM, CLOCK_HZ = 132, 1.98e9
FP32_PER_S = SM * 128 * CLOCK_HZ  # instructions of one lane, not FLOP
SPECIAL_PER_S = SM * 16 * CLOCK_HZ  # reciprocals, exponentials
BF16_PER_S, FP8_PER_S = 793e12, 1511e12  # FLOP of products of 8192 x 8192 matrices, in bursts


def bound(*, bytes: float, fp32: float = 0, special: float = 0, bf16: float = 0, fp8: float = 0) -> tuple[float, str]:
    """Return the largest of the times that a kernel's traffic and instructions need, in microseconds, and its name.

    Args:
        bytes: read and written.
        fp32: instructions of one lane.
        special: of one lane too.
        bf16: FLOP of the tensor cores.
        fp8: the same.
    """
    times = {
        "memory": bytes / BYTES_PER_S * 1e6,
        "fp32 instructions": fp32 / FP32_PER_S * 1e6,
        "special functions": special / SPECIAL_PER_S * 1e6,
        "bf16 tensor cores": bf16 / BF16_PER_S * 1e6,
        "fp8 tensor cores": fp8 / FP8_PER_S * 1e6,
        "launch": LAUNCH_US,
    }
    name = max(times, key=lambda n: times[n])
    return times[name], name
