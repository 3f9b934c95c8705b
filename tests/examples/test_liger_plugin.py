"""The example package: found by its layout, named as an entry point names it, proved where Liger-Kernel is there."""

import importlib.util
from pathlib import Path

import pytest

from bench import layer
from bench.core import variants

PLUGIN = Path(__file__).parents[2] / "examples" / "liger_plugin"
ROOT = PLUGIN / "layerbench_liger"


def test_its_variants_are_found_with_the_contracts_signatures():
    found = {(v.layer, v.name) for v in variants.discover((ROOT,)) if v.stem == "liger"}
    assert found == {("layernorm", "torch.liger"), ("fused_classifier", "torch.liger")}


def test_its_entry_point_names_a_package_that_is_there():
    text = (PLUGIN / "pyproject.toml").read_text()
    assert f'[project.entry-points."layerbench.kernels"]\nliger = "{ROOT.name}"\n' in text
    assert (ROOT / "__init__.py").exists()


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="Liger-Kernel is not installed")
@pytest.mark.parametrize("name", ("layernorm", "fused_classifier"))
def test_they_are_right(name, tmp_path):
    arguments = [name, "--only", "torch.liger", "--kernels", str(ROOT), "--check-only", "--out", str(tmp_path / "run")]
    assert layer.main(arguments) == 0
