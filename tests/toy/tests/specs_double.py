"""The record of double."""

from __future__ import annotations

import lemmata.bindings.double
import torch

from lemmata.reference import double
from opspec import OpSpec

DOUBLE = OpSpec(
    name="double",
    operator="double",
    op=lemmata.bindings.double.double,
    overload=torch.ops.lemmata.double_fwd.default,
    contract=double.DOUBLE,
    sizes={"N": 37},
    large={"N": 2**24},
    batch="N",
    configurations=({},),
    reference=double.double,
    oracle=lambda x: x + x,
    wrong={"thrice": lambda x: 3 * x},
)

SPECS = (DOUBLE,)
