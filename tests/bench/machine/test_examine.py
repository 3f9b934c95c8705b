import json
import subprocess
import sys
import time
from typing import Any, cast

import pytest

from bench import HOME
from bench.machine import ceilings, examine, facts
from bench.machine.examine import Ability, Noise, Place
from bench.machine.facts import State
from bench.show import examination


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One real run, as a user starts it, with the ceilings this machine remembers."""
    command = [sys.executable, "-m", "bench.doctor", "--json"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def test_help_answers_at_once():
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "bench.doctor", "--help"], cwd=HOME, capture_output=True)
        best = min(best, time.perf_counter() - start)
    assert done.returncode == 0 and b"--refresh" in done.stdout
    assert best < 0.3


def test_last_line_is_one_json_document(finished):
    document = json.loads(finished.stdout.splitlines()[-1])
    assert set(document["ceilings"][0]["bytes_per_s"]) == {"read", "copy", "triad"}
    assert document["noise"]["low"] <= document["noise"]["ratio"] <= document["noise"]["high"]
    assert document["verdict"] and isinstance(document["verdict"][0], str)
    assert {a["name"] for a in document["abilities"]} >= {"torch", "cpu (C++)", "cuda", "triton", "cupy", "simulator"}


def test_nothing_identifying_is_in_the_json(finished):
    import socket
    from pathlib import Path

    text = finished.stdout.splitlines()[-1]
    assert socket.gethostname() not in text
    assert str(Path.home()) + "/" not in text and str(HOME) not in text


def test_piped_output_is_plain(finished):
    assert "\x1b" not in finished.stdout
    for word in ("this machine", "what can run", "ceilings", "noise floor", "verdict:"):
        assert word in finished.stdout


# --- verdicts ---

QUIET: State = {
    "cores": 2,
    "load": 0.2,
    "mhz": None,
    "throttled": None,
    "others": 0.0,
    "stolen": 0.0,
    "gpus": [],
}
CEILINGS = ceilings.Ceilings("cpu", {}, {}, {}, {}, {}, 2, 1, None, "2026-11-20T12:00:00+00:00", 8.0)
WORKS = [Ability("cpu (C++)", True, "g++"), Ability("torch.compile", True, "")]
PLACES = [Place("results", "runs", True, 10**12)]


def noise(floor):
    return Noise(1.0, 1 - floor, 1 + floor / 2, 30, 0.1, 1e-4)


def sentences(state: Any = None, floor=0.02, abilities=WORKS, places=PLACES, found=CEILINGS):
    return examine.verdict(cast(State, QUIET | (state or {})), noise(floor), abilities, places, found)


def test_a_quiet_machine_is_good_for_small_differences():
    said = sentences()
    assert len(said) == 1 and "good for differences above ±2.0%" in said[0]


def test_a_busy_machine_is_said_with_what_to_do():
    said = sentences({"others": 0.6, "load": 1.9})
    assert "other programs use 60% of 2 cores (load 1.9)" in said[0]
    assert any("close the other programs" in s for s in said)


def test_noise_without_a_cause_is_said():
    said = sentences(floor=0.12)
    assert "±12%" in said[0] and any("frequency" in s for s in said)


def test_a_hopeless_machine_is_called_so():
    assert sentences(floor=0.9)[0].startswith("no good for comparisons")


@pytest.mark.parametrize("floor", (0.01, 0.2, 0.9))
@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({}, "load 0.2 on 2 cores"),
        ({"load": 7.5}, "more wants to run than there are cores: load 7.5 on 2 cores"),
        ({"load": 7.5, "others": 0.9}, "other programs use 90% of 2 cores (load 7.5)"),
        ({"load": 1.5, "stolen": 0.3}, "the hypervisor gives 30%"),
        ({"load": 7.5, "others": None}, "load 7.5 on 2 cores"),
    ],
)
def test_every_verdict_says_the_load_that_it_was_made_under(floor, state, told):
    said = sentences(state, floor)
    load = (QUIET | state)["load"]
    assert told in said[0] and said[0].count(f"load {load}") == 1
    assert any("close the other programs" in s for s in said) == bool(state)


def test_what_is_missing_is_told_with_the_remedy():
    assert any("apt-get install g++" in s for s in sentences(abilities=[Ability("cpu (C++)", False, "none")]))
    assert any("LAYERBENCH_CACHE" in s for s in sentences(places=[Place("cache", "c", False, 10**12)]))
    assert any("0.1 GB left" in s for s in sentences(places=[Place("results", "runs", True, 10**8)]))
    limited = examine.verdict(QUIET, noise(0.02), WORKS, PLACES, CEILINGS, 1.5)
    assert any("2 cores work for 1.5" in s and "--threads 1" in s for s in limited)
    busy_then = ceilings.replace(CEILINGS, busy="others")
    assert any("--refresh" in s for s in sentences(found=busy_then))


def test_the_probe_finds_an_operation_equal_to_itself(monkeypatch):
    monkeypatch.setattr(examine, "PROBE_SECONDS", 0.5)
    found = examine.measure_noise()
    assert found.rounds >= 3 and found.median_s > 0
    assert found.low <= found.ratio <= found.high
    assert found.floor >= abs(found.ratio - 1)


def test_folders_are_looked_at_without_making_them(tmp_path):
    place = examine.look_at("cache", tmp_path / "not" / "yet")
    assert place.writable and place.free_bytes
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").write_text("")
    assert not examine.look_at("cache", tmp_path / "file" / "x").writable


def test_without_a_compiler_the_doctor_says_so(monkeypatch):
    monkeypatch.setattr(facts, "compiler", lambda: None)
    assert not examine.compiler_works().works and "apt-get install g++" in examine.compiler_works().what
    assert not examine.compile_works().works


def test_whether_a_card_shows_its_kernels_is_seen_before_anything_is_timed():
    from tests.fake_gpu import FakeGpu

    gpu = FakeGpu()
    try:
        assert examine.profiler_works(gpu).works
        gpu.blind = True
        found = examine.profiler_works(gpu)
        assert not found.works and "saw no kernel" in found.what
    finally:
        gpu.close()


def test_a_card_that_refuses_is_told_and_ends_nothing(monkeypatch):
    def busy(name: str) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setattr(facts, "nvml", lambda: (object(), ""))
    monkeypatch.setattr(facts, "gpus", lambda: [{"name": "Card"}])
    monkeypatch.setattr(facts, "closed_gpus", list)
    monkeypatch.setattr(examine.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(examine, "open_device", busy)
    found = examine.cuda_works()
    assert not found.works and "busy or unavailable" in found.what
    monkeypatch.setattr(facts, "closed_gpus", lambda: ["Card (0)"])
    assert "nvidia-smi -c DEFAULT" in examine.cuda_works().what


@pytest.mark.parametrize(
    ("device", "works", "told"),
    [
        ("FakeGpu", True, "another process reads"),
        ("Refusing", False, "answers 801; inputs"),
        ("Unmapped", False, "answers 201"),
    ],
)
def test_whether_two_processes_share_a_cards_memory_is_tried(device, works, told, monkeypatch):
    from tests import fake_gpu

    gpu = getattr(fake_gpu, device)()
    monkeypatch.setattr(examine, "open_device", lambda name: gpu)  # which would stay for good
    try:
        found = examine.windows_work(f"tests.fake_gpu:{device}")
    finally:
        gpu.close()
    assert found.works == works and told in found.what


def test_unknown_peaks_are_a_dash():
    found = ceilings.replace(
        CEILINGS,
        bytes_per_s={"copy": 1e9},
        flops_per_s={"bf16": 1e12},
        sustained_flops_per_s={"bf16": 9e11},
        spread={"copy": 0.1, "bf16": 0.2},
        how={"copy": "copy", "bf16": "matmul"},
    )
    assert [row[4] for row in examination.ceiling_rows(found)] == ["–", "–"]
    shares = [row[4] for row in examination.ceiling_rows(ceilings.replace(found, device="NVIDIA H200"))]
    assert shares == ["0%", "0%"]
