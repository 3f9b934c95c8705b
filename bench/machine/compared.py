"""What processes that are compared have in common: their threads' variables, and the peak of what each holds."""

from contextlib import suppress
from pathlib import Path

from bench.machine.devices import Device, is_gpu
from bench.machine.facts import usable_cores

COMPILE_THREADS = 8


def thread_variables(threads: int, device: str) -> dict[str, str]:
    """Of a process's environment, before it loads a library: each OpenMP library reads OMP_NUM_THREADS when it is
    loaded. On a GPU Inductor compiles on several cores: its pool sleeps while steps are timed, and takes no part in
    what the GPU does then."""
    found = {"OMP_NUM_THREADS": str(threads)}
    if is_gpu(device):
        found["TORCHINDUCTOR_COMPILE_THREADS"] = str(min(COMPILE_THREADS, usable_cores()))
    return found


def forget_peak(device: Device) -> None:
    """Start a new peak of this process's memory, so that compiling and measuring are not counted."""
    device.forget_peak()
    with suppress(OSError):  # where this is not allowed, the peak includes set-up
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: Device, on_gpu: bool) -> int:
    """Peak resident memory of this process (on a GPU: of the device's tensors) since `forget_peak`."""
    if on_gpu:
        return device.memory()[1]
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(s for s in lines if s.startswith("VmHWM")).split()[1]) * 1024
