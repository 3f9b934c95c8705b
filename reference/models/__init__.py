"""The models by name. Each file here but for model.py and plain.py is a family, found without being named anywhere."""

import importlib
from pathlib import Path

from reference.models.model import Model


def families() -> list[str]:
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "model", "plain"))


MODELS: dict[str, Model] = {
    model.name: model for family in families() for model in importlib.import_module(f"{__name__}.{family}").SIZES
}
