"""A fixture of pytest that proves kernels: ``pytest_plugins = ["lemmata.proofs.pytest_plugin"]`` in a test file or conftest.

It does not load itself into every run of pytest, since importing lemmata imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from .engine.base.report import Accepted, Report
from .engine.verify import verify


@pytest.fixture(scope="session")
def lemmata_proofs() -> Callable[..., Report]:
    """Give a function that takes what ``lemmata.proofs.verify`` takes, and returns its report.

    It fails the test, with the verdict, unless everything holds and nothing is left aside but what the further argument
    ``accepted`` names.
    """
    return _proved


def _proved(kernel: Any, contract: Any, *, accepted: Iterable[Accepted] = (), **arguments: Any) -> Report:
    report = verify(kernel, contract, **arguments)
    aside = report.aside(tuple(accepted))
    if not report.holds or aside:
        words = [str(report), *(f"neither modelled nor accepted: {name}" for name in aside), *report.unexplained]
        pytest.fail("\n".join(words), pytrace=False)
    return report
