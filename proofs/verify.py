"""``lemmata.proofs.verify(kernel, contract, ...)``: what `lemmata.proofs.engine.verify.verify` documents."""

from .door import called_as
from .engine.base.report import Accepted, Report
from .engine.verify import verify

__all__ = ["Accepted", "Report", "verify"]

called_as(__name__, verify)
