"""``lemmata.proofs.interpret(kernel, *tensors)``: what `lemmata.proofs.engine.interpreter.interpret.interpret` documents.

This folder is a package without an ``__init__``, so the function is reached through a module that can be called. Type
checkers read of it in ``__init__.pyi``.
"""

import inspect
import sys
from types import ModuleType

from .engine.interpreter.interpret import Fault, interpret

__all__ = ["Fault", "interpret"]


class _Callable(ModuleType):
    __call__ = staticmethod(interpret)


sys.modules[__name__].__class__ = _Callable
__signature__ = inspect.signature(interpret)
