"""Proving and timing on a GPU, with the made-up one: through the command line, and through workers and rooms."""

import gc
import json
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import HOME
from bench import layer as layer_command
from bench.core import variants
from bench.core.case import Case, draw
from bench.core.shared import stored
from bench.gpu import counts
from bench.machine import devices
from bench.records.record import TABLE
from bench.trial import beside, race
from bench.trial import prove as proof
from bench.trial.judge import Judge
from bench.trial.room import Room, Setting
from bench.trial.rows import facts, throttles
from tests import commands
from tests.commands import Done
from tests.fake_gpu import CACHE_BYTES, CACHE_BYTES_PER_S, LAUNCH_SECONDS, MEMORY_BYTES_PER_S, WATTS, FakeGpu, kernel

VARIANTS = HOME / "tests" / "gpu_variants"
DEVICE = "tests.fake_gpu:FakeGpu"
RESOURCES = {
    *("kernels", "registers", "spill_bytes", "shared_bytes", "occupancy"),
    *("tensor_core_instructions", "wide_instructions"),
}
ALL = variants.discover((VARIANTS,))
SETTING = Setting(DEVICE, time_limit=20)

Row = dict


def layer(folder: Path, *args: str) -> tuple[Done, list[Row]]:
    where = ("--device", DEVICE, "--kernels", str(VARIANTS), "-a", "B=1", "--threads", "1", "--out", str(folder))
    done = commands.run("layer", *args, *where)
    lines = (folder / "records.jsonl").read_text().splitlines() if (folder / "records.jsonl").exists() else []
    return done, [row for line in lines if not (row := json.loads(line)).get("control")]


@contextmanager
def few_cases():
    """For what is not about the proof: every eighth of its cases. `gelu` below has all."""
    all_of_them = proof.cases_for
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "cases_for", lambda *args, **how: all_of_them(*args, **how)[::8])
        yield


@pytest.fixture(scope="module")
def gelu(tmp_path_factory):
    args = ("gelu", "--only", "torch.eager,cuda.honest", "--pass", "forward", "-a", "T=8", "--seconds", "0.5")
    return layer(tmp_path_factory.mktemp("gelu") / "run", *args)


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """Right and evil variants in one run."""
    names = [v.name for v in ALL if v.layer == "residual" and v.path.is_relative_to(VARIANTS) and v.stem != "hangs"]
    args = ("residual", "--only", ",".join(["torch.eager", *names]), "-a", "T=32", "--seconds", "0.7")
    with few_cases():
        return layer(tmp_path_factory.mktemp("residual") / "run", *args)


def of(run, variant: str, cache: str | None = None) -> Row:
    return next(r for r in run[1] if r["variant"] == variant and (cache is None or r["cache"] == cache))


def test_a_run_on_a_gpu_ranks_by_the_profiler_and_shows_three_clocks(gelu):
    done, rows = gelu
    assert done.returncode == 0, done.stdout + done.stderr
    assert {(r["variant"], r["cache"]) for r in rows} == {
        (v, c) for v in ("torch.eager", "cuda.honest") for c in ("cold", "warm")
    }
    for r in rows:
        assert r["status"] == "ok" and r["timer"] == "busy" and r["device"] == DEVICE and r["verified_calls"] >= 1
        assert r["samples"] and r["span_samples"] and not any(r["cpu_samples"])
        # Alike but for the rounding of the made-up clock, which counts in seconds since the start.
        assert r["span_s"] >= r["median_s"] * (1 - 1e-6) > 0 and r["launch_bound"] is None
        assert ("graph_s" in r) == (r["cache"] == "warm") and r["graph_evidence"] is None
        assert f"--device {DEVICE}" in r["reproduce"] and r.keys() <= TABLE.keys()
    warm = of(gelu, "cuda.honest", "warm")
    assert warm["median_s"] == pytest.approx(2e-3) and warm["graph_s"] == pytest.approx(2e-3)
    for shown in (
        "timer: busy",
        "cold ±95 %",
        "span cold",
        "graph",
        "launch",
        "canary: 1 MiB",
        "cold is cold",
        "SM clock 1700",
    ):
        assert shown in done.stdout, shown
    assert all(len(line) <= 160 for line in done.stdout.splitlines() if "reproduce" not in line)


def test_cold_calls_read_from_memory_and_warm_ones_from_the_cache(gelu):
    cold, warm = of(gelu, "torch.eager", "cold"), of(gelu, "torch.eager", "warm")
    half = cold["bytes"] / 2  # read; what is written was poisoned just before, and is cached when warm
    assert cold["median_s"] - warm["median_s"] > half / MEMORY_BYTES_PER_S - half / CACHE_BYTES_PER_S - 1e-9


def test_the_row_says_what_ran_and_how_the_card_was(gelu):
    own, eager = of(gelu, "cuda.honest"), of(gelu, "torch.eager")
    assert own["kernels_ran"] == {"gelu_forward<float>": 1} and own["peak_bytes"] == 0
    assert any("at::native::gelu" in name for name in eager["kernels_ran"])
    assert own["sm_mhz"] == 1700 and own["throttled"] == ""
    assert own["energy_j"] == pytest.approx(WATTS * 2e-3, rel=0.01)


def test_the_row_has_the_roofs_that_it_is_under(gelu):
    for row in gelu[1]:
        assert row["ceiling_bytes_per_s"] == MEMORY_BYTES_PER_S and row["ceiling_flops_per_s"] == 1e15
        assert row["datasheet_bytes_per_s"] == 4800e9 and row["datasheet_flops_per_s"] == pytest.approx(66.9e12)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Kernels that can be compiled, and one that cannot."""
    names = "cuda.compiled,cuda.uncompilable"
    names += ",triton.tuned" if find_spec("triton") else ""
    args = ("gelu", "--only", names, "--pass", "forward", "-a", "T=8", "--seconds", "0.5", "--cache", "warm")
    folder = tmp_path_factory.mktemp("compiled") / "run"
    with few_cases():
        return *layer(folder, *args), folder


def test_a_timed_row_tells_what_its_kernels_need(compiled):
    row = of(compiled, "cuda.compiled")
    assert row["status"] == "ok" and row["kernels"] == 1 and row["spill_bytes"] == 0
    assert row["shared_bytes"] == 1024 + 2048 and 0 < row["registers"] <= 32 and row["occupancy"] == 1.0
    assert row["wide_instructions"] == row["tensor_core_instructions"] == 0
    columns = (compiled[2] / "layer.csv").read_text().partition("\n")[0].split(",")
    assert set(columns) >= RESOURCES | {"ceiling_bytes_per_s", "datasheet_flops_per_s"}


def test_what_cannot_be_compiled_costs_no_row(compiled, gelu):
    assert compiled[0].returncode == 0, compiled[0].stdout + compiled[0].stderr
    for run, name in ((compiled, "cuda.uncompilable"), (gelu, "cuda.honest"), (gelu, "torch.eager")):
        row = of(run, name)
        assert row["status"] == "ok" and row["median_s"] > 0 and not RESOURCES & set(row)


@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
def test_resources_are_of_the_tile_sizes_that_ran(compiled):
    row = of(compiled, "triton.tuned")
    assert row["configuration"] == "TILES BLOCK=2048 num_warps=4 (tuned)"
    assert row["kernels"] == 1 and row["wide_instructions"] == 8, "sixteen floats a thread, read and written by fours"
    module, case = find("gelu", "triton.tuned").load(), Case("gelu", "forward", {"N": 24576, "dtype": "fp32"}, "timed")
    default = counts.resources(module, case, "sm_90a", "TILES BLOCK=128 num_warps=4 (default)")
    assert default["wide_instructions"] == 0, "one float a thread"
    tuned = counts.resources(module, case, "sm_90a", row["configuration"])
    assert tuned == {name: row[name] for name in RESOURCES}
    with pytest.raises(LookupError, match="BLOCK=512"):
        counts.resources(module, case, "sm_90a", "TILES BLOCK=512 num_warps=4 (tuned)")


def test_an_architecture_without_known_limits_has_no_occupancy():
    module, case = find("gelu", "cuda.compiled").load(), Case("gelu", "forward", {"N": 512, "dtype": "fp32"}, "timed")
    found = counts.resources(module, case, "sm_120a", "")
    assert found["occupancy"] is None and found["registers"] > 0


def test_compiling_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(beside, "COMPILE_LIMIT_S", 0.0)
    case = Case("gelu", "forward", {"N": 512, "dtype": "fp32"}, "timed")
    racing = [race.Contestant(find("gelu", "cuda.compiled"), "cuda.compiled")]
    assert beside.resources_on("sm_90a", case, racing, SETTING) == {}


def test_a_library_that_copies_its_results_out_is_compared_without_that(tmp_path):
    args = ("attention", "--only", "torch.sdpa_flash", "--pass", "forward", "-a", "T=16", "--seconds", "0.4")
    with few_cases():
        done, rows = layer(tmp_path / "run", *args)
    assert done.returncode == 0, done.stdout + done.stderr
    for row in rows:
        assert row["copies"] == {"at::native::copy__kernel": 2}, "of out and lse"
        assert 0 < row["uncopied_s"] < row["median_s"] and row["speedup"] == pytest.approx(1)
    assert "without the 2 copies that end its call" in done.stdout


def test_a_launch_bound_variant_is_flagged(residual):
    row = of(residual, "cuda.many_launches", "warm")
    assert row["status"] == "ok" and row["median_s"] == pytest.approx(200e-6)
    assert row["span_s"] == pytest.approx(row["median_s"]), "its span is behind a backlog as long as its launches"
    assert row["host_s"] > 3 * row["median_s"] and 0.6 < row["launch_bound"] < 0.9
    assert row["launch_s"] == pytest.approx(LAUNCH_SECONDS)
    assert row["graph_s"] < 1.1 * row["median_s"], "a graph launches once"
    assert "cuda.many_launches is launch-bound" in residual[0].stdout


def test_a_graph_that_cannot_be_captured_is_noted_and_no_error(residual):
    row = of(residual, "cuda.waits", "warm")
    assert row["status"] == "ok" and row["median_s"] > 0 and "graph_s" not in row
    assert "not permitted when stream is capturing" in row["graph_evidence"]
    assert "cuda.waits has no graph: RuntimeError: operation not permitted" in residual[0].stdout


@pytest.mark.parametrize(
    ("variant", "status", "evidence"),
    [
        ("runs_aten", "wrong", "library: says it is its own code, yet ran at::native::vectorized_elementwise_kernel<4"),
        ("runs_another", "wrong", "library: says it is its own code, yet ran residual_forward_of_somebody_else<float>"),
        ("turns_later", "wrong", "says it is its own code, yet ran nvjet_tst_128x8"),  # in whichever call it turned
        ("allocates", "wrong", "allocates: allocated 1048576 bytes inside the call"),
        ("idle_in_graphs", "wrong", "unwritten in a graph: poison survived in 100% of out"),
        ("unseen", "error", "the profiler saw no kernel"),
    ],
)
def test_an_evil_variant_costs_its_own_row(residual, variant, status, evidence):
    row = of(residual, f"cuda.{variant}")
    assert row["status"] == status and evidence in row["evidence"], row["evidence"]
    assert residual[0].returncode == 2 and of(residual, "torch.eager")["status"] == "ok"


def find(layer: str, name: str) -> variants.Variant:
    return variants.find(ALL, layer, name)


def prove(layer: str, name: str, setting: Setting = SETTING) -> list[proof.Proof]:
    variant = find(layer, name)
    phases = tuple(p for p in ("forward", "backward") if variant.has(p))
    with Judge() as judge:
        return list(proof.prove(variant, phases, "fp32", [0, 1], judge, setting, find(layer, "torch.eager")))


def test_a_cuda_error_is_a_crash_and_the_next_phase_goes_on_in_a_fresh_process():
    forward, backward = prove("gelu", "cuda.faults")
    assert forward.status == "crash" and "illegal memory access" in forward.evidence
    assert backward.ok and backward.kernels_ran == {"gelu_backward": 1}


def test_a_kernel_that_never_ends_is_killed():
    (found,) = prove("residual", "cuda.hangs", Setting(DEVICE, time_limit=2, prepare_limit=2))
    assert found.status == "timeout"


TIMED = Case("residual", "forward", {"N": 30_000, "dtype": "fp32"}, "timed", seed=3)


@pytest.fixture
def room():
    """A room for torch.eager's residual on a made-up GPU of this process, with a timed case set up."""
    made = Room(find("residual", "torch.eager"), SETTING)
    box, given = stored(draw(TIMED))
    made.ready(TIMED, [given], seed=1)
    yield made
    box.close()
    assert isinstance(made.device, FakeGpu)
    made.device.close()
    devices.open_device.cache_clear()


def test_the_canary_sees_a_flush_that_does_not_flush(room, monkeypatch):
    honest = room.canary()
    assert honest["bytes"] == CACHE_BYTES / 4 and honest["cold"] < 0.9 * honest["warm"]
    monkeypatch.setattr(FakeGpu, "flush", lambda self: None)
    lazy = room.canary()
    assert lazy["cold"] > 0.9 * lazy["warm"]


@pytest.mark.parametrize(
    ("warm", "cold", "says"),
    [
        (100e9, 20e9, "; cold is cold"),
        (20e9, 20e9, "COLD IS NOT COLD"),
        (1e9, 20e9, "which says nothing: other programs"),
    ],
)
def test_what_the_canary_says(warm, cold, says):
    row: Any = dict(calls=1, flops=1, bytes=1, saved_bytes=0, floor_s=None)
    timing: Any = SimpleNamespace(contestants=[], canary=dict(bytes=2.0**23, warm=warm, cold=cold))
    assert says in facts(row, timing)[-1]


def test_calls_take_turns_among_addresses(room, monkeypatch):
    called: list[int] = []

    def forward(a, b, *, out):
        called.append(out.data_ptr())
        a.add_(b)

    monkeypatch.setattr(room, "function", forward)
    room.begin(devices.BUSY)
    for seed in range(6):
        room.call(0, seed, cold=True)
    room.end()
    assert len(set(called)) == 3 and called[:3] == called[3:]


def test_without_memory_for_copies_there_is_one_arena(room, monkeypatch):
    monkeypatch.setattr(FakeGpu, "free_bytes", lambda self: 1 << 20)
    box, given = stored(draw(TIMED))  # the box must live until it is opened
    room.ready(TIMED, [given], seed=2)
    box.close()
    assert len(room.arenas) == 1


def test_who_leaves_holds_nothing_of_a_case(room):
    room.begin(devices.BUSY)
    room.call(0, 3, cold=True)
    room.hand_back()
    room.end()
    places = {fence.raw.untyped_storage().data_ptr() for fence in room.arena.fences.values()}
    room.leave()
    alive = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.untyped_storage().data_ptr() in places]
    assert places and not alive and room.box is None


def test_energy_that_cannot_be_read_is_null(room, monkeypatch):
    assert room.energy(busy_s=0.1) == pytest.approx(WATTS * 2.24e-6, rel=0.2)
    monkeypatch.setattr(FakeGpu, "energy_joules", lambda self: None)
    assert room.energy(busy_s=0.1) is None
    monkeypatch.setattr(FakeGpu, "energy_joules", lambda self: 5.0)
    monkeypatch.setattr("bench.trial.room.ENERGY_PATIENCE_S", 0.05)
    assert room.energy(busy_s=1.0) is None, "a counter that stands still"


def test_only_a_timed_shape_is_tuned(room, monkeypatch):
    tuning = pytest.importorskip("kernels.triton.tuning", reason="Triton is not installed")
    seen = []
    monkeypatch.setattr(room.module, "prepare", lambda *_: seen.append(tuning._untuned), raising=False)
    box, given = stored(draw(TIMED))
    try:
        room.entered.clear()
        room.prove(TIMED, given, seed=1)
        room.ready(TIMED, [given], seed=1)
    finally:
        box.close()
    assert seen == [True, False]


def test_a_span_waits_behind_what_the_host_was_seen_to_need(room):
    def slow() -> None:
        for _ in range(200):
            with kernel("short", 1e-6):
                pass

    room.function = lambda *args, **kwargs: slow()
    room.backlog_s = devices.backlog_of(room._host_seconds())
    assert room.backlog_s == pytest.approx(1.5 * 200 * LAUNCH_SECONDS)
    room.begin(devices.SPAN)
    room.call(0, 1, cold=False)
    done = room.end()
    assert done["seconds"] == [pytest.approx(200e-6)] and done["host_s"] == [pytest.approx(200 * LAUNCH_SECONDS)]
    assert done["backlog_s"] == room.backlog_s


def test_a_graph_of_many_nodes_is_timed_without_the_host_that_launches_it(room):
    def short(*_: object, **__: object) -> None:
        with kernel("short", 2e-6):
            pass

    room.function, room.device.node_seconds = short, 2e-6
    calls = room.capture(busy_s=2e-6)
    assert calls * room.device.node_seconds > devices.BACKLOG_SECONDS
    assert room.time_graph(0, 1)["seconds"] == [pytest.approx(2e-6, rel=0.01)] * 3
    room.device.node_seconds *= 2  # a host that is late: the GPU waited for it, but not in all replays
    late = room.graph_backlog_s
    assert late < calls * room.device.node_seconds
    assert min(room.time_graph(0, 1)["seconds"]) > 2e-6


@pytest.mark.parametrize("clock", ["torch.cuda.synchronize", "torch.autograd.profiler.profile"])
def test_a_clock_that_a_variant_put_in_is_seen(clock, room, monkeypatch):
    from bench.core import world

    before = world.take()
    monkeypatch.setattr(clock, lambda *_: None)
    assert "clocks of a GPU" in world.difference(before, world.take())


def test_throttling_is_told_in_words():
    assert throttles([0x1, 0x0]) == "" and throttles([]) is None
    assert throttles([0x4, 0x40 | 0x1]) == "power cap, heat (hardware)"


def test_the_servers_that_workers_and_contestants_are_forked_from_never_ask_for_a_gpu():
    code = (
        "import torch\n"
        "def asked(*_, **__): raise AssertionError('the preload asks for a GPU')\n"
        "torch._C._cuda_getDeviceCount = torch.cuda._lazy_init = torch.cuda.is_available = asked\n"
        "import bench.trial.room, bench.training.rooms, sys\n"
        "assert not torch.cuda.is_initialized() and not {'cupy', 'triton'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("device", "says"), [("cdua", "unknown device"), ("cuda:x", ""), ("no.such:Device", "No module")]
)
def test_a_device_that_is_not_there_is_said_before_anything_runs(device, says, tmp_path, ended):
    code, errors = ended(layer_command, "gelu", "--device", device, "--out", tmp_path / "run")
    assert code in (3, 64) and says in errors
    assert not (tmp_path / "run").exists()


def test_what_the_sanitizer_finds_makes_a_variant_wrong(tmp_path, monkeypatch, capsys):
    from bench.gpu import sanitizer

    found = iter([("wrong", "memcheck: invalid read of 4 bytes in gelu_forward"), ("skipped", "no compute-sanitizer")])
    monkeypatch.setattr(sanitizer, "sanitize", lambda *_: next(found))
    what = ("gelu", "--only", "cuda.honest", "--check-only", "--sanitize", "--kernels", str(VARIANTS))
    with few_cases():
        assert layer_command.main([*what, "--device", DEVICE, "--out", str(tmp_path / "run")]) == 2
    forward, backward = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert forward["status"] == "wrong" and forward["evidence"].startswith("sanitizer: memcheck: invalid read")
    assert backward["status"] == "ok" and backward["sanitizer"] == "skipped: no compute-sanitizer"
    assert "cuda.honest backward: compute-sanitizer skipped" in capsys.readouterr().out


def test_profiles_are_traces_and_one_table_and_nothing_is_timed(tmp_path):
    what = ("gelu", "--only", "torch.eager,cuda.honest,cuda.faults", "--pass", "forward", "-a", "T=8")
    with few_cases():
        done, rows = layer(tmp_path / "run", *what, "--profile", str(tmp_path / "profile"))
    assert done.returncode == 2, done.stderr
    assert {r["variant"]: r["status"] for r in rows} == {
        "torch.eager": "ok",
        "cuda.honest": "ok",
        "cuda.faults": "crash",
    }
    assert not any("median_s" in r for r in rows)
    table = (tmp_path / "profile" / "ranges.csv").read_text()
    assert "gelu/forward/cuda.honest/gpt2-124m/fp32" in table and "cuda.faults" not in table
    assert len(list((tmp_path / "profile").glob("*.trace.json.gz"))) == 2
    assert "nsys profile" in done.stdout and "python -m bench.layer gelu" in done.stdout


EVIL = HOME / "tests" / "evil"


def test_on_a_card_with_little_memory_truth_comes_in_pieces_and_contestants_take_turns(tmp_path):
    evil = "torch.one_in_the_middle"
    folder = tmp_path / "run"
    what = ("residual", "--only", f"torch.eager,{evil}", "--pass", "forward", "-a", "B=1", "-a", "T=160")
    how = ("--kernels", str(EVIL), "--device", "tests.fake_gpu:Tight", "--threads", "1", "--seconds", "0.5")
    done = commands.run("layer", *what, *how, "--out", folder)
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    eager = [r for r in rows if r["variant"] == "torch.eager" and not r["control"]]
    assert {r["cache"] for r in eager} == {"cold", "warm"}, done.stderr
    assert all(r["status"] == "ok" and r["verified_calls"] > 1 and r["median_s"] > 0 for r in eager), eager
    assert all("too large to be there all at once" in r["graph_evidence"] for r in eager if r["cache"] == "warm")
    row = next(r for r in rows if r["variant"] == evil)
    assert row["status"] == "wrong" and row["evidence"].startswith("inaccurate"), row["evidence"]


def test_clocks_stay_apart():
    assert race.clocks_of(DEVICE) == ("busy", "span", "graph") and race.clocks_of("cpu") == ("perf_counter",)
