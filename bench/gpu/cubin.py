"""What a compiled CUDA kernel needs and contains: registers, spills, shared memory, occupancy, notable instructions.

Read from ptxas's report and from the disassembly (cuobjdump), so no GPU is needed. These are counts, never times.
"""

import contextlib
import functools
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from bench.core.files import put
from kernels import Unavailable, cache_dir

# Machine instructions: of the tensor cores (Ampere, Hopper, Blackwell), and with 128 bits a thread.
TENSOR_CORE = re.compile(r"\b(?:[HIDQ]MMA|BMMA|[HIQB]GMMA|UTC\w*MMA)\b")
WIDE = re.compile(r"\b(?:LD|ST|LDG|STG|LDS|STS|LDGSTS)\.(?:\w+\.)*128\b")


@dataclass(frozen=True)
class Resources:
    """One kernel on one architecture. Bytes are of one block (shared) or one thread (the others)."""

    symbol: str
    registers: int
    spill_bytes: int  # stored and loaded
    stack_bytes: int
    shared_bytes: int  # static, without the 1024 bytes that the system reserves
    tensor_core_instructions: int
    wide_instructions: int  # 128-bit loads and stores
    instructions: int
    serialized: bool = False  # wgmma, as ptxas says: each waits for the one before


@functools.lru_cache(maxsize=256)  # calls share their kernels
def resources(cubin: bytes, log: str) -> dict[str, Resources]:
    """By symbol, from a cubin and ptxas's -v report of it; kept in the cache, for to disassemble one takes a second."""
    digest = hashlib.sha256(cubin + log.encode() + Path(__file__).read_bytes()).hexdigest()[:20]
    kept = cache_dir() / "resources" / f"{digest}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return {row["symbol"]: Resources(**row) for row in json.loads(kept.read_text())}
    found = _read(cubin, log)
    with contextlib.suppress(OSError):
        put(kept, json.dumps([asdict(one) for one in found.values()]).encode())
    return found


def _read(cubin: bytes, log: str) -> dict[str, Resources]:
    found = {}
    code = dict(_functions(disassemble(cubin)))
    serialized = set(re.findall(r"wgmma.*? serialized .*?function '?([\w$.]+)", log))
    for symbol, report in _reports(log):
        text = code.get(symbol, "")
        spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
        registers, shared = re.search(r"Used (\d+) registers", report), re.search(r"(\d+) bytes smem", report)
        if not spills or not registers:
            raise ValueError(f"ptxas's report of {symbol} cannot be read: {report!r}")
        found[symbol] = Resources(
            symbol=symbol,
            registers=int(registers[1]),
            spill_bytes=int(spills[2]) + int(spills[3]),
            stack_bytes=int(spills[1]),
            shared_bytes=int(shared[1]) if shared else 0,
            tensor_core_instructions=len(TENSOR_CORE.findall(text)),
            wide_instructions=len(WIDE.findall(text)),
            instructions=len(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+\S", text, flags=re.M)),
            serialized=symbol in serialized,
        )
    return found


class AssemblyError(RuntimeError):
    """ptxas refused a kernel; the message is its own."""


def assemble(ptx: str, arch: str) -> tuple[bytes, str]:
    """(cubin, ptxas's -v report) of a PTX text that Triton made, by the ptxas that Triton brings; kept in the cache."""
    tool = find_ptxas(arch)
    digest = hashlib.sha256(f"{ptx} {arch} {tool}".encode()).hexdigest()[:20]
    stem = cache_dir() / "triton-cubin" / digest
    binary, report = stem.with_suffix(".cubin"), stem.with_suffix(".log")
    if not report.exists():
        with tempfile.TemporaryDirectory() as folder:
            source, partial = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
            source.write_text(ptx)
            command = [tool, "-lineinfo", "-v", f"--gpu-name={arch}", str(source), "-o", str(partial)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise AssemblyError(f"ptxas refused it: {done.stderr.strip()[:2000]}")
            put(binary, partial.read_bytes())
            put(report, done.stderr.encode())
    return binary.read_bytes(), report.read_text()


def find_ptxas(arch: str) -> str:
    """The one that Triton itself takes for an architecture."""
    from triton.backends.nvidia.compiler import get_ptxas

    return get_ptxas(_number(arch)).path


def _reports(log: str) -> Iterator[tuple[str, str]]:
    """(symbol, lines) of each kernel in ptxas's -v output."""
    parts = re.split(r"Compiling entry function '([^']+)'", log)
    return zip(parts[1::2], parts[2::2], strict=True)


def _functions(sass: str) -> Iterator[tuple[str, str]]:
    parts = re.split(r"^\s*Function : (\S+)$", sass, flags=re.M)
    return zip(parts[1::2], parts[2::2], strict=True)


def disassemble(cubin: bytes) -> str:
    """The machine code as text. Raises Unavailable without cuobjdump."""
    tool = find_cuobjdump()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cuobjdump failed: {done.stderr.strip()}")
    return done.stdout


def find_cuobjdump() -> str:
    """The one of the nvidia-cuda-cuobjdump wheel, or of the toolkit on PATH."""
    try:
        for file in metadata.files("nvidia-cuda-cuobjdump") or []:
            if file.name == "cuobjdump":
                return str(file.locate())
    except metadata.PackageNotFoundError:
        pass
    if found := shutil.which("cuobjdump"):
        return found
    raise Unavailable("cuobjdump is not installed (pip install 'layerbench[simulate]')")


# Warps and blocks that a multiprocessor holds, and its shared memory in KiB (CUDA C++ Programming Guide, "Compute
# Capabilities", table "Technical Specifications per Compute Capability").
LIMITS = {80: (64, 32, 164), 86: (48, 16, 100), 89: (48, 24, 100), 90: (64, 32, 228), 100: (64, 32, 228)}
REGISTERS = 65536  # of a multiprocessor, in four equal parts
RESERVED_SHARED = 1024  # bytes a block, for the system


def _number(arch: str) -> int:
    return int(re.sub(r"\D", "", arch))


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def blocks_per_multiprocessor(arch: str, threads: int, registers: int, shared: int) -> int:
    """How many blocks fit on one multiprocessor at once; 0 where not even one does.

    shared: bytes of a block, static and dynamic. Formula: cuda_occupancy.h, for the architectures of LIMITS.
    """
    max_warps, max_blocks, kib = LIMITS[_number(arch)]
    warps = -(-threads // 32)
    a_warp = _up(registers * 32, 256)
    # Registers are handed out by quarter of the multiprocessor, each to whole warps.
    fits = a_warp * _up(warps, 4) <= REGISTERS
    by_registers = (REGISTERS // 4 // a_warp) * 4 // warps if fits else 0
    by_shared = kib * 1024 // _up(shared + RESERVED_SHARED, 128) if shared <= (kib - 1) * 1024 else 0
    return min(max_blocks, max_warps // warps, by_registers, by_shared)


def occupancy(arch: str, threads: int, registers: int, shared: int) -> float | None:
    """Share of the multiprocessor's warps that can be resident at once; None on an architecture not in LIMITS."""
    if _number(arch) not in LIMITS:
        return None
    max_warps = LIMITS[_number(arch)][0]
    return blocks_per_multiprocessor(arch, threads, registers, shared) * -(-threads // 32) / max_warps
