"""The launcher: a kernel of kernels/cuda on CPU tensors, its cache, its seeds, and where it cannot run."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bench import simulate
from bench.simulate import build, launcher
from kernels import cuda
from kernels.cuda.residual import naive
from tests.bench.simulate.kernels import run
from tests.bench.simulate.snippets import launch, snippet_ptx


@pytest.fixture
def installed():
    simulate.install("cuda")
    yield
    cuda.simulate_with(None)


def test_a_kernel_runs_on_the_tensors_where_they_lie(installed):
    a, b = torch.randn(1000), torch.randn(1000)
    out = torch.full((1000,), float("nan"))
    naive.forward(a, b, out=out)
    assert torch.equal(out, a + b)


def test_a_short_output_is_found(installed):
    with pytest.raises(simulate.SimulationError, match="behind the end of `out`"):
        naive.forward_kernel(grid=1, block=128)(torch.zeros(99), torch.zeros(100), torch.zeros(100), 100)


def test_a_part_of_the_runtime_is_compiled_without_a_thread(tmp_path, monkeypatch):
    """It is first wanted while a call is watched: an honest variant was told of a thread that was the compiler's."""
    monkeypatch.setattr(build, "_run_compiler", lambda sources, flags, library: library.touch())
    monkeypatch.setattr(build, "ThreadPoolExecutor", None)
    assert build._compile(tmp_path, "part", [[build.HERE / "tensor_core.cpp"]]).exists()


def test_a_module_is_built_once(tmp_path, monkeypatch):
    ptx = snippet_ptx({"k": "mov.u64 %rd10, 3;"})
    library = build.build_module(ptx, tmp_path)
    monkeypatch.setattr(build.subprocess, "run", None)
    assert build.build_module(ptx, tmp_path) == library
    assert {p.suffix for p in (tmp_path / "simulate").iterdir()} == {".so", ".lock"}


def test_several_that_want_the_same_module_build_it_once(tmp_path, monkeypatch):
    ptx, compile_it, calls = snippet_ptx({"k": "mov.u64 %rd10, 4;"}), build._run_compiler, []

    def counted(*given):
        calls.append(given)
        time.sleep(0.3)  # the others have come by then
        return compile_it(*given)

    monkeypatch.setattr(build, "_run_compiler", counted)
    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(lambda _: build.build_module(ptx, tmp_path), range(3)))) == 1
    assert len(calls) == 1


def test_what_is_translated_to_the_same_code_is_compiled_once(tmp_path, monkeypatch):
    ptx, compile_it, calls = snippet_ptx({"k": "mov.u64 %rd10, 5;"}), build._run_compiler, []

    def counted(sources, flags, library):
        calls.append(library)
        return compile_it(sources, flags, library)

    monkeypatch.setattr(build, "_run_compiler", counted)
    first = build.build_module(ptx, tmp_path)
    told_apart = build.build_module("// as another translator's would be\n" + ptx, tmp_path)
    assert told_apart != first and told_apart.read_bytes() == first.read_bytes() and len(calls) == 1
    build.build_module(ptx.replace("5;", "6;"), tmp_path)
    assert len(calls) == 2


def test_only_what_a_kernel_includes_is_compiled_of_the_runtime(tmp_path, monkeypatch):
    whole, parts = build.load_runtime(), []
    monkeypatch.setattr(build, "_load_runtime", lambda folder: whole)
    load_it = build._load_part.__wrapped__

    def load_part(folder, name):
        parts.append(name)
        return load_it(folder, name)

    monkeypatch.setattr(build, "_load_part", load_part)
    build._load_module.__wrapped__(snippet_ptx({"k": "mov.u64 %rd10, 7;"}), tmp_path)
    assert not parts
    matrix = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%rd11]; cvt.u64.u32 %rd10, %r1;"
    build._load_module.__wrapped__(snippet_ptx({"k": matrix}), tmp_path)
    assert parts == ["tensor_core"]
    assert sorted({p.name.split("-")[0] for p in (tmp_path / "simulate").glob("*.o")}) == ["tensor_core"]


def test_every_file_of_the_runtime_is_loaded_by_some_kernel_or_all():
    """Those before others that they call: a library is bound as it is loaded."""
    assert all((build.HERE / f"{name}.cpp").is_file() for name in {*build.OF_FEW, *build.SCHEDULER})
    order = list(dict.fromkeys(name for names in build.PARTS.values() for name in names))
    for names in build.PARTS.values():
        assert sorted(names, key=order.index) == list(names)


def test_a_profile_function_does_not_slow_the_compiling_of_a_call(monkeypatch):
    seen = []

    def load(ptx: str) -> None:
        seen.append(sys.getprofile())
        raise RuntimeError("enough")

    def hook(*_: object) -> None: ...

    monkeypatch.setattr(build, "load_module", load)
    sys.setprofile(hook)
    try:
        with pytest.raises(RuntimeError, match="enough"):
            launcher.run_ptx("", "k", (1, 1, 1), (32, 1, 1), 0, [])
    finally:
        after = sys.getprofile()
        sys.setprofile(None)
    assert seen == [None] and after is hook


def test_who_is_stopped_with_the_lock_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "MOST_WAITING_S", 0.2)
    with build.only_here(tmp_path / "kernel.so"):
        begin = time.monotonic()
        with build.only_here(tmp_path / "kernel.so"):
            assert 0.2 <= time.monotonic() - begin < 5


def test_orders_of_threads_differ_by_seed_and_repeat():
    """Each thread takes a ticket: in order at seed 0, in another order at another seed, and the same again."""
    ptx = snippet_ptx({"k": "mov.u64 %rd4, variable; atom.global.add.u64 %rd10, [%rd4], 1;"})

    def tickets(seed: int) -> list[int]:
        out = torch.zeros(128, dtype=torch.int64)
        launch(ptx, "k", 64, out, torch.zeros(64, dtype=torch.int64), seed=seed)
        return (out[:64] - out[:64].min()).tolist()

    assert tickets(0) == list(range(64))
    assert tickets(1) == tickets(1) != tickets(2)
    assert sorted(tickets(1)) == list(range(64))


def test_launches_take_a_seed_each(monkeypatch):
    seen = []

    def note_seed(*given):
        seen.append(given[-1])
        return []

    monkeypatch.setattr(launcher, "_launch", note_seed)
    run("correct.cu", "bytes", 256, seed=None)
    run("correct.cu", "bytes", 256, seed=None)
    assert seen[1] == seen[0] + 1


def test_wrong_arguments_are_refused():
    ptx = snippet_ptx({"k": "mov.u64 %rd10, 3;"})
    with pytest.raises(simulate.SimulationError, match="takes 2 parameters, 0 were given"):
        simulate.run_ptx(ptx, "k", (1, 1, 1), (1, 1, 1), 0, [])
    with pytest.raises(simulate.SimulationError, match="no kernel other"):
        simulate.run_ptx(ptx, "other", (1, 1, 1), (1, 1, 1), 0, [])


def test_where_the_simulator_cannot_run(monkeypatch):
    assert simulate.unavailable("cuda", ()) is None and simulate.unavailable("cuda", ("sm90a", "avx512")) is None
    assert "sm100a" in (simulate.unavailable("cuda", ("sm100a",)) or "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "x86-64" in (simulate.unavailable("cuda", ()) or "")


def test_newer_ptx_is_refused():
    with pytest.raises(simulate.SimulationError, match="sm_100a"):
        simulate.run_ptx("", "k", (1, 1, 1), (1, 1, 1), 0, [], "sm_100a")
