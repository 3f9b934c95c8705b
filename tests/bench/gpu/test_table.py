"""Resources that were compiled beforehand: what they say, and when they do not hold."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.core.variants import Variant, discover
from bench.gpu import counts, table
from bench.gpu.resources import BATCHES, step_cases
from bench.trial import beside
from tests.bench.gpu.test_resources import write

ARCH = "sm_90a"


@pytest.fixture
def mine(tmp_path) -> Variant:
    write(tmp_path / "kernels")
    return _found(tmp_path)


def _found(tmp_path: Path) -> Variant:
    return next(v for v in discover((tmp_path / "kernels",)) if (v.layer, v.name) == ("residual", "cuda.mine"))


@pytest.fixture
def file(tmp_path, mine) -> Path:
    assert table.update([mine], [ARCH], ["bf16"], 1, tmp_path / "resources.json") == 1
    return tmp_path / "resources.json"


def first_case(variant: Variant, dtype: str = "bf16"):
    return next(iter(step_cases(variant, dtype)))


def test_an_entry_says_what_compiling_says(mine, file):
    case = first_case(mine)
    found = table.known(mine, case, ARCH, "", file)
    assert found == counts.resources(mine.load(), case, ARCH, "") and found["registers"] > 0
    assert table.known(mine, first_case(mine, "fp32"), ARCH, "", file) is None
    assert table.known(mine, case, "sm_80", "", file) is None
    assert {c.shape["N"] for c in step_cases(mine, "bf16")} == {b * 1024 * 768 for b in BATCHES}


def test_another_source_or_compiler_has_no_entry_and_is_compiled_anew(tmp_path, mine, file, monkeypatch):
    case = first_case(mine)
    source = mine.path.with_suffix(".cu")
    assert table.update([mine], [ARCH], ["bf16"], 1, file) == 0, "all of it holds"
    source.write_text(source.read_text() + "// changed\n")
    assert table.known(mine, case, ARCH, "", file) is None
    assert table.update([_found(tmp_path)], [ARCH], ["bf16"], 1, file) == 1
    assert table.known(mine, case, ARCH, "", file)
    monkeypatch.setattr(table, "compiler", lambda backend: "NVRTC 99.0")
    assert table.known(mine, case, ARCH, "", file) is None


def test_another_dtype_is_added_to_what_is_known(mine, file, monkeypatch):
    compiled = []
    calls = table._calls

    def compile_calls(v, arch, dtype):
        compiled.append(dtype)
        return calls(v, arch, dtype)

    monkeypatch.setattr(table, "_calls", compile_calls)
    assert table.update([mine], [ARCH], ["fp32", "bf16"], 1, file) == 1 and compiled == ["fp32"]
    assert all(table.known(mine, first_case(mine, dtype), ARCH, "", file) for dtype in ("bf16", "fp32"))
    assert table.update([mine], [ARCH], ["bf16", "fp32"], 1, file) == 0


def test_what_did_not_compile_is_tried_again(mine, file, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(table, "_calls", lambda *_: 1 / 0)
        table.update([mine], [ARCH], ["fp32"], 1, file)
    assert table.known(mine, first_case(mine), ARCH, "", file), "what was there stays"
    assert table.known(mine, first_case(mine, "fp32"), ARCH, "", file) is None
    assert table.update([mine], [ARCH], ["fp32"], 1, file) == 1
    assert table.known(mine, first_case(mine, "fp32"), ARCH, "", file)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 0, "variants": {}}', '{"schema": 1, "variants": {"a": 1}}'])
def test_a_table_that_is_none_is_empty(tmp_path, mine, text):
    file = tmp_path / "resources.json"
    assert table.read(file) == {}
    file.write_text(text)
    table.read.cache_clear()
    assert table.read(file) == {} and table.known(mine, first_case(mine), ARCH, "", file) is None


def test_what_is_known_starts_no_process(mine, file, monkeypatch):
    """And what is not, does."""
    started = []

    class Counted:
        def __init__(self, variant: Variant, setting: object):
            started.append(variant.name)

        def send(self, *_: object, **__: object) -> None: ...

        def answer(self, limit: float) -> dict[str, int]:
            return {"registers": -1}

        def close(self) -> None: ...

    monkeypatch.setattr(beside, "Worker", Counted)
    monkeypatch.setattr(beside, "replace", lambda setting, **_: setting)
    monkeypatch.setattr(table, "known", functools.partial(table.known, table=file))
    contestant: Any = SimpleNamespace(variant=mine, running=True, configuration="")
    setting: Any = None
    found = beside.resources_on(ARCH, first_case(mine), [contestant], setting)
    assert found["cuda.mine"]["registers"] > 0 and not started
    found = beside.resources_on("sm_80", first_case(mine), [contestant], setting)
    assert found["cuda.mine"]["registers"] == -1 and started == ["cuda.mine"]


def test_the_committed_table_is_whole():
    """Each entry is of a variant that is there, and says of whom and by what."""
    if not table.TABLE.exists():
        pytest.skip("no table is committed: python -m bench.static --table")
    document = json.loads(table.TABLE.read_text())
    assert document["schema"] == table.SCHEMA
    there = {f"{v.layer} {v.name}" for v in discover()}
    assert document["variants"].keys() <= there
    assert all(e["calls"] and e["by"] for e in document["variants"].values())
