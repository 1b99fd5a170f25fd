"""What is claimed of each operator's kernels, made once for all tests of a process, since the kernels are built with it."""

from __future__ import annotations

from functools import cache

import tracing
from lemmata.proofs import suite
from lemmata.proofs.suite import Proof


@cache
def proofs(op: str) -> tuple[Proof, ...]:
    """The proofs of one operator."""
    tracing.install()
    return tuple(suite.proofs(op))
