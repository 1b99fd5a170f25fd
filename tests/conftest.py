"""Profiles, threads, kernels lowered once, and the GPU record: what `pytest -m gpu` saw goes into bench/results."""

import gc
import os
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

torch.set_num_threads(1)  # small tensors: more threads only wait for one another

_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("pr", max_examples=50, derandomize=True, database=None, **_COMMON)
settings.register_profile("nightly", max_examples=2000, **_COMMON)
settings.register_profile(  # no shrinking: a new configuration is a new compilation
    "gpu", max_examples=40, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate], **_COMMON
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gpu" if torch.cuda.is_available() else "pr"))

LONGEST = [f"test_{of}.py" for of in ("prove_attention_bounds", "prove_attention", "kernels", "prove_indexer", "prove")]

_verdicts: dict[str, str] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files whose tests take longest first: a long test that begins last is waited for.

    Where kernels are made, let their text be rewritten once for all tests.
    """
    if "tilelang.language.eager" in sys.modules:
        import tracing

        tracing.install()
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Leave what is imported and collected to itself: the collector would walk all of it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # a proof makes millions of objects, few of them in cycles


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "gpu" in report.keywords and (report.when == "call" or report.outcome != "passed"):
        _verdicts[report.nodeid] = report.outcome
        if len(_verdicts) >= 50:  # so that a session which is cut off loses few
            _record()


def pytest_sessionfinish() -> None:
    if _verdicts:
        _record()


def _record() -> None:
    """Write the verdicts into the record, if there is a GPU; a worker's reach the session that started it."""
    if torch.cuda.is_available() and "PYTEST_XDIST_WORKER" not in os.environ:
        from lemmata.record import update

        update(tests=_verdicts)
    _verdicts.clear()


@pytest.fixture(scope="session", autouse=True)
def _lowered_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lower each large kernel once for all tests and workers; without the engine there is nothing to lower."""
    extract = sys.modules.get("lemmata.proofs.engine.compiler.extract")
    if extract is None:
        yield
        return
    from lowering import kept

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "_lower", kept(extract._lower, shared / "lowered"))
        yield


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each test that takes this runs against the reference, and against the kernel where there is a GPU."""
    return torch.device(request.param)
