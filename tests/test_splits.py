"""Keys of few queries in one split, where the environment asks for it: then decode has the bits of prefill on a GPU too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lemmata
from lemmata.bindings import splits
from lemmata.reference.indexer import visible
from opspec import OpSpec
from specs_csa import CSA
from specs_hca import HCA

TOKENS, WIDTH, RATIO = 640, 128, 4
both = pytest.mark.parametrize("spec", [CSA, HCA], ids=["csa", "hca"])


def tensors(spec: OpSpec, heads: int, device: torch.device) -> dict[str, Tensor]:
    """A prompt of two sequences whose queries have several tiles of keys."""
    random = torch.Generator().manual_seed(heads)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=random).bfloat16().to(device)

    found = {
        "q": normal(TOKENS, heads, WIDTH),
        "window_kv": normal(TOKENS, WIDTH),
        "compressed_kv": normal(TOKENS // RATIO, WIDTH),
        "sink": torch.randn(heads, generator=random).to(device),
    }
    if spec is CSA:
        entries = torch.arange(TOKENS // RATIO, dtype=torch.int32, device=device)
        seen = entries < visible(torch.zeros(2, dtype=torch.int32, device=device), TOKENS, RATIO).unsqueeze(-1)
        found["indices"] = torch.where(seen, entries, -1).int()
    return found


def attended(spec: OpSpec, x: dict[str, Tensor], begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Return what the queries from ``begin`` to ``end`` have, with the rows of their window alone."""
    part = {name: x[name][:, begin:end] for name in ("q", "indices") if name in x}
    rows = x["window_kv"][:, max(begin - 127, 0) : end]
    more = {} if spec is CSA else {"ratio": RATIO}
    found: tuple[Tensor, Tensor] = getattr(lemmata, spec.name)(**x | part | {"window_kv": rows}, offset=begin, **more)
    return found


def equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(map(torch.equal, a, b))


@both
@pytest.mark.parametrize("heads", [8, 64, 128])
def test_decode_has_the_bits_of_prefill(
    spec: OpSpec, heads: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any batch, and of several queries too; left to itself a GPU sums in another order."""
    x = tensors(spec, heads, device)
    whole = attended(spec, x, 0, TOKENS)
    monkeypatch.setenv(splits.VARIABLE, "1")
    assert equal(attended(spec, x, 0, TOKENS), whole)
    for begin, end in ((TOKENS - 1, TOKENS), (TOKENS - 4, TOKENS), (511, 512), (3, 4)):
        wanted = tuple(t[:, begin:end] for t in whole)
        assert equal(attended(spec, x, begin, end), wanted)
        alone = {name: t if name == "sink" else t[1:] for name, t in x.items()}
        assert equal(attended(spec, alone, begin, end), tuple(t[1:] for t in wanted))
    monkeypatch.delenv(splits.VARIABLE)
    same = equal(attended(spec, x, TOKENS - 1, TOKENS), tuple(t[:, -1:] for t in whole))
    assert same == (device.type == "cpu")


@pytest.mark.gpu
@both
def test_a_cuda_graph_keeps_what_was_asked(spec: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    x = tensors(spec, 64, torch.device("cuda"))
    wanted = tuple(t[:, -1:] for t in attended(spec, x, 0, TOKENS))
    monkeypatch.setenv(splits.VARIABLE, "1")
    attended(spec, x, TOKENS - 1, TOKENS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = attended(spec, x, TOKENS - 1, TOKENS)
    monkeypatch.delenv(splits.VARIABLE)
    graph.replay()
    assert equal(found, wanted)


@pytest.mark.parametrize(("asked", "ran"), [(None, "csa"), ("", "csa"), ("1", "one_split")])
def test_which_kernel_is_launched(asked: str | None, ran: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked up at each call."""
    monkeypatch.setattr(splits, "lazily", lambda module, function: lambda *_: (module, function))
    launch = splits.launcher("csa")
    assert launch() == ("lemmata.kernels.csa", "csa")
    if asked is not None:
        monkeypatch.setenv(splits.VARIABLE, asked)
    assert launch(1, 2) == (f"lemmata.kernels.{ran}", "csa")


@pytest.mark.parametrize("asked", ["0", "3", "one"])
def test_another_number_is_an_error(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(splits.VARIABLE, asked)
    with pytest.raises(ValueError, match=f"^LEMMATA_SPLITS: expected 1, or that it is not set, got '{asked}'$"):
        splits.one_asked()


def test_one_split_is_the_config_of_prefill() -> None:
    """So that nothing else is compiled, proved or shipped for it."""
    pytest.importorskip("tilelang")
    from lemmata.kernels import csa, hca, one_split

    chosen: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_split, "plan", lambda factory, config: chosen.append((factory, config)))
        for plan in (one_split._csa_plan, one_split._hca_plan):
            plan.cache_clear()
            plan(1, 64, 512, 512, 128, 0.125)
            plan.cache_clear()
    many = csa.choose(4096, 64, 512, 512, 128, 0.125), hca.choose(4096, 64, 512, 512, 128, 0.125)
    assert chosen == [(csa.csa_fwd, many[0]), (hca.hca_fwd, many[1])]
    assert many[0] != csa.choose(1, 64, 512, 512, 128, 0.125)
    assert many[1] != hca.choose(1, 64, 512, 512, 128, 0.125)
