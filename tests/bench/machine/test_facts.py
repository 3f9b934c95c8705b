import json
import os
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from bench import HOME
from bench.machine import facts


@pytest.fixture
def description():
    return facts.describe()


def test_description_is_plain_data(description):
    assert json.loads(json.dumps(description)) == description


def test_processor_agrees_with_the_operating_system(description):
    cpu = description["cpu"]
    assert cpu["usable"] == len(os.sched_getaffinity(0))
    assert cpu["threads"] == os.cpu_count()
    assert cpu["cores"] is None or 1 <= cpu["cores"] <= cpu["threads"]
    flags = Path("/proc/cpuinfo").read_text()
    for name in cpu["isa"]:
        assert {"neon": "asimd"}.get(name, name) in flags


def test_caches_grow_with_their_level(description):
    sizes = [size for size in description["cpu"]["cache_bytes"].values() if size]
    assert sizes == sorted(sizes)
    assert all(2**10 <= size <= 2**34 for size in sizes)


def test_cache_sizes_are_read_from_the_kernels_files(tmp_path, monkeypatch):
    # Two cores with their own L1 and L2, which share one L3; a third has an L3 of its own.
    shared = {"0": "0-1", "1": "0-1", "2": "2"}
    for core, sharers in shared.items():
        caches = {
            "index0": ("1", "Data", "32K", core),
            "index1": ("1", "Instruction", "64K", core),
            "index2": ("2", "Unified", "1M", core),
            "index3": ("3", "Unified", "8M", sharers),
        }
        for name, values in caches.items():
            folder = tmp_path / f"cpu{core}/cache/{name}"
            folder.mkdir(parents=True)
            for file, value in zip(("level", "type", "size", "shared_cpu_list"), values, strict=True):
                (folder / file).write_text(value + "\n")
    monkeypatch.setattr(facts, "CPUS", tmp_path)
    monkeypatch.setattr(facts, "usable_cpus", lambda: [0, 1, 2])
    assert facts._cache_bytes(1) == 32 << 10
    assert facts._cache_bytes(2) == 1 << 20
    assert facts._cache_bytes(3) == 16 << 20


def test_what_cannot_be_read_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "CPUS", tmp_path / "nothing")
    assert facts._cache_bytes(3) is None
    assert facts._physical_cores() is None
    assert facts._throttle_count() is None
    assert facts.version("no-such-package") is None


def test_memory_is_this_machines(description):
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < description["memory_bytes"] <= 1.01 * total


def test_versions_are_those_that_run(description):
    import numpy
    import torch

    versions = description["versions"]
    assert versions["torch"] == torch.__version__
    assert versions["numpy"] == numpy.__version__
    assert versions["python"] == sys.version.split()[0]


def test_torch_is_told_with_its_build_where_its_metadata_has_none(monkeypatch):
    import torch

    monkeypatch.setattr(facts.metadata, "version", lambda package: "2.11.0")
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    assert facts.versions()["torch"] == "2.11.0+cu130"


def test_a_torch_that_nobody_tried_is_said(monkeypatch):
    bound = re.search(r'"torch>=(\d+)\.(\d+)', (HOME / "pyproject.toml").read_text())
    assert bound and (int(bound[1]), int(bound[2])) == facts.OLDEST_TORCH
    for version, old in (
        ("2.6.0+cu124", True),
        ("2.10.1", True),
        ("2.11.0+cu130", False),
        ("3.0.0", False),
        (None, False),
    ):
        monkeypatch.setattr(facts, "version", lambda package, version=version: version)
        assert bool(facts.too_old_a_torch()) is old


def test_no_driver_is_no_failure():
    library, reason = facts.nvml()
    assert (library is None) == bool(reason)
    assert (library is None) <= (facts.gpus() == [])


class Nvml:
    """Two GPUs, of which torch may have been shown the second alone, and a third that nobody here may ask."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM = NVML_TEMPERATURE_GPU = NVML_CLOCK_MEM = 0
    known = ("GPU-one", "GPU-two", "")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.known)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return self.nvmlDeviceGetHandleByUUID(self.known[index])

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if not uuid or uuid not in self.known:
            raise self.NVMLError
        return uuid

    def nvmlDeviceGetName(self, handle: str) -> str:
        return "Card"

    def nvmlDeviceGetComputeMode(self, handle: str) -> int:
        return {"GPU-one": 0, "GPU-two": 3}[handle]

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 12080

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return {"GPU-one": 70_000, "GPU-two": 650_000}[handle]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return {"GPU-one": 1_000, "GPU-two": 9_000}[handle]


def test_the_card_that_is_asked_is_the_one_that_torch_has(monkeypatch):
    monkeypatch.setattr(facts, "nvml", lambda: (Nvml(), ""))
    assert facts.gpu_state("two", 0)["power_w"] == 650 and facts.gpu_energy_joules("two", 0) == 9
    assert facts.gpu_state("", 0)["power_w"] == 70 and facts.gpu_energy_joules("unknown", 1) == 9
    assert facts.gpu_state("unknown", 2) == {} and facts.gpu_energy_joules("unknown", 2) is None
    assert [state["power_w"] for state in facts.gpu_states()] == [70, 650]
    monkeypatch.setattr(facts, "nvml", lambda: (None, "no driver"))
    assert facts.gpu_state("two", 0) == {} and facts.gpu_energy_joules("two", 0) is None and facts.gpu_states() == []


class Driver:
    """CUDA's, which shows these GPUs in this order."""

    def __init__(self, *shown: uuid.UUID, code: int = 0):
        self.shown, self.code = shown, code

    def cuInit(self, flags: int) -> int:
        return self.code

    def cuDeviceGetCount(self, count) -> int:
        count._obj.value = len(self.shown)
        return 0

    def cuDeviceGet(self, device, i: int) -> int:
        device._obj.value = i
        return 0

    def cuDeviceGetUuid(self, told, device) -> int:
        told.raw = self.shown[device.value].bytes
        return 0

    cuDeviceGetUuid_v2 = cuDeviceGetUuid


def test_gpus_are_those_that_cuda_has_in_its_order(monkeypatch):
    one, two, part = (uuid.UUID(int=n) for n in (1, 2, 3))

    class Three(Nvml):
        known = (f"GPU-{one}", f"GPU-{two}", f"MIG-{part}")
        count = mig = 0

        def nvmlDeviceGetCount(self) -> int:
            return self.count

        def nvmlDeviceGetName(self, handle: str) -> str:
            return handle

        def nvmlDeviceGetMigMode(self, handle: str) -> tuple[int, int]:
            return self.mig, self.mig

    def names(driver: Driver, count: int, mig: int = 0) -> list[str]:
        there = Three()
        there.count, there.mig = count, mig
        monkeypatch.setattr(facts, "nvml", lambda: (there, ""))
        monkeypatch.setattr(facts, "_cuda_uuids", lambda: ask(driver))
        facts.gpus.cache_clear()
        return [gpu["name"].removeprefix("GPU-").removeprefix("MIG-") for gpu in facts.gpus()]

    ask = facts._cuda_uuids
    monkeypatch.delenv(facts.VISIBLE, raising=False)
    try:
        assert names(Driver(two, one), 2) == [str(two), str(one)], "the fastest first, which is CUDA's own order"
        assert names(Driver(code=999), 2) == [str(one), str(two)], "the driver tells nothing"
        assert names(Driver(two), 1) == [str(one)], "it is not asked"
        assert names(Driver(part), 1, mig=1) == [str(part)]
        monkeypatch.setenv(facts.VISIBLE, "1")
        assert names(Driver(two), 2) == [str(two)]
        assert names(Driver(code=facts.NO_DEVICE), 2) == [] == facts.closed_gpus()
    finally:
        facts.gpus.cache_clear()


def test_what_a_card_or_its_driver_does_not_let_us_do_is_said(monkeypatch):
    assert facts.closed_gpus() == [] or facts.nvml()[0]
    monkeypatch.setattr(facts, "nvml", lambda: (Nvml(), ""))
    assert facts.closed_gpus() == ["Card (1)"]
    assert "the driver of 12.8" in facts.too_old_a_driver((13, 0))
    assert facts.too_old_a_driver((12, 9)) == facts.too_old_a_driver(None) == ""


@pytest.mark.parametrize(
    ("groups", "files", "quota", "memory", "used"),
    [
        # cgroup v2: a job's step, as of Slurm or systemd, in a container's slice
        (
            "0::/job/step\n",
            {
                "job/cpu.max": "150000 100000",
                "job/step/cpu.max": "max 100000",
                "job/memory.max": "1000000",
                "job/memory.current": "700000",
                "job/memory.stat": "anon 1\nactive_file 100000\ninactive_file 200000",
                "job/step/memory.max": "max",
            },
            1.5,
            1_000_000,
            400_000,
        ),
        # cgroup v1: the group's path is the host's, its folder the container's own
        (
            "4:memory:/docker/12\n1:cpu,cpuacct:/docker/12\n",
            {
                "cpu/cpu.cfs_quota_us": "200000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "2000000",
                "memory/memory.usage_in_bytes": "3000000",
                "memory/memory.stat": "active_file 0\ntotal_active_file 500000",
            },
            2.0,
            2_000_000,
            2_500_000,
        ),
        ("0::/\n", {"cpu.max": "max 100000"}, None, None, 0),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, None, 0),
    ],
)
def test_limits_of_a_container_or_a_job_are_seen(tmp_path, monkeypatch, groups, files, quota, memory, used):
    """What is bounded by the memory that the whole machine has is killed."""
    for name, text in {"cgroup": groups, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(facts, "PROCESS", tmp_path)
    monkeypatch.setattr(facts, "CGROUPS", tmp_path)
    assert facts.cpu_quota() == quota
    told = facts.memory_bytes(), facts.available_bytes()
    if memory:
        assert told == (memory, max(memory - used, 0))
    else:
        assert min(size or 0 for size in told) > 2_000_000, "the machine's"


def test_git_reads_without_writing():
    commit = facts.git()["commit"]
    assert commit is None or len(commit) == 40


def test_one_line_names_the_processor_and_torch():
    line = facts.one_line()
    assert "torch" in line and "cores" in line and "\n" not in line


def test_what_makes_libraries_slower_is_told(monkeypatch):
    """PyTorch's and not ours: a ratio to it would be another one."""
    for setting in facts.library_settings():
        monkeypatch.delenv(setting.partition("=")[0])
    slower = ["ATEN_CPU_CAPABILITY=default", "ONEDNN_MAX_CPU_ISA=AVX2", "TORCHINDUCTOR_VEC_ISA_OK=0"]
    no_matter = ["CUDNN_VERSION=9", "TORCHINDUCTOR_CACHE_DIR=/somewhere", "MKL_VERBOSE=1", "ATEN_CPU=", "PATH_=1"]
    for setting in (*slower, *no_matter, "OMP_NUM_THREADS=1"):
        name, _, value = setting.partition("=")
        monkeypatch.setenv(name, value)
    assert facts.library_settings() == slower == facts.describe()["settings"]
    assert all(setting in facts.one_line() for setting in (*slower, "OMP_NUM_THREADS=1"))


def test_snapshot_is_cheap_plain_data():
    facts.snapshot()
    start = time.perf_counter()
    state = facts.snapshot()
    assert time.perf_counter() - start < 0.25
    assert json.loads(json.dumps(state)) == state
    assert state["cores"] == facts.usable_cores() and state["load"] >= 0


def spin(seconds):
    """A child that is its own work, or, orphaned, another program's."""
    return f"import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"


def test_our_own_work_is_not_counted_as_others():
    child = subprocess.Popen([sys.executable, "-c", spin(0.8)])
    before = facts._read_counters()
    child.wait()  # its time moves from the living to the waited-for
    after = facts._read_counters()
    assert before and after
    assert after.own - before.own > 0.3
    others = (after.busy - before.busy) - (after.own - before.own)
    assert others >= -0.1


def test_another_program_is_seen_as_such():
    before = facts._read_counters()
    # The middle process ends at once, so its child belongs to init and no longer to us.
    outer = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {spin(0.8)!r}])"
    subprocess.run([sys.executable, "-c", outer])
    time.sleep(0.9)
    after = facts._read_counters()
    assert before and after
    others = (after.busy - before.busy) - (after.own - before.own)
    assert others > 0.2


def state(**changed):
    quiet: dict[str, Any] = {
        "cores": 2,
        "load": 0.1,
        "mhz": 2600.0,
        "throttled": None,
        "others": 0.01,
        "stolen": 0.0,
        "gpus": [],
    }
    return {**quiet, **changed}


def test_busy_says_what_is_going_on():
    assert facts.busy(state()) is None
    assert facts.busy(state(others=0.4, load=1.9)) == "other programs use 40% of 2 cores (load 1.9)"
    assert "hypervisor" in (facts.busy(state(stolen=0.2)) or "")


def test_our_own_threads_do_not_make_it_busy():
    assert facts.busy(state(load=2.0)) is None


def test_without_counters_the_load_average_decides():
    assert facts.busy(state(others=None, stolen=None, load=2.0)) is None
    assert facts.busy(state(others=None, stolen=None, load=6)) == "load 6 on 2 cores"
