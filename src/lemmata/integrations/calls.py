"""What must be known of a call of someone else's module: which tensors it has, and who else takes part in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .classes import calls_its_class

PLAIN = Tensor, nn.Parameter, FakeTensor
"""The types that operators take; a DTensor is sharded, a nested tensor ragged."""


def hooked(module: nn.Module) -> str | None:
    """Return why calling the module does more, or other things, than its class says, or None."""
    name = getattr(module, "lemmata_original", type(module)).__name__
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    if any(hooks):
        return f"hooks on {name}"
    if "forward" in vars(module) and not calls_its_class(module):
        return f"a forward of its own in {name}"
    return None


def narrows(x: Tensor) -> bool:
    """Return whether autocast rounds this tensor to bf16 before a product, as it does in the module's own."""
    kind, floats = x.device.type, (torch.float32, torch.float16, torch.bfloat16)
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return False
    return torch.get_autocast_dtype(kind) == torch.bfloat16 and x.dtype in floats
