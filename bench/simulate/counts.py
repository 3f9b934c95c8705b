"""What a simulated launch moved: sectors of global memory and wavefronts of shared memory, per kernel and per line."""

import ctypes
from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Traffic:
    """Requests are warp instructions, sectors 32 bytes of global memory, wavefronts one pass over the 32 banks.

    Ideal is the least that the bytes asked for can be moved with.
    """

    load_requests: int = 0
    load_sectors: int = 0
    ideal_load_sectors: int = 0
    store_requests: int = 0
    store_sectors: int = 0
    ideal_store_sectors: int = 0
    atomic_requests: int = 0
    atomic_sectors: int = 0
    ideal_atomic_sectors: int = 0
    shared_requests: int = 0
    shared_wavefronts: int = 0
    ideal_shared_wavefronts: int = 0

    def add(self, kind: str, requests: int, units: int, ideal: int) -> None:
        unit = "wavefronts" if kind == "shared" else "sectors"
        for name, n in ((f"{kind}_requests", requests), (f"{kind}_{unit}", units), (f"ideal_{kind}_{unit}", ideal)):
            setattr(self, name, getattr(self, name) + n)


@dataclass
class KernelCount:
    """One launch. `lines` splits the total by source line, "naive.cu:7"."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    total: Traffic = field(default_factory=Traffic)
    lines: dict[str, Traffic] = field(default_factory=lambda: defaultdict(Traffic))


KINDS = ("load", "store", "atomic", "shared")  # the order of Kind in count.cpp


class _Total(ctypes.Structure):
    _fields_ = (
        ("site", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("requests", ctypes.c_uint64),
        ("units", ctypes.c_uint64),
        ("ideal", ctypes.c_uint64),
    )


class _Place(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("line", ctypes.c_uint32),
        ("caller_file", ctypes.c_char_p),
        ("caller_line", ctypes.c_uint32),
        ("instruction", ctypes.c_char_p),
        ("value", ctypes.c_uint32),
    )


def read_counts(runtime: ctypes.CDLL, module: ctypes.CDLL, kernel: str, grid, block) -> KernelCount:
    """What the runtime counted in the launch that has just ended."""
    runtime.sim_counts.restype = ctypes.POINTER(_Total)
    runtime.sim_place.restype = ctypes.POINTER(_Place)
    how_many = ctypes.c_uint32()
    totals = runtime.sim_counts(ctypes.byref(how_many))
    described = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.in_dll(module, "sim_module")))
    count = KernelCount(kernel, tuple(grid), tuple(block))
    for total in totals[: how_many.value]:
        place = runtime.sim_place(described, total.site).contents
        line = f"{place.file.decode()}:{place.line}"
        for traffic in (count.total, count.lines[line]):
            traffic.add(KINDS[total.kind], total.requests, total.units, total.ideal)
    count.lines = dict(sorted(count.lines.items()))
    return count
