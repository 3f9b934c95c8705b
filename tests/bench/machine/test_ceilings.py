import functools
import json
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench import HOME
from bench.machine import ceilings, facts, roofline
from bench.machine.ceilings import Ceilings
from bench.machine.roofline import floor_seconds, impossible

MACHINE = Ceilings(
    device="cpu",
    bytes_per_s={"read": 40e9, "copy": 25e9, "triad": 30e9},
    flops_per_s={"fp32": 300e9, "bf16": 900e9},
    sustained_flops_per_s={"fp32": 280e9, "bf16": 800e9},
    spread={"read": 0.1, "copy": 0.1, "triad": 0.1, "fp32": 0.1, "bf16": 0.1},
    how={"read": "read", "copy": "copy", "triad": "triad", "fp32": "n", "bf16": "n"},
    cores=2,
    cache_bytes=32 << 20,
    busy=None,
    measured_at="2026-11-20T12:00:00+00:00",
    seconds=8.0,
    isa=["avx2", "avx512f", "avx512_bf16"],
)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """No remembered ceilings, and none of this machine's overwritten."""
    monkeypatch.setattr(ceilings, "cache_file", lambda: tmp_path / "c" / "ceilings.json")
    monkeypatch.setattr(ceilings, "_memory", {})
    return tmp_path / "c" / "ceilings.json"


@pytest.mark.parametrize(("seconds", "looks"), [(-10, 0), (-1000, 1), (1000, 1)])
def test_a_look_is_due_after_a_while_and_where_the_clock_was_set_back(empty_cache, monkeypatch, seconds, looks):
    """seconds: from now to the last look."""
    done: list[dict[str, Any]] = []

    def measure(**how: Any) -> dict[str, Any]:
        done.append(how)
        return {}

    monkeypatch.setattr(ceilings, "_cpu_bandwidths", measure)
    monkeypatch.setattr(ceilings, "_memory", {"cpu": replace(MACHINE, looked_at=time.time() + seconds)})
    ceilings.look_again()
    assert len(done) == looks


@pytest.fixture
def counted(monkeypatch, empty_cache):
    """measure() replaced by a queue of results; the list shows how many are left."""
    queue = [replace(MACHINE, seconds=float(i)) for i in range(1, 6)]
    monkeypatch.setattr(ceilings, "measure", lambda device: queue.pop(0))
    return queue


def fresh_process(monkeypatch):
    monkeypatch.setattr(ceilings, "_memory", {})


def test_measured_once_then_remembered(counted, empty_cache, monkeypatch):
    first = ceilings.ceilings()
    assert ceilings.ceilings() is first
    fresh_process(monkeypatch)
    assert ceilings.ceilings() == first
    assert len(counted) == 4 and first.age_seconds > 0


def test_refresh_measures_again_and_is_kept(counted, monkeypatch):
    ceilings.ceilings()
    assert ceilings.ceilings(refresh=True).seconds == 2.0
    assert ceilings.ceilings().seconds == 2.0
    fresh_process(monkeypatch)
    assert ceilings.ceilings().seconds == 2.0


def test_another_torch_or_thread_count_is_another_measurement(counted, monkeypatch):
    ceilings.ceilings()
    fresh_process(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "97")
    assert ceilings.ceilings().seconds == 2.0
    fresh_process(monkeypatch)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert ceilings.ceilings().seconds == 1.0


def test_a_training_that_has_set_its_threads_finds_what_the_doctor_measured(counted, monkeypatch):
    """bench.train tells its libraries how many threads they have, each of two ranks half as many."""
    usable = facts.usable_cores()
    monkeypatch.setattr(facts, "thread_settings", lambda: {"torch": usable, "OMP_WAIT_POLICY": "passive"})
    ceilings.ceilings()
    for threads in (usable, usable + 1):
        fresh_process(monkeypatch)
        told = {"torch": threads, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads)}
        monkeypatch.setattr(facts, "thread_settings", lambda told=told: {**told})
        known = ceilings.remembered()
        assert known and known.seconds == 1.0
    monkeypatch.setattr(facts, "thread_settings", lambda: {"torch": usable, "OMP_WAIT_POLICY": "active"})
    assert ceilings.remembered() is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": {"device": "cpu"}}', '{"key": 3}'])
def test_a_damaged_file_is_measured_over(counted, empty_cache, damage, monkeypatch):
    empty_cache.parent.mkdir()
    empty_cache.write_text(damage)
    ceilings.ceilings()
    fresh_process(monkeypatch)
    assert ceilings.ceilings().seconds == 1.0
    assert json.loads(empty_cache.read_text())


def test_a_cache_that_cannot_be_written_costs_only_a_warning(counted, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(ceilings, "cache_file", lambda: tmp_path / "file" / "x" / "ceilings.json")
    assert ceilings.ceilings().seconds == 1.0
    assert "not kept" in capsys.readouterr().err


def test_busy_measurements_only_raise_and_a_quiet_one_replaces(monkeypatch, empty_cache):
    slow = replace(MACHINE, bytes_per_s={"read": 10e9, "copy": 25e9}, flops_per_s={"fp32": 70e9}, busy="busy")
    other = replace(MACHINE, bytes_per_s={"read": 20e9, "copy": 5e9}, flops_per_s={"fp32": 90e9}, busy="busy")
    queue = [slow, other, MACHINE]
    monkeypatch.setattr(ceilings, "measure", lambda device: queue.pop(0))
    now: dict[str, str | None] = {"busy": "others"}
    monkeypatch.setattr(facts, "busy", lambda state: now["busy"])
    assert ceilings.ceilings() is slow
    fresh_process(monkeypatch)
    assert ceilings.ceilings() == slow  # still busy: nothing better to be had
    merged = ceilings.ceilings(refresh=True)
    assert merged.bytes_per_s == {"read": 20e9, "copy": 25e9} and merged.flops_per_s == {"fp32": 90e9}
    assert merged.busy
    fresh_process(monkeypatch)
    now["busy"] = None
    assert ceilings.ceilings() == MACHINE


# --- measuring, for real ---


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(ceilings, "BANDWIDTH_ROUNDS", 3)
    monkeypatch.setattr(ceilings, "BANDWIDTH_SECONDS", 0.0)
    monkeypatch.setattr(ceilings, "MATMUL_SECONDS", 0.05)
    monkeypatch.setattr(ceilings, "MATMUL_SIZES", (256, 512))
    monkeypatch.setattr(ceilings, "_cpu_cache_bytes", lambda: 4 << 20)  # a server's takes arrays of gigabytes


def test_measurement_is_complete_and_plausible(quick):
    found = ceilings.measure()
    assert set(found.bytes_per_s) == {"read", "copy", "triad"}
    assert set(found.flops_per_s) == {"fp32", "bf16"} == set(found.sustained_flops_per_s)
    assert set(found.spread) == set(found.how) == {"read", "copy", "triad", "fp32", "bf16"}
    assert all(1e8 < rate < 5e12 for rate in found.bytes_per_s.values())
    assert all(1e8 < rate < 5e14 for rate in found.flops_per_s.values())
    for dtype in found.flops_per_s:
        assert found.sustained_flops_per_s[dtype] <= found.flops_per_s[dtype]
    json.dumps(found.__dict__)


def test_a_gpu_is_measured_by_its_own_clock(quick, monkeypatch):
    """The made-up GPU moves 1 TB/s, and a matmul takes as long as its bytes: both are found, wherever the CPU is."""
    from tests.fake_gpu import CACHE_BYTES, KERNEL_SECONDS, MEMORY_BYTES_PER_S, FakeGpu

    gpu = FakeGpu()
    try:
        monkeypatch.setattr(ceilings, "open_device", lambda name: gpu)
        monkeypatch.setattr(ceilings, "GPU_ARRAY_BYTES", 8 * CACHE_BYTES)
        monkeypatch.setattr(ceilings, "GPU_MATMUL_SIZES", (128, 256))
        monkeypatch.setattr(ceilings, "SUSTAINED_SECONDS", 0.05)
        monkeypatch.setattr(ceilings, "GROUP_SECONDS", 0.005)
        found = ceilings.measure("tests.fake_gpu:FakeGpu")
    finally:
        gpu.close()
    assert (found.device, found.cores, found.cache_bytes) == ("Made-up GPU", 4, CACHE_BYTES)
    for rate in found.bytes_per_s.values():
        assert 0.95 * MEMORY_BYTES_PER_S < rate < MEMORY_BYTES_PER_S  # a launch costs a little
    for dtype, size in (("fp32", 4), ("bf16", 2)):
        cold = 2 * 256**3 / (KERNEL_SECONDS + 3 * 256 * 256 * size / MEMORY_BYTES_PER_S)
        assert found.flops_per_s[dtype] == pytest.approx(cold)
        assert found.sustained_flops_per_s[dtype] > cold  # back to back the made-up matrices stay in the cache
    assert roofline.datasheet(found.device) is None


def test_a_look_takes_the_ways_that_won_and_all_where_none_is_known(quick):
    look = functools.partial(ceilings._cpu_bandwidths, rounds=1, seconds=0.0)
    assert set(look(only={"read", "copy streaming", None})) == {"read", "copy streaming"}
    assert len(look(only={None})) == 5


def test_without_a_compiler_torch_measures(quick, monkeypatch, capsys):
    from kernels import Unavailable
    from kernels.cpu import Kernel

    def missing(*_):
        raise Unavailable("no C++ compiler")

    monkeypatch.setattr(Kernel, "__call__", missing)
    rates = ceilings._cpu_bandwidths()
    assert set(rates) == {"read torch", "copy torch", "triad torch"}
    assert "no C++ compiler" in capsys.readouterr().err


def test_the_kernels_move_what_they_say():
    from kernels.cpu import Kernel

    n = 3 * 4096
    a, b = torch.randn(n), torch.randn(n)
    source = str(HOME / "bench" / "machine" / "ceilings.cpp")
    for name, arguments, truth in (
        ("copy", (a,), a),
        ("copy_streaming", (a,), a),
        ("triad", (a, b, 0.5), a + 0.5 * b),
        ("triad_streaming", (a, b, 0.5), a + 0.5 * b),
    ):
        out = torch.full((n,), float("nan"))
        Kernel(source, f"ceiling_{name}")(out, *arguments, n)
        assert torch.allclose(out, truth, rtol=1e-6), name
    one = torch.empty(1)
    Kernel(source, "ceiling_read")(one, a, n)
    pairs = a.view(torch.int64).tolist()
    assert one.item() == sum(pairs) % 256


# --- floors ---


def test_the_floor_is_the_slower_of_memory_and_compute():
    assert floor_seconds(40e9, 0, "fp32", MACHINE) == pytest.approx(1.0)
    assert floor_seconds(1, 300e9, "fp32", MACHINE) == pytest.approx(1.0)
    assert floor_seconds(40e9, 600e9, "fp32", MACHINE) == pytest.approx(2.0)
    assert floor_seconds(80e9, 300e9, "fp32", MACHINE) == pytest.approx(2.0)


def test_an_unknown_ceiling_gives_no_floor():
    assert floor_seconds(1e9, 1e9, "fp64", MACHINE) is None
    assert floor_seconds(1e9, 0, "fp64", MACHINE) is not None
    assert floor_seconds(1e9, 0, "fp32", replace(MACHINE, bytes_per_s={})) is None


def test_the_mix_of_reads_and_writes_decides_the_bandwidth():
    bandwidth = [roofline.mixed_bytes_per_s(share, MACHINE) for share in (0, 1 / 3, 0.5, 0.9)]
    assert bandwidth == pytest.approx([40e9, 30e9, 25e9, 25e9])
    between = roofline.mixed_bytes_per_s(0.2, MACHINE)
    assert between and 30e9 < between < 40e9
    assert floor_seconds(50e9, 0, "fp32", MACHINE, written=25e9) == pytest.approx(2.0)
    assert roofline.mixed_bytes_per_s(0.2, replace(MACHINE, bytes_per_s={"copy": 25e9})) == pytest.approx(25e9)


def test_a_record_has_the_roofs_that_its_floor_is_under(monkeypatch):
    from bench.core.case import Case
    from bench.trial import rows

    monkeypatch.setattr(ceilings, "_memory", {"cpu": MACHINE, "card": replace(MACHINE, device="NVIDIA A100-SXM4-80GB")})
    small, large = ({"M": 8192, "N": n, "K": n, "epilogue": "none", "dgelu": False, "dtype": "bf16"} for n in (4, 1024))
    for shape, bound in ((small, "bytes"), (large, "flops")):
        case = Case("matmul", "forward", shape, "timed")
        row: dict[str, Any] = dict(rows._work(case, "cpu"))
        assert row["floor_s"] == pytest.approx(row[bound] / row[f"ceiling_{bound}_per_s"]), "one roof or the other"
        assert 25e9 <= row["ceiling_bytes_per_s"] <= 40e9 and row["ceiling_flops_per_s"] == 900e9
        assert "datasheet_bytes_per_s" not in row and "datasheet_flops_per_s" not in row
        sheet = {"datasheet_bytes_per_s": 2039e9, "datasheet_flops_per_s": 312e12}
        assert rows._work(case, "card") == row | sheet


def test_rows_of_a_gpu_are_not_measured_where_they_are_written(monkeypatch, tmp_path):
    """Ceilings of a busy machine are measured again when they are asked for: by a process that has the card."""
    from bench.trial import rows

    busy = replace(MACHINE, device="a card", busy="load 9")
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(ceilings, "_memory", {})
    monkeypatch.setattr(ceilings, "_key", lambda device, threads=None: device)
    monkeypatch.setattr(ceilings, "measure", lambda device: pytest.fail("a context, and the card's time"))
    ceilings._keep("cuda", busy)
    assert rows._ceilings("cuda") == busy


# --- impossible times ---


@pytest.mark.parametrize("cache", ["cold", "warm"])
@pytest.mark.parametrize("nbytes", [1e3, 1e6, 20e6, 60e6, 1e9, 1e11])
def test_what_the_machine_was_seen_to_do_is_never_refused(nbytes, cache):
    seconds = nbytes / MACHINE.best_bytes_per_s
    assert impossible(seconds, nbytes, 0, "fp32", cache, MACHINE) is None
    # From memory and 50 % faster than ever measured, or from the caches and ten times: still possible.
    assert impossible(seconds / 1.5, nbytes, 0, "fp32", cache, MACHINE) is None
    if nbytes <= 2 * MACHINE.cache_bytes:
        assert impossible(seconds / 10, nbytes, 0, "fp32", cache, MACHINE) is None


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_measured_burst_and_half_as_much_again_is_never_refused(dtype):
    flops = 17e9
    seconds = flops / MACHINE.flops_per_s[dtype]
    assert impossible(seconds, 0, flops, dtype, "warm", MACHINE) is None
    assert impossible(seconds / 1.5, 0, flops, dtype, "warm", MACHINE) is None


def test_a_ceiling_measured_among_neighbours_refuses_no_honest_kernel():
    # Measured at a fifth of what the machine can do in fp32: the theoretical bound still lets the truth through.
    low = replace(MACHINE, flops_per_s={"fp32": 60e9, "bf16": 180e9}, busy="others")
    assert impossible(17e9 / 350e9, 0, 17e9, "fp32", "warm", low) is None
    low = replace(MACHINE, bytes_per_s={"read": 10e9}, busy="others")
    assert impossible(1e9 / 90e9, 1e9, 0, "fp32", "cold", low) is None


def test_doing_nothing_is_impossible():
    # 1 µs for 100 MB or 10 GFLOP: the usual signature of a kernel that skipped the work.
    for word, seconds, nbytes, flops, cache in (
        ("caches", 1e-6, 100e6, 0, "warm"),
        ("compute", 1e-6, 0, 10e9, "warm"),
        ("clock", 0.0, 1, 1, "warm"),
        ("memory", 1e9 / 200e9, 1e9, 0, "cold"),
        ("memory", 1e9 / 200e9, 1e9, 0, "warm"),
    ):
        assert word in (impossible(seconds, nbytes, flops, "bf16", cache, MACHINE) or "possible")


def test_a_warm_working_set_that_fits_the_caches_may_run_from_them():
    fast = 30e6 / 500e9
    assert impossible(fast, 30e6, 0, "fp32", "warm", MACHINE) is None


def test_amx_raises_the_bound_for_bf16_only():
    amx = replace(MACHINE, isa=["avx512f", "amx_bf16"])
    seconds = 10e9 / 5e12
    assert impossible(seconds, 0, 10e9, "bf16", "warm", amx) is None
    assert impossible(seconds, 0, 10e9, "bf16", "warm", MACHINE)
    assert impossible(seconds, 0, 10e9, "fp32", "warm", amx)


# --- datasheets ---


def test_unknown_cards_have_no_datasheet():
    assert roofline.datasheet("NVIDIA H100 NVL") is None
    assert roofline.datasheet("NVIDIA GeForce RTX 5090 Laptop GPU") is None
    assert roofline.datasheet("cpu") is None


def test_datasheets_are_dense_and_in_order():
    h200 = roofline.datasheet("NVIDIA H200")
    assert h200
    assert h200.flops_per_s("bf16") == pytest.approx(989.4e12)
    assert h200.flops_per_s("fp8") is None
    for sheet in roofline.DATASHEETS.values():
        # Tensor cores halve from bf16 to tf32 on every generation; sparse figures would break other ratios.
        assert 1.9 < sheet.bf16 / sheet.tf32 < 2.1
        assert sheet.fp32 <= sheet.tf32
        assert 250 < sheet.gbytes_per_s < 10000


def test_a_gpus_datasheet_is_an_upper_bound_too():
    gpu = replace(MACHINE, device="NVIDIA H200", flops_per_s={"bf16": 100e12}, cache_bytes=50 << 20, isa=[])
    assert impossible(1e12 / 950e12, 0, 1e12, "bf16", "cold", gpu) is None
    assert impossible(1e12 / 2000e12, 0, 1e12, "bf16", "cold", gpu)
