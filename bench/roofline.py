"""What one H200 can do at most, measured on such a card with random data, and the bounds that follow."""

from __future__ import annotations

BYTES_PER_S = 4.30e12  # device-to-device copy, read plus write
LAUNCH_US = 1.0  # an empty kernel in a graph
SM, CLOCK_HZ = 132, 1.98e9
FP32_PER_S = SM * 128 * CLOCK_HZ  # instructions of one lane, not FLOP
SPECIAL_PER_S = SM * 16 * CLOCK_HZ  # reciprocals, exponentials


def bound(*, bytes: float, fp32: float, special: float) -> tuple[float, str]:
    """The largest of the times that a kernel's traffic and instructions need, in microseconds, and its name."""
    times = {
        "memory": bytes / BYTES_PER_S * 1e6,
        "fp32 instructions": fp32 / FP32_PER_S * 1e6,
        "special functions": special / SPECIAL_PER_S * 1e6,
        "launch": LAUNCH_US,
    }
    name = max(times, key=lambda n: times[n])
    return times[name], name
