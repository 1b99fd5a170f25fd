"""The proof as a test: it fails, with the verdict, unless every layer holds and leaves nothing aside."""

from scale import contract, options, reference, scale

pytest_plugins = ["lemmata.proofs.pytest_plugin"]


def test_scale_is_proved(lemmata_proofs):
    lemmata_proofs(scale, contract, reference=reference, **options)
