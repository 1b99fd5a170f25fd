"""Keep what the GPU records say of kernels whose source has changed, where their code has not: the CUDA is the same bytes.

``python -m lemmata.bench.same_code REVISION OPERATOR...`` emits the CUDA of every kernel in the proof suite of the operators,
from this tree and from that of a revision. It needs no GPU, and some minutes for attention. It does not see how kernels are
launched: where ``choose``, a plan or a launcher changed too, the GPU tests and benchmarks are to be run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from ..operators import find
from ..proofs.engine.compiler.extract import lower, shipped_with_guards
from ..proofs.engine.emitted.cuda import printed
from ..proofs.suite import proofs

_ROOT = Path(__file__).resolve().parents[1]
RESULTS = _ROOT / "bench" / "results"
TRIES = 3
Codes = dict[str, set[str]]
_EMIT = """import json, sys
from lemmata.bench.same_code import emitted
from lemmata.record import kernel_digest
op, *names = sys.argv[1:]
print(json.dumps([kernel_digest(op), {name: sorted(codes) for name, codes in emitted(op, names).items()}]))"""


def emitted(op: str, names: Collection[str] = ()) -> Codes:
    """Return what CUDA kernels of an operator have, by its SHA-256: those named, or all of its suite."""
    chosen = (proof for proof in proofs(op) if not names or proof.name in names)
    codes: Codes = {}
    for proof in chosen:
        guards = shipped_with_guards(proof.pass_configs)
        code = printed(lower(proof.kernel, guards=guards, pass_configs=proof.pass_configs))
        codes[proof.name] = {hashlib.sha256(code.encode()).hexdigest()}
    return codes


def emitted_by(tree: Path, op: str, names: Collection[str] = ()) -> tuple[str, Codes]:
    """Return the digest of an operator's kernels in a tree of this repository, and what `emitted` says there."""
    command = [sys.executable, "-c", _EMIT, op, *names]
    run = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tree / "src")}, stdout=subprocess.PIPE, check=True
    )
    digest, codes = json.loads(run.stdout.splitlines()[-1])
    return digest, {name: set(found) for name, found in codes.items()}


def compare(old: Path, new: Path, op: str) -> tuple[str, str]:
    """Return the digests of an operator's kernels in two trees, in both of which every kernel has the same CUDA.

    TileLang gives the reductions of a kernel their workspaces in one order or another, in each process anew. So a kernel that
    differs is emitted again, and may have any CUDA that both have.

    Raises:
        ValueError: a kernel has another CUDA, or only one tree has it.
    """
    (digest_old, codes_old), (digest_new, codes_new) = (emitted_by(tree, op) for tree in (old, new))
    for _ in range(TRIES):
        if names := differing(codes_old, codes_new):
            for tree, codes in ((old, codes_old), (new, codes_new)):
                for name, found in emitted_by(tree, op, names)[1].items():
                    codes[name] |= found
    if changed := differing(codes_old, codes_new):
        raise ValueError(f"expected the same CUDA of every kernel, got another of {', '.join(changed)}")
    return digest_old, digest_new


def differing(old: Codes, new: Codes) -> list[str]:
    """Return the kernels that have no CUDA in common, or that only one of both has."""
    return sorted(name for name in old.keys() | new.keys() if not old.get(name, set()) & new.get(name, set()))


def keep(old: str, new: str, results: Path = RESULTS) -> None:
    """Let the records in a folder say of the sources of one digest what they say of another."""
    for file in results.rglob("*.json"):
        text = file.read_text(encoding="utf-8")
        if old in text:
            file.write_text(text.replace(old, new), encoding="utf-8")


def main(revision: str, *ops: str) -> None:
    """Keep the records of operators, or say of which kernel the code is another one.

    Raises:
        ValueError: there is no such operator, or a kernel has another code.
    """
    git = ["git", "-C", str(_ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder, "tree")
        subprocess.run([*git, "add", "--quiet", "--detach", str(old), revision], check=True)
        try:
            shutil.copy(__file__, old / "bench")  # it may be younger than the revision
            for op in [find(op).name for op in ops]:
                keep(*compare(old, _ROOT, op))
                print(f"{op}: every kernel has the CUDA that it has in {revision}")
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
