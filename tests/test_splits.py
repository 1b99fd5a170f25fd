"""Keys of few queries in as many splits as the environment asks for: in one, decode has the bits of prefill on a GPU too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lemmata
from lemmata.bindings import splits
from lemmata.operators import OPERATORS
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


@both
@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_any_number_of_splits(spec: OpSpec, count: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to fp64 as plain torch is, and the same in any batch; what is not that call's is further off."""
    call, tolerance = spec.sample(S=1).to(device), spec.tolerance(str(device))[0]
    monkeypatch.setenv(splits.VARIABLE, str(count))
    found = spec.run(call)
    assert spec.error(call, found) <= tolerance < spec.error(call, 1.1 * found)
    x = tensors(spec, 64, device)
    last = attended(spec, x, TOKENS - 1, TOKENS)
    alone = {name: t if name == "sink" else t[1:] for name, t in x.items()}
    assert equal(attended(spec, alone, TOKENS - 1, TOKENS), tuple(t[1:] for t in last))


@pytest.mark.parametrize(("asked", "ran"), [(None, ()), ("", ()), ("1", (1,)), ("9", (9,))])
def test_which_kernel_is_launched(asked: str | None, ran: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked up at each call."""
    monkeypatch.setattr(splits, "lazily", lambda module, function: lambda *given: (module, function, *given))
    launch = splits.launcher("csa")
    assert launch() == ("lemmata.kernels.csa", "csa")
    if asked is not None:
        monkeypatch.setenv(splits.VARIABLE, asked)
    assert launch(7) == (f"lemmata.kernels.{'given_splits' if ran else 'csa'}", "csa", *ran, 7)


@pytest.mark.parametrize("asked", ["0", "10", "-1", "1.0", "one"])
def test_another_number_is_an_error(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(splits.VARIABLE, asked)
    words = f"^LEMMATA_SPLITS: expected a number from 1 to 9, or that it is not set, got '{asked}'$"
    with pytest.raises(ValueError, match=words):
        splits.asked()


def test_the_configs() -> None:
    """One split is what prefill has. Of many queries, and where nothing is asked, they are as they were; no split is empty."""
    pytest.importorskip("tilelang")
    from lemmata.kernels import csa, given_splits, hca

    of_csa, of_hca = (64, 512, 512, 128, 0.125), (64, 512, 128, 128, 0.125)
    for config, choose, sizes in (
        (given_splits.csa_config, csa.choose, of_csa),
        (given_splits.hca_config, hca.choose, of_hca),
    ):
        assert config(1, 1, *sizes) == choose(4096, *sizes) != choose(1, *sizes)
        assert config(None, 1, *sizes) == choose(1, *sizes)
        assert config(9, 4096, *sizes) == config(None, 4096, *sizes) == choose(4096, *sizes)
    assert [given_splits.csa_config(n, 1, *of_csa).splits for n in (2, 5, 9)] == [2, 5, 5]
    assert [given_splits.hca_config(n, 1, *of_hca).splits for n in (2, 5, 9)] == [2, 5, 9]


def test_what_is_asked_for_is_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tilelang")
    for name in ("csa", "hca"):
        default = list(OPERATORS[name].shipped())
        for asked in (1, 2):
            monkeypatch.setenv(splits.VARIABLE, str(asked))
            found = list(OPERATORS[name].shipped())
            forward = {config.splits for factory, config in found if factory.__name__ == f"{name}_fwd"}
            assert forward == {1, asked}
            assert found != default
        monkeypatch.delenv(splits.VARIABLE)
