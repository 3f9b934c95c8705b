"""The models by name. Each file here that has SIZES is a family, found without being named anywhere."""

import importlib
from pathlib import Path

from reference.models.model import Model

_NOT_FAMILIES = {"__init__", "model", "plain"}


def families() -> list[str]:
    """By file name, without the files of torch modules: listing models must not load torch."""
    stems = (p.stem for p in Path(__file__).parent.glob("*.py"))
    return sorted(s for s in stems if s not in _NOT_FAMILIES and not s.endswith("_plain"))


MODELS: dict[str, Model] = {
    model.name: model for family in families() for model in importlib.import_module(f"{__name__}.{family}").SIZES
}
