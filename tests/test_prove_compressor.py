"""That the backward of the compressor writes every candidate is claimed. L1 does not: other rows keep what they held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lemmata.kernels.compressor import Config
from lemmata.proofs import compressor
from lemmata.proofs.engine.execution.contents import Write
from lemmata.proofs.engine.execution.symbolic import block
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.suite import Proof

Change = Callable[[Write], list[Write]]
FEW, MANY = Config(2, 128, pairs=4), Config(32, 64, overlap=False)


def proof(cfg: Config) -> Proof:
    """Return the proof of the kernel that goes back through the pooling."""
    return list(compressor._kernels(cfg, ("L2",)))[-1]


def shorter(write: Write) -> list[Write]:
    """Leave out the last step of the innermost loop."""
    *others, last = write.axes
    return [replace(write, axes=(*others, last._replace(extent=last.extent - 1)))]


def later(write: Write) -> list[Write]:
    """Leave out the first two entries, of which the second has a block before it."""
    return [replace(write, path=(*write.path, nf.nonnegative(block("x") - 2)))]


@pytest.mark.parametrize("cfg", [FEW, MANY], ids=["few", "many"])
def test_an_entry_writes_all_of_its_candidates(cfg: Config) -> None:
    report = proof(cfg).run(fresh=True, layers=["L2"])
    assert report.holds, report


@pytest.mark.parametrize("change", [lambda _: [], shorter, later], ids=["none", "shorter", "later"])
@pytest.mark.parametrize("cfg", [FEW, MANY], ids=["few", "many"])
def test_a_candidate_that_is_left_out_is_noticed(cfg: Config, change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compressor.execute

    def without(*given: Any, **more: Any) -> Any:
        done = whole(*given, **more)
        *others, last = done.writes["grad_gate"]
        done.writes["grad_gate"] = [*others, *change(last)]
        return done

    monkeypatch.setattr(compressor, "execute", without)
    (layer,) = proof(cfg).run(fresh=True, layers=["L2"]).layers
    missed = [f.statement.splitlines()[0] for f in layer.failures]
    assert missed
    assert all(text.startswith("grad_gate[") or text.startswith("grad_gate is") for text in missed)
    assert all("is written" in text for text in missed)
