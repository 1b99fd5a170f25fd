"""``lemmata.proofs.verify(kernel, contract, ...)``: what `lemmata.proofs.engine.verify.verify` documents.

This folder is a package without an ``__init__``, so the function is reached through a module that can be called. Type
checkers read of it in ``__init__.pyi``.
"""

import inspect
import sys
from types import ModuleType

from .engine.base.report import Accepted, Report
from .engine.verify import verify

__all__ = ["Accepted", "Report", "verify"]


class _Callable(ModuleType):
    __call__ = staticmethod(verify)


sys.modules[__name__].__class__ = _Callable
__signature__ = inspect.signature(verify)
