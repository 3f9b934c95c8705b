"""docs/roofline.md is what the committed counts give, and says what it is."""

import copy

import pytest

from bench import roofline
from bench.gpu import bounds_page, units
from tests import commands


@pytest.fixture
def entries():
    return units.read()


def test_the_committed_page_is_what_the_committed_counts_give(entries):
    """python -m bench.roofline writes it."""
    assert roofline.PAGE.read_text() == bounds_page.page(entries)
    done = commands.run("roofline", "--check")
    assert done.returncode == 0 and "docs/roofline.md: as it was" in done.stdout


def test_another_count_makes_the_page_stale(entries, monkeypatch):
    changed = copy.deepcopy(entries)
    mine = changed["matmul cuda.wgmma"]
    for key in mine["calls"]["forward fc"]["small"]:
        mine["samples"][key]["matmul_forward"]["counts"]["wgmma_flops"] *= 1.5
    monkeypatch.setattr(units, "read", lambda: changed)
    monkeypatch.setattr(units, "stale", lambda _: ["matmul cuda.wgmma"])
    before = roofline.PAGE.read_bytes()
    done = commands.run("roofline", "--check")
    assert done.returncode == 1 and "stale" in done.stdout and "matmul cuda.wgmma" in done.stdout
    assert roofline.PAGE.read_bytes() == before, "--check writes nothing"


def test_nothing_on_the_page_is_called_a_time(entries):
    """Columns of seconds are bounds, floors, or resources; and a library, which cannot be counted, has dashes."""
    page = bounds_page.page(entries)
    headers = {
        line
        for line in page.splitlines()
        if line.startswith("| ") and ("µs" in line or "ms" in line) and "variant" in line
    }
    assert headers and all("bound" in line or "floor" in line for line in headers)
    assert not any("time" in cell for line in headers for cell in line.split("|"))
    for library in ("cuda.cublaslt", "cuda.cudnn"):
        rows = [line for line in page.splitlines() if line.startswith(f"| {library} |")]
        assert rows and all(set(line.removeprefix(f"| {library}").strip("| ")) <= set("| –") for line in rows)


def test_every_variant_of_a_call_and_every_call_of_the_step_is_there(entries):
    page = bounds_page.page(entries)
    for key, entry in entries.items():
        layer, variant = key.split()
        section = page.partition(f"\n## {layer}\n")[2].partition("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith(f"| {variant} ")]
        assert len(rows) == len(entry["calls"]), key
