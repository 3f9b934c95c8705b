"""The registry of models: light, and open to what its files declare."""

import subprocess
import sys

from bench import HOME
from reference.models import MODELS, families


def test_listing_models_and_their_calls_loads_no_torch():
    said = "import sys, reference.models as m; m.MODELS['gpt2-tiny'].calls(4, 64); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], cwd=HOME, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_family_says_which_files_are_its_own():
    assert {model.family for model in MODELS.values()} == set(families())
    for family in families():
        assert (HOME / "reference" / "models" / f"{family}_plain.py").is_file()
        assert (HOME / "bench" / "models" / f"{family}.py").is_file()
