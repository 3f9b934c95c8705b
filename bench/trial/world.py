"""The state of the world around a call: settings that change what other code computes or how long it seems to take."""

import threading
import time

import torch

from bench.core.arena import checksum

State = dict[str, object]

# Bound before any variant is imported, so that a variant cannot put its own in.
PERF_COUNTER_NS, PROCESS_TIME_NS = time.perf_counter_ns, time.process_time_ns


def _gpu_clocks() -> tuple[object, ...]:
    return torch.cuda.Event, torch.cuda.Event.elapsed_time, torch.cuda.synchronize, torch.profiler.profile


GPU_CLOCKS = _gpu_clocks()


def take() -> State:
    """Settings that change what other code computes or how long it seems to take."""
    tiny = torch.tensor(1e-40)
    state: State = {
        "default dtype": torch.get_default_dtype(),
        "default device": str(torch.get_default_device()),
        "number of threads": torch.get_num_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn": torch.backends.cudnn.enabled,
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "denormals are kept": bool((tiny * 0.5) != 0),
        "autocast": torch.is_autocast_enabled("cpu"),
        "random state": _random_state(),
        "Python threads": threading.active_count(),
        "clock": (time.perf_counter_ns is PERF_COUNTER_NS, time.process_time_ns is PROCESS_TIME_NS),
        "clocks of a GPU": _gpu_clocks() == GPU_CLOCKS,
    }
    if torch.cuda.is_available():
        state["allow TF32"] = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    return state


def _random_state() -> int:
    return checksum(torch.get_rng_state())


def difference(before: State, after: State) -> str:
    return "; ".join(
        f"{name} went from {before[name]} to {after[name]}" for name in before if before[name] != after[name]
    )
