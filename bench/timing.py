"""Device time by CUDA-graph replay over rotating inputs, several contenders interleaved, burst and sustained.

A power-capped card slows down within tens of milliseconds, so both regimes are timed: a burst is a few milliseconds of
replays after the card has rested, sustained is the second half of a long run. Inputs rotate through more memory than
the cache holds, so that every call finds its inputs cold. Contenders take turns in the order A B C C B A.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch

ROTATION_BYTES = 256 * 2**20  # more than four times the 60 MB of an H200's L2
KEPT_BYTES = 2**30  # of a graph's inputs and outputs, unless three calls need more
REST_S, BURST_S, SUSTAINED_S, BLOCKS = 0.2, 0.006, 0.6, 5

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Attributes:
        op, shape: what is timed.
        bytes: bytes that every contender reads and writes in one call.
        bound_us: the least time the hardware allows, and why.
        limit_us: the time the project sets itself.
        contenders: by name, a function that allocates one set of inputs and returns the call on it.
        absent: contenders that are not installed here.
        agree: raises unless the contenders compute the same, each by its own rules.
    """

    op: str
    shape: str
    bytes: int
    bound_us: float
    bound: str
    limit_us: float | None
    contenders: Mapping[str, Callable[[], Call]]
    absent: tuple[str, ...] = ()
    agree: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Figure:
    """What one contender took for one case, in microseconds a call."""

    op: str
    shape: str
    contender: str
    burst_us: float
    sustained_us: float
    noise: float
    bound_us: float
    bound: str
    limit_us: float | None


def calls_of(bytes_per_call: int) -> int:
    """Return the calls in a graph: enough for inputs to be cold when their turn comes again, at least 20, or 3 if large."""
    least = min(20, max(3, KEPT_BYTES // bytes_per_call))
    return min(2048, max(least, math.ceil(ROTATION_BYTES / bytes_per_call)))


class _Replay:
    """A graph of calls over as many input sets as the rotation needs."""

    def __init__(self, make: Callable[[], Call], bytes_per_call: int) -> None:
        self.calls = calls_of(bytes_per_call)
        self.kept: list[object] = [make() for _ in range(self.calls)]  # the graph holds only addresses
        calls = cast(list[Call], self.kept[:])
        calls[0]()  # compiles
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.kept += [call() for call in calls]
        self.replay(2)
        self.estimate_s = self.replay(5) * self.calls

    def replay(self, times: int) -> float:
        """Return the seconds a call over so many replays."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(times):
            self.graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / times / self.calls

    def burst(self) -> float:
        torch.cuda.synchronize()
        time.sleep(REST_S)
        return self.replay(math.ceil(BURST_S / self.estimate_s))

    def sustained(self) -> float:
        half = math.ceil(SUSTAINED_S / 2 / self.estimate_s)
        self.replay(half)
        return self.replay(half)


def measure(case: Case) -> list[Figure]:
    """Time every contender of a case; its memory is free again afterwards."""
    torch.compiler.reset()  # of a function that it has compiled for many shapes, torch.compile runs the next as it is
    case.agree()
    replays = {name: _Replay(make, case.bytes) for name, make in case.contenders.items()}
    burst: dict[str, list[float]] = {name: [] for name in replays}
    sustained: dict[str, list[float]] = {name: [] for name in replays}
    turns = [*replays, *reversed(replays)]
    for _ in range(BLOCKS):
        for name in turns:
            burst[name].append(replays[name].burst() * 1e6)
    for name in turns:
        sustained[name].append(replays[name].sustained() * 1e6)
    return [
        Figure(
            op=case.op,
            shape=case.shape,
            contender=name,
            burst_us=round(statistics.median(burst[name]), 3),
            sustained_us=round(statistics.median(sustained[name]), 3),
            noise=round((max(burst[name]) - min(burst[name])) / statistics.median(burst[name]), 4),
            bound_us=round(case.bound_us, 3),
            bound=case.bound,
            limit_us=case.limit_us,
        )
        for name in replays
    ]
