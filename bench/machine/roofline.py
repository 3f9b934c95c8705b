"""The least time that work can take at measured ceilings, and what no machine like this can do."""

from dataclasses import dataclass

from bench.machine.ceilings import Ceilings, ceilings

# Above what any core of today does; only used to call a time impossible, so too high is safe and too low is not.
MAX_HERTZ = 6.2e9  # the fastest turbo clock sold
CACHE_BYTES_PER_CYCLE = 192  # of one core: two 64-byte loads and one 64-byte store into L1
FLOPS_PER_CYCLE = {"fp64": 32, "fp32": 64, "bf16": 256, "fp16": 256}  # of one core: two 512-bit FMA units
AMX_FLOPS_PER_CYCLE = 2048  # of one core, bf16 and fp16: twice what Sapphire Rapids does
# Faster than this multiple of what was measured is not believed. A measurement among neighbours can be several times
# too low (10 instead of 75 GB/s was seen), so it bounds nothing.
MARGIN = 2.0


# --- what they are for ---


def floor_seconds(nbytes: float, flops: float, dtype: str, c: Ceilings, written: float | None = None) -> float | None:
    """The least time that `nbytes` moved and `flops` computed take at the ceilings; None where one is unknown.

    written: how many of the bytes are written. Memory takes reads faster than writes, so the bandwidth is that of
    the mix, between read (nothing written), triad (a third) and copy (half). Without it, the best of the three.
    """
    bytes_rate, flops_rate = rates(nbytes, dtype, c, written)
    seconds = 0.0
    if nbytes:
        if not bytes_rate:
            return None
        seconds = nbytes / bytes_rate
    if flops:
        if not flops_rate:
            return None
        seconds = max(seconds, flops / flops_rate)
    return seconds


def rates(nbytes: float, dtype: str, c: Ceilings, written: float | None = None) -> tuple[float | None, float | None]:
    """(bytes/s, FLOP/s) of the ceilings that `floor_seconds` counts with."""
    best = c.best_bytes_per_s if written is None or not nbytes else mixed_bytes_per_s(written / nbytes, c)
    return best, c.flops_per_s.get(dtype)


def mixed_bytes_per_s(written_share: float, c: Ceilings) -> float | None:
    """Bandwidth of traffic of which `written_share` is writes; beyond copy's half it stays copy's."""
    shares = {"read": 0.0, "triad": 1 / 3, "copy": 1 / 2}
    known = [(share, 1 / c.bytes_per_s[name]) for name, share in shares.items() if name in c.bytes_per_s]
    if not known:
        return None
    # Seconds a byte, not bytes a second, are what adds up.
    below = max((point for point in known if point[0] <= written_share), default=known[0])
    above = min((point for point in known if point[0] >= written_share), default=known[-1])
    if above[0] == below[0]:
        return 1 / below[1]
    weight = (written_share - below[0]) / (above[0] - below[0])
    return 1 / (below[1] + weight * (above[1] - below[1]))


def impossible(
    seconds: float, nbytes: float, flops: float, dtype: str, cache: str, c: Ceilings | None = None
) -> str | None:
    """Why one call cannot have taken only `seconds`, or None. cache: "cold" or "warm".

    No honest kernel is ever refused: each bound is one that no hardware of this kind passes.
    1. Compute: cores × 6.2 GHz × the widest units known for the dtype, or MARGIN × the measured burst if higher.
    2. Cache: every byte must at least pass between a core and its L1 cache, warm or cold.
    3. Memory: what exceeds twice the last-level cache must come from memory, at most MARGIN × as fast as measured.
       Half of the caches' worth may be there from the call before (warm) and half may still be unwritten at the
       end (cold, too: stores are not forced to memory), so nothing smaller is bound by memory. Ceilings measured
       on a busy machine do not count here.
    The bounds 1 and 2 are those of a CPU; on a GPU 1 is the datasheet's or the margin, and 2 is left out.
    """
    if seconds <= 0:
        return f"a call took {seconds} s: the clock was tampered with or does not tick"
    c = c or ceilings()
    compute = MARGIN * c.flops_per_s.get(dtype, 0.0)
    if c.device == "cpu":
        compute = max(compute, c.cores * MAX_HERTZ * _flops_per_cycle(dtype, c.isa))
        through_cache = c.cores * MAX_HERTZ * CACHE_BYTES_PER_CYCLE
        if seconds < nbytes / through_cache:
            rate = _rate(nbytes / seconds, "B/s")
            return f"{rate} is more than the caches of {c.cores} cores can pass ({_rate(through_cache, 'B/s')})"
    else:
        sheet = datasheet(c.device)
        compute = max(compute, 1.1 * (sheet.flops_per_s(dtype) or 0.0)) if sheet else compute
    if compute and seconds < flops / compute:
        rate = _rate(flops / seconds, "FLOP/s")
        return f"{rate} in {dtype} is more than this machine can compute ({_rate(compute, 'FLOP/s')})"
    from_memory = nbytes - 2 * c.cache_bytes
    if from_memory > 0 and not c.busy and c.best_bytes_per_s and seconds < from_memory / (MARGIN * c.best_bytes_per_s):
        return (
            f"{_rate(nbytes / seconds, 'B/s')} with caches {cache} is more than memory gives "
            f"({MARGIN:g}x the measured {_rate(c.best_bytes_per_s, 'B/s')}, caches allowed for)"
        )
    return None


def _flops_per_cycle(dtype: str, isa: list[str]) -> int:
    if dtype in ("bf16", "fp16") and any(name.startswith("amx") for name in isa):
        return AMX_FLOPS_PER_CYCLE
    return FLOPS_PER_CYCLE.get(dtype, max(FLOPS_PER_CYCLE.values()))


def _rate(value: float, unit: str) -> str:
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value / 1e6:.3g} M{unit}"


# --- datasheets ---


@dataclass(frozen=True)
class Datasheet:
    """Nominal dense peaks of a GPU: TFLOP/s with fp32 accumulation, no sparsity; memory bandwidth in GB/s."""

    bf16: float
    tf32: float
    fp32: float  # outside the tensor cores
    gbytes_per_s: float

    @property
    def bytes_per_s(self) -> float:
        return self.gbytes_per_s * 1e9

    def flops_per_s(self, dtype: str) -> float | None:
        """Peak of a working dtype ("fp32" without tensor cores, "tf32" with); fp16 equals bf16 on all of these."""
        tflops = {"bf16": self.bf16, "fp16": self.bf16, "tf32": self.tf32, "fp32": self.fp32}.get(dtype)
        return tflops * 1e12 if tflops else None


# By the exact name that the driver gives. Variants of a card differ a lot (H100 NVL, laptops, "D" models): a name
# that is not here has no datasheet, rather than a neighbour's.
DATASHEETS = {
    # NVIDIA A100 datasheet (1758950): 40 GB cards 1555 GB/s, 80 GB PCIe 1935, 80 GB SXM 2039
    "NVIDIA A100-SXM4-40GB": Datasheet(312, 156, 19.5, 1555),
    "NVIDIA A100-PCIE-40GB": Datasheet(312, 156, 19.5, 1555),
    "NVIDIA A100 80GB PCIe": Datasheet(312, 156, 19.5, 1935),
    "NVIDIA A100-SXM4-80GB": Datasheet(312, 156, 19.5, 2039),
    # NVIDIA H100 datasheet (2430615): with sparsity 1979 (SXM) and 1513 (PCIe) TFLOP/s in bf16; dense is half
    "NVIDIA H100 80GB HBM3": Datasheet(989.4, 494.7, 66.9, 3352),
    "NVIDIA H100 PCIe": Datasheet(756.5, 378, 51.2, 2039),
    # NVIDIA H200 datasheet: compute as H100 SXM, 141 GB HBM3e at 4.8 TB/s
    "NVIDIA H200": Datasheet(989.4, 494.7, 66.9, 4800),
    # NVIDIA Blackwell datasheet, specifications of one GPU; with sparsity 4.5 (HGX B200) and 5 PFLOP/s (GB200) in bf16,
    # 2.2 and 2.5 in tf32
    "NVIDIA B200": Datasheet(2250, 1100, 75, 7700),
    "NVIDIA GB200": Datasheet(2500, 1250, 80, 8000),
    # NVIDIA GH200 datasheet, 96 GB HBM3 at 4 TB/s ("480GB" is the CPU's memory)
    "NVIDIA GH200 480GB": Datasheet(989.4, 494.7, 66.9, 4000),
    # NVIDIA L4 datasheet: 242 with sparsity
    "NVIDIA L4": Datasheet(121, 60, 30.3, 300),
    # NVIDIA L40 and L40S datasheets
    "NVIDIA L40": Datasheet(181.05, 90.5, 90.5, 864),
    "NVIDIA L40S": Datasheet(362.05, 183, 91.6, 864),
    # NVIDIA A40 datasheet
    "NVIDIA A40": Datasheet(149.7, 74.8, 37.4, 696),
    # NVIDIA A10 datasheet
    "NVIDIA A10": Datasheet(125, 62.5, 31.2, 600),
    # NVIDIA Ampere GA102 whitepaper, table of the GeForce RTX 3090: 71 with fp32 accumulation
    "NVIDIA GeForce RTX 3090": Datasheet(71, 35.6, 35.6, 936),
    # NVIDIA Ada GPU architecture whitepaper, appendix A: 165.2 with fp32 accumulation
    "NVIDIA GeForce RTX 4090": Datasheet(165.2, 82.6, 82.6, 1008),
    # NVIDIA RTX Blackwell GPU architecture whitepaper, appendix A: 209.5 with fp32 accumulation
    "NVIDIA GeForce RTX 5090": Datasheet(209.5, 104.8, 104.8, 1792),
}


def datasheet(name: str) -> Datasheet | None:
    """Nominal peaks of the GPU that the driver calls `name`; None where they are not known."""
    return DATASHEETS.get(name)


def matmul_peaks(device: str, dtype: str) -> dict[str, float | None]:
    """FLOP/s of large matmuls on this device: measured here or before, and by its datasheet where that is known."""
    found = ceilings(device=device)
    sheet = datasheet(found.device)
    return {"ceiling": found.flops_per_s.get(dtype), "datasheet": sheet.flops_per_s(dtype) if sheet else None}
