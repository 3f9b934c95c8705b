"""What a launch executes, counted in the simulator: products, special functions, fp32, shared and global traffic.

The PTX is rewritten before it runs: its own source lines go, and each instruction stands on a line that names its kind.
Where straight-line code does arithmetic that is to be counted, an atomic addition to a word of the module's own stands
on a line of its own: how often a warp asked for it is how often the warp passed there. So nothing in the simulator is
changed, and its counts by line (bench.simulate.counts) are all that is read.

Counts are of PTX. ptxas may still fuse a product with a sum, so of fp32 sums and products in a stretch only the more
numerous kind counts beside fma; what it takes out altogether (dead code, loads that it finds twice) the optimiser
before it has mostly taken out already.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bench import simulate
from bench.simulate.counts import KernelCount
from bench.simulate.ptx import TOKEN
from kernels import cuda
from kernels.cuda.compiler import compile_source

WARP, WAVEFRONT_BYTES = 32, 128
FILE, LOADS, PAST_L1, OTHER, OPERANDS, FIRST_STRETCH = "executed", 1, 2, 3, 4, 10
FILE_NUMBER = 9001  # no module has so many files
MARK = f"red.relaxed.gpu.global.add.u32 [{FILE}_mark], 1;"
DECLARATION = f".visible .global .align 4 .u32 {FILE}_mark;"

# Special-function unit: CUDA C++ Programming Guide, "Arithmetic Instructions", the row of reciprocal … exp2f. Divisions
# and square roots of fp32 begin with one of these each.
SPECIAL = re.compile(r"(?:ex2|lg2|rcp|rsqrt|sqrt|sin|cos|tanh|div)\.(?:\w+\.)*(?:f32|b?f16x?2?)$")
FP32 = re.compile(r"(fma|add|sub|mul)\.(?:\w+\.)*f32$")
MMA = re.compile(r"mma\.sync\.aligned\.m(\d+)n(\d+)k(\d+)")
WGMMA = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.f(?:32|16)\.(\w+)")
ENDS = re.compile(r"(?:bra|brx|ret|exit|call|bar|barrier|trap)\b")  # of a stretch that is passed as a whole


@dataclass
class Executed:
    """Of one launch, or of a share of one; instructions are those of a warp, sectors 32 bytes, wavefronts 128 bytes."""

    mma_flops: float = 0  # by mma.sync, padding of tiles included
    wgmma_flops: float = 0
    special: float = 0  # exp2, reciprocal, …
    exp2: float = 0  # of them
    fp32: float = 0  # fma, and of add and mul the more numerous
    shared_wavefronts: float = 0  # bank conflicts included, operands of wgmma too
    l1_sectors: float = 0  # loads through L1, where some may be hits
    l2_reads: float = 0  # sectors of loads that pass L1 by: TMA, cp.async.cg
    l2_writes: float = 0  # of stores and atomics


@dataclass(frozen=True)
class Rewritten:
    """PTX with lines of its own; `stretches` are the counts of one passage, by line."""

    text: str
    stretches: dict[int, Counter[str]]


def rewritten(ptx: str) -> Rewritten:
    """The same program, on lines that tell what was executed."""
    writer = _Writer()
    for token in TOKEN.finditer(re.sub(r"/\*.*?\*/|//[^\n]*", "", ptx, flags=re.DOTALL)):
        writer.token(token)
    return Rewritten("".join(writer.out), writer.stretches)


class _Writer:
    def __init__(self) -> None:
        self.out: list[str] = []
        self.stretches: dict[int, Counter[str]] = {}
        self.passed: Counter[str] = Counter()  # of the stretch that is being read

    def token(self, token: re.Match[str]) -> None:
        text, kind = token[0], token.lastgroup
        if token["loc"] or token["file"]:
            return
        if token["version"]:
            self.out.append(text)
            if text.startswith(".address_size"):
                self.out.append(f'\n{DECLARATION}\n.file {FILE_NUMBER} "{FILE}"\n')
        elif token["statement"]:
            self.statement(text)
        elif kind == "space":
            self.out.append(text)
        else:  # a label, a brace, a function: others come here, or go on from here
            self.end_stretch()
            self.out.append(text)

    def statement(self, text: str) -> None:
        guard, opcode = _parts(text)
        found = counted(opcode, text)
        if ENDS.match(opcode):
            self.end_stretch()
        elif guard and found:  # not all that pass here execute it
            self.end_stretch()
            self.mark(found, guard)
            found = Counter()
        self.passed += found
        line = OPERANDS if opcode.startswith("wgmma") else memory_line(opcode)
        self.out.append(f"\n.loc {FILE_NUMBER} {line} 0\n{text}" if opcode[:1] != "." else text)

    def end_stretch(self) -> None:
        found, self.passed = self.passed, Counter()
        if found:
            self.mark(found)

    def mark(self, found: Counter[str], guard: str = "") -> None:
        line = FIRST_STRETCH + len(self.stretches)
        self.stretches[line] = found
        self.out.append(f"\n.loc {FILE_NUMBER} {line} 0\n{guard} {MARK}\n")


def _parts(statement: str) -> tuple[str, str]:
    """("@%p1" or "", opcode) of a statement."""
    found = re.match(r"\s*(@!?[%\w$]+)?\s*([a-z.][\w.:]*)?", statement)
    return (found[1] or "", found[2] or "") if found else ("", "")


def counted(opcode: str, text: str) -> Counter[str]:
    """What one execution of an instruction by a warp counts; empty for what is not counted."""
    if found := MMA.match(opcode):
        m, n, k = map(int, found.groups())
        return Counter(mma_flops=2 * m * n * k)
    if found := WGMMA.match(opcode):  # four warps execute it together
        n, k, bits = int(found[1]), int(found[2]), 32 if found[3] == "tf32" else 16
        a_in_shared = text.count("{") == 1  # the sums' list alone; A from registers is a second one
        operand_bytes = (n + 64 * a_in_shared) * k * bits // 8
        return Counter(wgmma_flops=2 * 64 * n * k // 4, operand_bytes=operand_bytes // 4)
    if SPECIAL.match(opcode):
        # Of two halves at once too: how many passes a pair takes is not published, and one is the least.
        return Counter(special=1, exp2=int(opcode.startswith("ex2")))
    if found := FP32.match(opcode):
        return Counter({{"fma": "fma", "mul": "mul"}.get(found[1], "add"): 1})
    return Counter()


def memory_line(opcode: str) -> int:
    """The line for a memory instruction's traffic."""
    if opcode.startswith(("cp.async.cg", "cp.async.bulk")):
        return PAST_L1
    return LOADS if opcode.startswith(("ld.", "cp.async.ca", "ldu.")) else OTHER


def read(count: KernelCount, stretches: dict[int, Counter[str]]) -> Executed:
    """What a launch of rewritten PTX executed."""
    found = Executed()
    for name, traffic in count.lines.items():
        line = int(name.rpartition(":")[2])
        if line >= FIRST_STRETCH:
            one, times = stretches[line], traffic.atomic_requests
            for kind in ("mma_flops", "wgmma_flops", "special", "exp2"):
                setattr(found, kind, getattr(found, kind) + one[kind] * times)
            found.fp32 += (one["fma"] + max(one["add"], one["mul"])) * times
            found.shared_wavefronts += one["operand_bytes"] / WAVEFRONT_BYTES * times
            continue
        if line != OPERANDS:  # of which the simulator reads each 16 bytes for themselves
            found.shared_wavefronts += traffic.shared_wavefronts
        found.l2_writes += traffic.store_sectors + traffic.atomic_sectors
        if line == PAST_L1:
            found.l2_reads += traffic.load_sectors
        else:
            found.l1_sectors += traffic.load_sectors
    return found


class Counting:
    """A launcher (bench.gpu.launches.launching_with) that runs rewritten PTX; `found` has a count for each launch."""

    def __init__(self) -> None:
        self.found: list[Executed] = []

    def __call__(self, launch: Any) -> None:
        code, symbol, arch = _ptx_of(launch)
        program = rewritten(code)
        with simulate.count() as counts:
            simulate.run_ptx(
                program.text,
                symbol,
                launch.grid,
                launch.block,
                launch.shared,
                launch.arguments,
                arch,
                cooperative=launch.cooperative,
                cluster=getattr(launch, "cluster", None),
                any_cluster=True,
            )
        self.found.append(read(counts[0], program.stretches))


def _ptx_of(launch: Any) -> tuple[str, str, str]:
    """(PTX, symbol, architecture) of a launch by either backend."""
    build = launch.build
    if isinstance(build, cuda.Build):
        binary = compile_source(build.source, (build.name,), cuda.TARGET, "ptx", build.defines, build.appended)
        return binary.code.decode(), binary.names[build.name], cuda.TARGET
    from bench.simulate import triton_driver  # needs Triton

    return triton_driver.with_fences(build.ptx), build.name, build.arch
