"""The operators' records, those of each in ``specs_NAME.py``."""

from __future__ import annotations

import importlib

from lemmata.operators import OPERATORS
from opspec import OpSpec

SPECS: tuple[OpSpec, ...] = tuple(spec for name in OPERATORS for spec in importlib.import_module(f"specs_{name}").SPECS)
FUNCTIONAL = tuple(spec for spec in SPECS if not spec.updates)
DIFFERENTIABLE = tuple(spec for spec in SPECS if spec.differentiable)
