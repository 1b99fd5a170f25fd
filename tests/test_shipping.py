"""Kernels compiled on a machine without a GPU serve one that has a GPU and never compiles."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tilelang")

from typer.testing import CliRunner

from lemmata import cli, models, shipping, warmup
from lemmata.models import Model
from lemmata.operators import OPERATORS

SERVER = """
import gc
import logging

import tilelang.cuda.target
from tilelang.jit import JITKernel

from lemmata import shipping
from lemmata.kernels.build import build
from lemmata.kernels.sinkhorn import Config, sinkhorn_fwd

tilelang.cuda.target._detect_torch_cuda_arch = lambda: "sm_90a"  # what TileLang asks a GPU for
happened = [""]
compile = JITKernel._compile_and_create_adapter


class Kept(logging.Handler):
    def emit(self, record):
        happened.append(f"{record.levelname} {record.getMessage()}")


def seen(self, *args, **named):
    happened.append("compiled")
    return compile(self, *args, **named)


JITKernel._compile_and_create_adapter = seen
logging.getLogger("lemmata").addHandler(Kept())
shipping.bring()
kernel = build(sinkhorn_fwd, Config())
gc.collect()
try:
    kernel()
except RuntimeError as error:
    happened.append(str(error))
print(*happened, sep="\\n> ")
"""
REFUSED = "sinkhorn_fwd: num_args should be 2"  # so the function outlives what it was taken from


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the kernels of Sinkhorn."""
    folder = tmp_path_factory.mktemp("exported") / "kernels"
    result = CliRunner().invoke(cli.app, ["warmup", "sinkhorn", "--export", str(folder), "--jobs", "1"])
    assert result.exit_code == 0, result.output
    return folder


def served(cache: Path, kernels: Path | None) -> list[str]:
    """Return what happens in a server that builds a kernel, with an empty cache, and calls it without arguments."""
    named = {} if kernels is None else {shipping.VARIABLE: str(kernels)}
    kept = {name: value for name, value in os.environ.items() if name != shipping.VARIABLE}
    environment = kept | {"TILELANG_CACHE_DIR": str(cache)} | named
    done = subprocess.run([sys.executable, "-c", SERVER], env=environment, capture_output=True, text=True, check=True)
    return [line.removeprefix("> ") for line in done.stdout.splitlines() if line.startswith("> ")]


def test_a_server_with_shipped_kernels_compiles_nothing(exported: Path, tmp_path: Path) -> None:
    (refusal,) = served(tmp_path / "with", exported)
    assert REFUSED in refusal


def test_a_call_that_must_compile_says_so_before(tmp_path: Path) -> None:
    said, compiled, refusal = served(tmp_path, None)
    assert (compiled, REFUSED in refusal) == ("compiled", True)
    for words in ("WARNING compiling sinkhorn_fwd Config(n=4", "some seconds", "`lemmata warmup`", "LEMMATA_KERNELS"):
        assert words in said


@pytest.fixture
def bring(monkeypatch: pytest.MonkeyPatch):
    """Bring the kernels of a folder, as a process does at its first launch."""

    def call(folder: Path) -> None:
        monkeypatch.setenv(shipping.VARIABLE, str(folder))
        shipping.bring.cache_clear()
        try:
            shipping.bring()
        finally:
            shipping.bring.cache_clear()

    return call


def test_a_folder_that_holds_no_kernels_is_refused(bring, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"LEMMATA_KERNELS: expected a folder that `lemmata warmup --export` wrote, got "
    ):
        bring(tmp_path)
    (tmp_path / "lemmata.json").write_text("{")
    with pytest.raises(ValueError, match="LEMMATA_KERNELS: expected a folder"):
        bring(tmp_path)


@pytest.mark.parametrize("name", ["TileLang", "lemmata"])
def test_kernels_of_another_origin_are_refused(bring, tmp_path: Path, name: str) -> None:
    shipping.label(tmp_path)
    bring(tmp_path)
    path = tmp_path / "lemmata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: "another"}))
    with pytest.raises(
        ValueError, match=f"LEMMATA_KERNELS: expected kernels of {name} .*, got another; write them again"
    ):
        bring(tmp_path)


def test_what_is_cached_stays(exported: Path, tmp_path: Path) -> None:
    (kernel, *_) = shipping._kernels(exported)
    target = tmp_path / "cache" / "kernel"
    shipping._copy(kernel, target)
    assert {file.name for file in target.iterdir()} == {file.name for file in kernel.iterdir()}
    (target / "manifest.json").write_text("mine")
    shipping._copy(kernel, target)
    assert (target / "manifest.json").read_text() == "mine"
    assert [path.name for path in target.parent.iterdir()] == ["kernel"]


def config(path: Path, **sizes: object) -> Path:
    path.write_text(json.dumps(sizes))
    return path


def test_the_sizes_of_a_config_are_read(tmp_path: Path) -> None:
    rates = {"compressed_sparse_attention": 8, "heavily_compressed_attention": 64}
    path = config(tmp_path / "config.json", num_attention_heads=16, compress_rates=rates, index_topk=256, hc_mult=2)
    assert models.read(path) == Model(heads=16, csa_ratio=8, hca_ratio=64, topk=256, streams=2)
    path = config(path, num_attention_heads=128, index_topk=1024, hidden_size=7168, compress_ratios=[0, 128, 4, 128, 0])
    assert models.read(path) == models.DEEPSEEK_V4[1]


def test_a_model_that_transformers_saves_is_flash(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.DeepseekV4Config().save_pretrained(tmp_path)
    assert models.read(tmp_path / "config.json") == models.DEEPSEEK_V4[0]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocab_size": 3}, "expected a model's config that names num_attention_heads, .* got none of them"),
        ({"num_attention_heads": 12}, r"heads: expected a value in \{8, 16, 32, 64, 128\}, got 12"),
        ({"head_dim": 576}, r"head_dim: expected a value in .*, got 576"),
        ({"index_topk": "many"}, "topk: expected int, got str"),
        ({"index_topk": 512, "compress_ratios": 4}, "compress_ratios: expected ratios by layer .*, got 4"),
    ],
)
def test_a_model_of_other_sizes_is_refused(tmp_path: Path, sizes: dict[str, object], message: str) -> None:
    path = config(tmp_path / "config.json", **sizes)
    with pytest.raises(ValueError, match=message):
        models.read(path)
    result = CliRunner().invoke(cli.app, ["warmup", "--model", str(path), "--export", str(tmp_path / "kernels")])
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("heads: 64")
    with pytest.raises(ValueError, match="expected a model's config as JSON"):
        models.read(tmp_path / "config.json")


def test_every_operator_builds_for_a_model() -> None:
    model = Model(heads=8, head_dim=128, window=64, csa_ratio=8, hca_ratio=64, index_heads=8, index_dim=64, topk=128)
    assert len(list(warmup.kernels((), [model]))) > len(OPERATORS)
    assert not {*warmup.kernels((), [model])} & {*warmup.kernels(["csa", "hca", "indexer"])}
