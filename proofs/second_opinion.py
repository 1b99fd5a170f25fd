"""``lemmata.proofs.second_opinion(kernel, contract, reference, sizes=...)``: see `engine.interpreter.second_opinion`.

This folder is a package without an ``__init__``, so the function is reached through a module that can be called. Type
checkers read of it in ``__init__.pyi``.
"""

import inspect
import sys
from types import ModuleType

from .engine.interpreter.second_opinion import run, second_opinion

__all__ = ["run", "second_opinion"]


class _Callable(ModuleType):
    __call__ = staticmethod(second_opinion)


sys.modules[__name__].__class__ = _Callable
__signature__ = inspect.signature(second_opinion)
