"""The registry of models: a family is two files, and is named in neither list nor table."""

from bench import HOME
from bench.text.tokenizer import KINDS
from reference.models import MODELS, families


def test_every_family_is_two_files():
    assert {model.family for model in MODELS.values()} == set(families())
    for family in families():
        assert (HOME / "bench" / "models" / f"{family}.py").is_file()


def test_every_family_takes_a_kind_of_tokens_that_text_can_become():
    assert {model.tokenizer for model in MODELS.values()} <= set(KINDS)
