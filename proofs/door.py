"""Modules that are called as functions: this folder has no ``__init__`` from which a function could be imported."""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def called_as(name: str, function: Callable[..., Any]) -> None:
    """Make the module of that name callable as a function. Type checkers read of it in ``__init__.pyi``."""
    module: Any = sys.modules[name]
    module.__class__ = type("CallableModule", (ModuleType,), {"__call__": staticmethod(function)})
    module.__signature__ = inspect.signature(function)
