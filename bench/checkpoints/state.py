"""All of a training run that the next step depends on."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from bench.cli import CannotGoOn
from bench.core.case import DTYPES
from reference.models import MODELS
from reference.models.gpt2 import GPT2
from reference.models.model import Model

Named = Mapping[str, torch.Tensor]
M = TypeVar("M", bound=Model)


@dataclass
class State:
    """A run after `step` updates. The same whatever the number of ranks: tensors are whole, names and shapes those
    of `Model.parameter_shapes()`, padding included.

    model: `describe(model)`. weights: in `dtype` ("fp32", "bf16", "fp16"). masters: fp32, None where there are none.
    m, v: AdamW's moments in fp32; both empty where only weights are known, as in what others made.
    rest: all else (generators, the data's place, the outliers' window, the vocabulary's fingerprint under
    "vocabulary"), as JSON can say it.
    """

    step: int
    model: dict[str, Any]
    dtype: str
    weights: Named
    masters: Named | None = None
    m: Named = field(default_factory=dict)
    v: Named = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)

    def optimizer(self) -> dict[str, torch.Tensor]:
        """m, v and masters under one roof: "m.wte", "v.wte", "masters.wte"."""
        kinds = {"m": self.m, "v": self.v, "masters": self.masters or {}}
        return {f"{kind}.{name}": t for kind, named in kinds.items() for name, t in named.items()}


def describe(model: Model) -> dict[str, Any]:
    """A model's family, name and sizes, as JSON can say it; not its recipe, which a run may choose anew."""
    said = dataclasses.asdict(model)
    said.pop("recipe", None)
    return {"family": model.family, **said}


def described(said: Mapping[str, Any], where: object) -> Model:
    """The model that `describe` said this of, now or before its family had all its fields. CannotGoOn for a family that
    this program does not have."""
    said = _completed(said)
    for known in MODELS.values():
        if describe(known) == said:
            return known
    try:
        return _kinds()[said["family"]](**{key: value for key, value in said.items() if key != "family"})
    except (KeyError, TypeError, ValueError) as error:
        raise CannotGoOn(f"{where}: a model that this program does not know ({error})") from None


def _kinds() -> dict[str, type[Model]]:
    return {known.family: type(known) for known in MODELS.values()}


def _completed(said: Mapping[str, Any]) -> dict[str, Any]:
    """With the default of every field that is not said."""
    kind = _kinds().get(said.get("family", ""))
    fields = dataclasses.fields(kind) if kind else ()
    known = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING and f.name != "recipe"}
    return {**known, **said}


def sized(*, max_t: int, v: int, L: int, NH: int, C: int) -> GPT2:
    """The GPT-2 of these sizes, under its name where it has one."""
    return named_model(GPT2(f"gpt2-{L}x{C}", L=L, NH=NH, C=C, max_t=max_t, v=v))


def named_model(model: M) -> M:
    """`model`, or the known one of its sizes, which has a name."""
    said = describe(model)
    for known in MODELS.values():
        if isinstance(known, type(model)) and {**describe(known), "name": model.name} == said:
            return known
    return model


def need_same_model(found: Mapping[str, Any], model: Model, where: object) -> None:
    """CannotGoOn where `found`, as of `describe`, has other sizes than `model`. The name does not matter."""
    wanted, found = describe(model), _completed(found)
    other = [key for key in {**wanted, **found} if key != "name" and found.get(key) != wanted.get(key)]
    if other:
        differs = ", ".join(f"{key} {found.get(key)}, not {wanted.get(key)}" for key in other)
        raise CannotGoOn(f"{where}: this is of {found.get('name')}, not of {model.name} ({differs})")


def need_shapes(state: State, model: Model, where: object) -> None:
    """CannotGoOn, naming the first tensor, unless the tensors are `model`'s, in the dtypes that `State` promises."""
    wanted = model.parameter_shapes()
    for kind, named, dtype in _tensors(state):
        if missing := wanted.keys() - named.keys():
            raise CannotGoOn(f"{where}: {kind} {min(missing)} is missing")
        if foreign := named.keys() - wanted.keys():
            raise CannotGoOn(f"{where}: {kind} {min(foreign)} is none of {model.name}'s")
        for name, sizes in wanted.items():
            if tuple(named[name].shape) != tuple(sizes) or named[name].dtype != dtype:
                found = f"{tuple(named[name].shape)} {named[name].dtype}"
                raise CannotGoOn(f"{where}: {kind} {name} is {found}, {model.name}'s is {tuple(sizes)} {dtype}")


def _tensors(state: State) -> Iterator[tuple[str, Named, torch.dtype]]:
    yield "weight", state.weights, DTYPES[state.dtype]
    if state.m or state.v:
        yield "m of", state.m, torch.float32
        yield "v of", state.v, torch.float32
    if state.masters is not None:
        yield "master of", state.masters, torch.float32
