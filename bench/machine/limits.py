"""What a GPU can do at most each cycle, and the least time that counted work can take at those rates: bounds, no times.

Every rate is the highest that a document or a measurement names, so that what comes out is below any time that the
card can show. What no source names (latencies, L2's own bandwidth, what power takes off the clock) bounds nothing here.
"""

from dataclasses import dataclass

SECTOR_BYTES, WAVEFRONT_BYTES, WARP = 32, 128, 32

# Sources.
GUIDE = "CUDA C++ Programming Guide, arithmetic throughput, compute capability 9.0"
BANKS = "CUDA C++ Programming Guide, compute capability 5.x and later"
WHITEPAPER = "NVIDIA H100 whitepaper, table of features (SXM5); H200 has the same chip"
DATASHEET = "NVIDIA H200 datasheet"
PEAK_CLOCK = f"{DATASHEET}: 66.9 TFLOP/s in fp32 are 132 x 256 a cycle at it"
DENSE = f"{DATASHEET}: half of what it gives with sparsity"
BY_WARP = "62 to 68 % of wgmma's in published comparisons, 62.9 % on average in arXiv 2402.13499: the most"
TO_L2 = "NVIDIA A100 whitepaper: 5120 a cycle for all 108 of them, which is less; Hopper's is not published"


@dataclass(frozen=True)
class Limit:
    value: float
    unit: str
    what: str
    source: str


@dataclass(frozen=True)
class Limits:
    """Of one GPU. The rates of a multiprocessor are per cycle; the others are of the whole card, per second."""

    multiprocessors: Limit
    clock: Limit  # Hz, the highest
    memory: Limit  # bytes/s
    wgmma: Limit  # FLOP/s, bf16 with fp32 sums
    mma: Limit  # FLOP/s of mma.sync
    fp32: Limit  # results a cycle
    special: Limit  # results a cycle
    shared: Limit  # bytes a cycle
    l1: Limit  # bytes a cycle
    l2: Limit  # bytes a cycle, each way


_BF16 = 989.4e12
H200 = Limits(
    multiprocessors=Limit(132, "", "multiprocessors", WHITEPAPER),
    clock=Limit(1.98e9, "Hz", "highest clock of a multiprocessor", PEAK_CLOCK),
    memory=Limit(4.8e12, "B/s", "memory bandwidth", DATASHEET),
    wgmma=Limit(_BF16, "FLOP/s", "wgmma, bf16 with fp32 sums", DENSE),
    mma=Limit(0.68 * _BF16, "FLOP/s", "mma.sync, the same", BY_WARP),
    fp32=Limit(128, "results/cycle", "fp32 add, multiply, fma", GUIDE),
    special=Limit(16, "results/cycle", "exp2, log2, reciprocal, root, sine, tanh", GUIDE),
    shared=Limit(128, "B/cycle", "shared memory: 32 banks of 4 bytes", BANKS),
    l1=Limit(128, "B/cycle", "L1, which is the same memory", BANKS),
    l2=Limit(64, "B/cycle", "between L2 and a multiprocessor, each way", TO_L2),
)


# --- of the whole card ---


def memory_seconds(nbytes: float, limits: Limits = H200) -> float:
    """bytes / bandwidth (Williams, Waterman, Patterson 2009, "Roofline"), in seconds."""
    return nbytes / limits.memory.value


def product_seconds(wgmma_flops: float, mma_flops: float = 0.0, limits: Limits = H200) -> float:
    """FLOPs / peak of the instruction that computes them; both kinds share the tensor cores, so their times add up."""
    return wgmma_flops / limits.wgmma.value + mma_flops / limits.mma.value


def _cycles(cycles: float, limits: Limits) -> float:
    """Seconds of so many cycles of one multiprocessor, spread over all."""
    return cycles / (limits.multiprocessors.value * limits.clock.value)


def special_seconds(warp_instructions: float, limits: Limits = H200) -> float:
    """32 results an instruction / (16 a cycle x multiprocessors x clock)."""
    return _cycles(warp_instructions * WARP / limits.special.value, limits)


def fp32_seconds(warp_instructions: float, limits: Limits = H200) -> float:
    """32 results an instruction / (128 a cycle x multiprocessors x clock)."""
    return _cycles(warp_instructions * WARP / limits.fp32.value, limits)


def shared_seconds(wavefronts: float, limits: Limits = H200) -> float:
    """One wavefront, 128 bytes over 32 banks, a cycle of a multiprocessor."""
    return _cycles(wavefronts * WAVEFRONT_BYTES / limits.shared.value, limits)


def l1_seconds(sectors: float, limits: Limits = H200) -> float:
    """32 bytes a sector / (128 bytes a cycle x multiprocessors x clock): a hit costs as much."""
    return _cycles(sectors * SECTOR_BYTES / limits.l1.value, limits)


def l2_seconds(sectors: float, limits: Limits = H200) -> float:
    """32 bytes a sector / (64 bytes a cycle x multiprocessors x clock), one way: reads and writes pass each other."""
    return _cycles(sectors * SECTOR_BYTES / limits.l2.value, limits)


# --- of a grid ---


def waves(items: int, resident: int, limits: Limits = H200) -> float:
    """Blocks of a launch (of a persistent one, tiles) in units of what the card holds at once: items / (resident x
    multiprocessors)."""
    return items / (resident * limits.multiprocessors.value)


def imbalance(items: int, limits: Limits = H200) -> float:
    """How much longer than the average the busiest multiprocessor computes, at least, where all items are equal work.

    By the pigeonhole principle one of n multiprocessors has ceil(items / n) of them: ceil(items / n) / (items / n).
    """
    n = int(limits.multiprocessors.value)
    return -(-items // n) * n / items if items else 1.0


def floor_seconds(nbytes: float, product_flops: float, limits: Limits = H200) -> float:
    """What no kernel for the call can be below, whatever it does: each byte moved once, each product on wgmma."""
    return max(memory_seconds(nbytes, limits), product_seconds(product_flops, limits=limits))
