"""An operator of one's own in the four parts that lemmata's have: contract, reference, torch op with a derivative, kernel.

Its calls are checked by the contract; it compiles, and has one derivative. `prove_your_kernel/scale.py` shows the proof.
"""

import torch
from torch import Tensor

from lemmata.bindings.registry import check, define
from lemmata.reference.contract import Contract, Size, TensorSpec

FP32 = (torch.float32,)
SIZES, X = {"N": Size(0, 2**30)}, TensorSpec("x", "N", FP32)
SOFTSIGN = Contract("softsign", SIZES, {}, (X,), (TensorSpec("out", "N", FP32),))


def reference(x: Tensor) -> Tensor:
    """Return x / (1 + |x|): what the operator computes, and what runs on a CPU."""
    return x / (1 + x.abs())


def reference_bwd(grad_out: Tensor, x: Tensor) -> Tensor:
    """Return the derivative in closed form, since an operator's body is below autograd."""
    return grad_out / (1 + x.abs()).square()


_bwd = define(
    "example_softsign_gradient",
    "(Tensor grad_out, Tensor x) -> (Tensor grad_x)",
    reference=reference_bwd,
    kernel=reference_bwd,  # or (module, function) of a launcher, imported at the first call on a CUDA tensor
    fake=lambda grad_out, x: x.new_empty(x.shape),
)
_fwd = define(
    "example_softsign",
    "(Tensor x) -> (Tensor out)",
    reference=reference,
    kernel=reference,
    fake=lambda x: x.new_empty(x.shape),
    gradient=_bwd,
)


def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|) of ``[N]`` fp32."""
    check(SOFTSIGN, x)
    return _fwd(x)


x = torch.tensor([-1.0, 0.0, 3.0], requires_grad=True)
out = torch.compile(softsign, fullgraph=True, backend="aot_eager")(x)
out.sum().backward()
print(out.tolist(), x.grad.tolist())
try:
    softsign(torch.zeros(3, dtype=torch.float64))
except TypeError as error:
    print(error)
