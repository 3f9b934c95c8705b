"""The example package: found by its layout, named as an entry point names it, proved where Liger-Kernel is there."""

import importlib.util
import json
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


LIGER = pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="Liger-Kernel is not installed")


def proved(name, folder) -> int:
    given = [name, "--only", "torch.liger", "--kernels", str(ROOT), "--check-only", "--time-limit", "200"]
    return layer.main([*given, "--out", str(folder)])


@LIGER
@pytest.mark.slow  # the simulator needs minutes for it
def test_layernorm_is_right_forward_and_backward(tmp_path):
    assert proved("layernorm", tmp_path / "run") == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert {r["phase"] for r in records if r["status"] == "ok"} == {"forward", "backward"}


@LIGER
@pytest.mark.slow
def test_cross_entropy_is_right_but_for_logits_of_minus_infinity(tmp_path):
    assert proved("fused_classifier", tmp_path / "run") == 2
    (record,) = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert "not_finite" in record["evidence"] and "minus_infinity" in record["evidence"]
