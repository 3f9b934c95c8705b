"""Words and flags among a layer's attributes: each is known by name, proved with every value, and refused with another,
whoever the variant is."""

from types import ModuleType

import pytest

from bench.core.case import Case
from bench.models import CallId
from bench.models.calls import Call
from bench.models.step import bind, make_workspace
from reference import contract
from reference.models import MODELS

LAYERS = contract.layer_names()
CHOICES = [(name, attribute) for name in LAYERS for attribute in getattr(contract.load(name), "CHOICES", ())]


def shapes_of(layer: str) -> list[contract.Shape]:
    """Those that are proved, and those that models call."""
    called = [call.shape for model in MODELS.values() for call in model.calls(2, 8).get(layer, {}).values()]
    return [*contract.load(layer).RAGGED, *called]


@pytest.mark.parametrize("layer", LAYERS)
def test_every_word_and_flag_has_its_choices(layer):
    module = contract.load(layer)
    found = {name for shape in shapes_of(layer) for name, value in shape.items() if isinstance(value, str | bool)}
    assert found == set(getattr(module, "CHOICES", ()))
    for shape in shapes_of(layer):
        contract.need_known(module, shape)


@pytest.mark.parametrize(("layer", "attribute"), CHOICES)
def test_every_value_is_proved(layer, attribute):
    module, unsaid = contract.load(layer), {"positions": True, "spread": False}
    assert {shape.get(attribute, unsaid.get(attribute)) for shape in module.RAGGED} == set(module.CHOICES[attribute])


@pytest.mark.parametrize(("layer", "attribute"), CHOICES)
def test_another_value_is_refused(layer, attribute):
    """Before a shape or a case has it, and before a variant, any one, is called with it."""
    module = contract.load(layer)
    shape = {**module.RAGGED[0], attribute: "diagonal"}
    with pytest.raises(ValueError, match=f"{layer}: {attribute} 'diagonal' is none of "):
        contract.overwriting(module, "forward", shape, "fp32")
    with pytest.raises(ValueError, match=f"{layer}: {attribute} 'diagonal' is none of "):
        Case(layer, "forward", {**shape, "dtype": "fp32"}, "made up")
    for phase in contract.phases_of(module):
        taken = contract.pass_of(module, phase)
        given = tuple("diagonal" if name == attribute else None for name in taken.positional())
        call = Call(CallId(layer, "", phase), given, {})
        if attribute in taken.scalars:  # dresidual is a flag of a shape, and a tensor of a call
            with pytest.raises(ValueError, match=f"{layer}: {attribute} 'diagonal' is none of "):
                bind(call, ModuleType("any"), make_workspace([], "cpu"), shape)
