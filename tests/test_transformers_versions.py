"""Which releases of transformers are taken: those whose functions say what the swaps were written against."""

import ast
import inspect
import textwrap
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

pytest.importorskip("transformers")

from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

from lemmata.integrations import originals
from lemmata.integrations.fingerprints import FUNCTIONS, RELEASES
from lemmata.integrations.originals import ORIGINALS, UnknownVersionError, fingerprint, fingerprints
from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, swapped

NAMES = sorted({name for names in ORIGINALS.values() for name in names})
EXTRA = next(
    Requirement(r)
    for r in tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]["hf"]
)


def test_every_function_of_the_installed_release_is_in_the_table():
    found = fingerprints(inspect.getsource(modeling))
    assert sorted(found) == NAMES == sorted(FUNCTIONS)
    assert {name for name, is_now in found.items() if is_now not in FUNCTIONS[name]} == set()
    originals.check_version()


def test_the_extra_admits_no_release_that_is_refused():
    assert EXTRA.name == "transformers"
    assert all(EXTRA.specifier.contains(release) for release in RELEASES)
    assert version("transformers") in RELEASES
    newest = max(map(Version, RELEASES))
    for after in (f"{newest.major}.{newest.minor}.{newest.micro + 1}", f"{newest.major}.{newest.minor + 1}.0", "6.0.0"):
        assert not EXTRA.specifier.contains(after)
    assert not EXTRA.specifier.contains("5.10.0a0", prereleases=True)
    assert not EXTRA.specifier.contains("5.9.0")


def of(text):
    return fingerprint(ast.parse(textwrap.dedent(text)).body[0])


PLAIN = """
def forward(self, x):
    y = x + 1
    return y
"""


def test_a_fingerprint_is_of_what_a_function_says():
    other_words = '''
    @deprecated
    def forward(self, x: Tensor) -> Tensor:
        """Add one."""
        y: Tensor = x + 1  # one
        return y
    '''
    assert of(PLAIN) == of(textwrap.dedent(other_words).replace("y: Tensor =", "y ="))
    for change in (("+ 1", "+ 2"), ("return y", "return x"), ("self, x", "self, x, z"), ("y = x", "y = 2 * x")):
        assert of(PLAIN) != of(PLAIN.replace(*change))


@pytest.mark.parametrize("name", NAMES)
def test_an_altered_function_of_a_release_is_refused(name, monkeypatch):
    """A planted error: a release whose function says something else."""
    model = tiny_model()
    monkeypatch.setitem(FUNCTIONS, name, ("0" * 16,))
    originals._state.cache_clear()
    try:
        with pytest.raises(
            UnknownVersionError, match=f"^transformers: expected the {name} of a version from 5.10.1 to .*, got another"
        ):
            apply_to(model)
        assert not swapped(model)
        if name == "DeepseekV4Attention.forward":  # what does not concern the swap asked for may be new
            assert list(swapped(apply_to(model, only=["mhc_pre"]))) == ["mhc_pre"]
    finally:
        originals._state.cache_clear()


def test_the_number_of_the_release_does_not_matter(monkeypatch):
    monkeypatch.setattr(originals, "version", lambda package: "7.0.0")
    assert swapped(apply_to(tiny_model()))


def test_transformers_absent(monkeypatch):
    def absent(package):
        raise PackageNotFoundError

    monkeypatch.setattr(originals, "version", absent)
    with pytest.raises(UnknownVersionError, match="transformers: expected it installed, got none"):
        tiny_model()


def test_a_release_without_the_model(monkeypatch):
    def absent():
        raise ModuleNotFoundError

    monkeypatch.setattr(originals, "modeling", absent)
    with pytest.raises(UnknownVersionError, match="transformers: expected a version with DeepSeek-V4, got 5"):
        originals.check_version()


@torch.no_grad()
def test_the_cache_by_either_name():
    """It is ``past_key_values`` before transformers 5.24, and ``cache`` from then on."""
    from transformers import DynamicCache

    ids, name = (
        torch.arange(2 * 30).view(2, 30),
        next(
            n
            for n in inspect.signature(modeling.DeepseekV4Attention.forward).parameters
            if n in ("cache", "past_key_values")
        ),
    )
    assert (name == "cache") == (Version(version("transformers")) >= Version("5.24"))
    model = apply_to(tiny_model().bfloat16(), strict=True)
    cache = DynamicCache(config=model.config)
    for part in ids.split(15, 1):
        out = model(part, **{name: cache})
    assert out.logits.isfinite().all()
    assert cache.get_seq_length() == 30
