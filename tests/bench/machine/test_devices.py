"""Devices: which kernels belong to which call, what their time is, and that the made-up GPU behaves like one."""

import inspect
import os
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from bench.cli import CANNOT_RUN, CannotGoOn
from bench.core.process import Process, Room
from bench.machine import devices
from bench.machine.devices import BUSY, GRAPH, SPAN, Kernel, busy_seconds, kernels_by_call
from tests.fake_gpu import KERNEL_SECONDS, LAUNCH_SECONDS, FakeGpu, kernel


@pytest.fixture
def gpu():
    made = FakeGpu()
    yield made
    made.close()


def test_what_overlaps_counts_once_and_gaps_do_not():
    assert busy_seconds([Kernel("a", 0, 3), Kernel("b", 1, 2), Kernel("c", 2, 5), Kernel("d", 9, 10)]) == 6
    assert busy_seconds([]) == 0


def event(cat, name, ts, dur, correlation=None):
    return dict(cat=cat, name=name, ts=ts, dur=dur, args={} if correlation is None else {"correlation": correlation})


def test_kernels_belong_to_the_call_that_launched_them_however_late_they_ran():
    trace = [
        event("user_annotation", devices.RANGE.format(0), 100, 50),
        event("user_annotation", devices.RANGE.format(1), 200, 50),
        event("gpu_user_annotation", devices.RANGE.format(0), 100, 50),
        event("cuda_runtime", "cudaLaunchKernel", 60, 5, 1),
        event("kernel", "poison", 101, 5, 1),  # launched before the call, ran during it
        event("cuda_runtime", "cudaLaunchKernel", 110, 5, 2),
        event("kernel", "first", 120, 10, 2),
        event("cuda_driver", "cuLaunchKernelEx", 145, 5, 3),
        event("kernel", "second", 152, 8, 3),  # ran after the call's range, was launched in it
        event("gpu_memset", "Memset", 210, 4, 77),  # its launch was not recorded
    ]
    first, second = kernels_by_call(trace, 2)
    assert [k.name for k in first] == ["first", "second"] and busy_seconds(first) == pytest.approx(18e-6)
    assert [k.name for k in second] == ["Memset"]


def test_a_call_without_kernels_has_no_time():
    trace = [event("user_annotation", devices.RANGE.format(0), 100, 50)]
    with pytest.raises(RuntimeError, match="saw no kernel in 1 of 1"):
        kernels_by_call(trace, 1)


class Profiled(Room):
    """Where torch is told that its own operators are what a device runs."""

    def names(self) -> list[list[str]]:
        setattr(devices, "ON_DEVICE", ("cpu_op",))  # noqa: B010
        x = torch.ones(3)
        with devices.BusyTimer(devices.open_device("cpu")) as timer:  # type: ignore[arg-type]
            for call in (x.add, x.sub):
                timer.start()
                call(x)
                timer.stop()
                x.mul(x)  # the harness's own work between calls
        return [[k.name for k in kernels] for kernels in timer.kernels]

    def modules(self) -> list[str]:
        return [name for name in ("torch._inductor", "torch._dynamo") if name in sys.modules]


def test_the_profiler_tells_calls_apart_and_loads_no_compiler():
    """Torch's usual one imports it at its first start: two seconds of every variant's process on a card."""
    with Process(Profiled, limit=60) as process:
        assert process.ask("names") == [["aten::add"], ["aten::sub"]]
        assert process.ask("modules") == []


@pytest.fixture
def properties(monkeypatch) -> SimpleNamespace:
    """Of the card that torch is made to find."""
    told = SimpleNamespace(uuid="one", clock_rate=1e6)
    monkeypatch.setattr(devices, "_cuda_index", lambda name: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: told)
    return told


def test_what_an_image_says_of_tf32_is_not_the_yards(properties, monkeypatch):
    before = torch.get_float32_matmul_precision()
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    torch.set_float32_matmul_precision("high")  # as torch has it where TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is 1
    try:
        card = devices.Cuda("cuda")
        assert torch.get_float32_matmul_precision() == "highest" and "NVIDIA_TF32_OVERRIDE" not in os.environ
    finally:
        torch.set_float32_matmul_precision(before)
    assert card.uuid == "one" and card.cycles_per_s == 1e9
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    devices.keep_fp32()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0", "who forbids it everywhere may"


def test_a_card_has_its_profiler_and_its_backlog_whatever_an_image_or_a_driver_says(properties, monkeypatch):
    monkeypatch.setenv("TEARDOWN_CUPTI", "1")
    properties.clock_rate = 0
    assert devices.Cuda("cuda").cycles_per_s == 2e9 and "TEARDOWN_CUPTI" not in os.environ
    del properties.clock_rate
    assert devices.Cuda("cuda").cycles_per_s == 2e9


def test_unknown_and_missing_devices_say_so():
    with pytest.raises(CannotGoOn, match="unknown device 'cdua'"):
        devices.open_device("cdua")
    with pytest.raises(CannotGoOn, match="No module"):
        devices.open_device("no.such.module:Device")
    if not torch.cuda.is_available():
        with pytest.raises(CannotGoOn, match="finds no NVIDIA GPU") as caught:
            devices.open_device("cuda")
        assert caught.value.code == CANNOT_RUN


def test_nobody_puts_a_timer_of_their_own_onto_a_device():
    """It is the same object for all of a process."""
    cpu = devices.open_device("cpu")
    assert cpu is devices.open_device("cpu")
    with pytest.raises(AttributeError):
        setattr(cpu, "timer", None)  # noqa: B010
    assert not hasattr(cpu, "__dict__")
    made = re.findall(r"self\.(\w+) =", inspect.getsource(devices.Cuda.__init__))
    assert set(devices.Cuda.__slots__) == set(made), "what a GPU knows of itself, and no more"


def test_the_cpu_has_one_clock():
    cpu = devices.open_device("cpu")
    with cpu.timer(cpu.clocks[0]) as timer:
        timer.start()
        timer.stop()
    assert len(timer.seconds) == len(timer.cpu_seconds) == 1 and timer.seconds[0] > 0


def test_what_threads_did_before_is_not_a_calls():
    """torch's others spin for a while after what they did; a process's clock is told of that at their next tick."""
    cpu, many, few = devices.open_device("cpu"), torch.ones(4 << 20), torch.ones(1 << 14)
    cores = len(os.sched_getaffinity(0))
    with cpu.timer(cpu.clocks[0]) as timer:
        for _ in range(60):
            many.sum()
            timer.start()
            for _ in range(40):
                few.exp()
            timer.stop()
    used = zip(timer.cpu_seconds, timer.seconds, strict=True)
    assert max(used_s - cores * seconds for used_s, seconds in used) < 1e-3, "nobody has more than all cores"


def test_busy_leaves_out_the_gaps_that_span_has(gpu):
    def call():
        for _ in range(100):
            with kernel("mine", 1e-6):
                pass

    found = {}
    for clock in (BUSY, SPAN):
        with gpu.timer(clock) as timer:
            timer.start()
            call()
            timer.stop()
        found[clock] = timer.seconds[0]
    assert found[BUSY] == pytest.approx(100e-6)
    # 100 launches take the host longer than the backlog lasts and than the kernels run.
    assert found[SPAN] == pytest.approx(100 * LAUNCH_SECONDS - devices.BACKLOG_SECONDS, rel=0.05)


def test_a_backlog_covers_the_host_within_bounds():
    assert devices.backlog_of(1e-6) == devices.BACKLOG_SECONDS
    assert devices.backlog_of(1e-3) == pytest.approx(1.5e-3)
    assert devices.backlog_of(10.0) == devices.MOST_BACKLOG_SECONDS
    # The second call was late: its span is the host's. Where all are, they wait for the GPU themselves.
    assert devices.queued([1.0, 5.0, 2.0], [0.1, 0.3, 0.1], 0.2) == [1.0, 2.0]
    assert devices.queued([5.0, 6.0], [0.3, 0.3], 0.2) == [5.0, 6.0]


def test_a_span_behind_a_backlog_has_no_time_of_the_host_in_it(gpu):
    for backlog_s, seconds in ((devices.backlog_of(100 * LAUNCH_SECONDS), 100e-6), (0.0, 100 * LAUNCH_SECONDS)):
        with gpu.timer(SPAN, backlog_s) as timer:
            timer.start()
            for _ in range(100):
                with kernel("mine", 1e-6):
                    pass
            timer.stop()
        assert timer.seconds[0] == pytest.approx(seconds, rel=0.05)
        assert timer.host_seconds == [pytest.approx(100 * LAUNCH_SECONDS)]


def test_a_graph_launches_once_and_computes_again(gpu):
    x = torch.zeros(4)
    replay = gpu.capture(lambda: x.add_(1))
    before = x.clone()
    launched = gpu.host
    replay()
    launched = gpu.host - launched
    assert torch.equal(x, before + 1) and launched == pytest.approx(LAUNCH_SECONDS)
    with pytest.raises(RuntimeError, match="capturing"):
        gpu.capture(lambda: x.sum().item())
    assert GRAPH in gpu.clocks


def test_operators_are_kernels_and_caches_make_them_faster(gpu):
    x = torch.ones(1 << 18)
    out = torch.empty(())

    def seconds() -> float:
        with gpu.timer(BUSY) as timer:
            timer.start()
            torch.sum(x, dim=0, out=out)
            timer.stop()
        assert [k.name for k in timer.kernels[0]] == ["void at::native::sum_kernel"]
        return timer.seconds[0] - KERNEL_SECONDS

    seconds()
    warm = seconds()
    gpu.flush()
    assert seconds() > 4 * warm


def test_what_a_call_leaves_to_another_stream_is_part_of_its_span():
    assert devices.span_seconds(1e-3, 1.02e-3) == 1e-3, "the host saw it 20 us later"
    assert devices.span_seconds(5e-6, 60e-6) == 5e-6
    assert devices.span_seconds(5e-6, 2e-3) == 2e-3 and devices.span_seconds(1e-3, 1.5e-3) == 1.5e-3


def test_a_call_of_no_length_takes_no_less_than_none(monkeypatch):
    """Of clocks of which each takes longer to read than all before: an interrupt may come between any two."""
    reads: list[int] = []

    def read() -> int:
        reads.append(1000 * 4 ** len(reads))
        return sum(reads)

    for clock in ("PROCESS_TIME_NS", "THREAD_TIME_NS", "PERF_COUNTER_NS"):
        monkeypatch.setattr(devices, clock, read)
    monkeypatch.setattr(devices, "settle_threads_clocks", read)
    with devices.WallTimer() as timer:
        timer.start()
        timer.stop()
    assert timer.cpu_seconds[0] >= 0
