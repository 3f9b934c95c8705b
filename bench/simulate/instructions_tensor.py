"""Tensor cores and Hopper's copies: the second part of the instruction table, with the sections of the PTX ISA manual.

tensor_core.hpp and hopper.hpp have the functions that the C++ calls. What only clusters of several blocks need has a
table of its own, instructions_cluster.py. Sparse and 8-bit forms are not here, and so are unknown instructions.
"""

from __future__ import annotations

import re

from bench.simulate.ptx import Block, split_operands
from bench.simulate.table import Instruction, instruction, with_header
from bench.simulate.use import Use

# A missing space means a generic address.
SPACE = {
    "": "generic_operand",
    **dict.fromkeys(("shared", "shared::cta"), "shared_operand"),
    "shared::cluster": "cluster_operand",
}
MATRIX_SPACE = {"": "Space::Generic", "shared": "Space::Shared", "shared::cta": "Space::Shared"}
# Where none is given the manual says .cta; kernels arrive so at other blocks' barriers, and it is taken for .cluster.
SCOPE = {"": "0", "cta": "kBlockScope", "cluster": "0"}
CACHE_HINT = {"": "", "L2::cache_hint": ""}


def _words(name: str, values: list[str]) -> str:
    return f"u32 {name}[] = {{{', '.join(values)}}};"


# --- 9.7.14 warp-level matrix instructions ---------------------------------------------------------------------------

ELEMENTS = {"f16": "Element::F16", "bf16": "Element::Bf16", "tf32": "Element::Tf32"}


def _mma(use: Use) -> str:
    words, half_sums = int(use.fill("{SHAPE}")), use.statement.opcode.endswith(".f16.f16.f16.f16")
    element = ELEMENTS[use.statement.opcode.split(".")[-2]]
    sums = 2 if half_sums else 4
    for name, wanted in (("d", sums), ("a", words // 2), ("b", words // 4), ("c", sums)):
        if use.count(name) != wanted:
            raise ValueError(f"operand {name} has {use.count(name)} registers where {wanted} are wanted")
    call = f"mma(self, {{{element}, {words}, {str(half_sums).lower()}}}, d_, a_, b_, c_, {use.site});"
    inputs = [_words(f"{name}_", use.values(name, "b32")) for name in ("a", "b", "c")]
    return " ".join([f"u32 d_[{sums}];", *inputs, call, use.assign_all("d", [f"d_[{i}]" for i in range(sums)], "b32")])


def _check_count(use: Use, name: str) -> int:
    count = int(use.modifiers["COUNT"][1:])
    if use.count(name) != count:
        raise ValueError(f"{use.count(name)} registers where {count} are wanted")
    return count


def _load_matrices(use: Use) -> str:
    count = _check_count(use, "d")
    address = use.fill("row_address<{SPACE}>(self, {a:address})")
    call = use.fill(f"load_matrices(self, d_, {count}, {{TRANS}}, {address}, {{site}});")
    return f"u32 d_[{count}]; {call} " + use.assign_all("d", [f"d_[{i}]" for i in range(count)], "b32")


def _store_matrices(use: Use) -> str:
    count = _check_count(use, "b")
    address = use.fill("row_address<{SPACE}>(self, {a:address})")
    call = use.fill(f"store_matrices(self, b_, {count}, {{TRANS}}, {address}, {{site}});")
    return f"{_words('b_', use.values('b', 'b32'))} {call}"


# The choice of shape is the number of 32-bit words that a row of A has.
HALF_SHAPES = {"m16n8k8": "4", "m16n8k16": "8"}
TF32_SHAPES = {"m16n8k4": "4", "m16n8k8": "8"}
MATRIX_CHOICES = {
    "COUNT": dict.fromkeys(("x1", "x2", "x4"), ""),
    "TRANS": {"": "false", "trans": "true"},
    "SPACE": MATRIX_SPACE,
}

MATRIX = [
    *(
        instruction("9.7.14 mma", f"mma.sync.aligned.SHAPE.row.col.{types} <d>, <a>, <b>, <c>", _mma, SHAPE=shapes)
        for types, shapes in (
            ("f32.bf16.bf16.f32", HALF_SHAPES),
            ("f32.f16.f16.f32", HALF_SHAPES),
            ("f16.f16.f16.f16", HALF_SHAPES),
            ("f32.tf32.tf32.f32", TF32_SHAPES),
        )
    ),
    instruction(
        "9.7.14 ldmatrix",
        "ldmatrix.sync.aligned.m8n8.COUNT.TRANS.SPACE.b16 <d>, [a]",
        _load_matrices,
        **MATRIX_CHOICES,
    ),
    instruction(
        "9.7.14 stmatrix",
        "stmatrix.sync.aligned.m8n8.COUNT.TRANS.SPACE.b16 [a], <b>",
        _store_matrices,
        **MATRIX_CHOICES,
    ),
]

# --- 9.7.13.15 mbarrier ----------------------------------------------------------------------------------------------

RELEASES = {"": "kRelease", "release": "kRelease", "relaxed": "0"}
ACQUIRES = {"": "kAcquire", "acquire": "kAcquire", "relaxed": "0"}
BARRIER = "{SPACE}(self, {a:address})"
ARRIVE_CHOICES = {"ORDER": RELEASES, "SCOPE": SCOPE, "SPACE": SPACE}
WAIT_CHOICES = {"ORDER": ACQUIRES, "SCOPE": SCOPE, "SPACE": SPACE}


def _waits() -> list[Instruction]:
    lines = []
    for name, blocks, hint in (("test_wait", "false", ""), ("try_wait", "true", ", c:u32=0")):
        for kind, operand, parity in (("", "b:u64", "(u32)({b} & 1)"), (".parity", "b:u32", "{b}")):
            lines.append(
                instruction(
                    f"9.7.13 mbarrier.{name}",
                    f"mbarrier.{name}{kind}.ORDER.SCOPE.SPACE.b64 p, [a], {operand}{hint}",
                    f"mbarrier_test(self, {BARRIER}, {parity}, {{ORDER}} | {{SCOPE}}, {blocks}, {{site}})",
                    **WAIT_CHOICES,
                )
            )
    return lines


MBARRIER = [
    instruction(
        "9.7.13 mbarrier.init",
        "mbarrier.init.SPACE.b64 [a], b:u32",
        f"mbarrier_init(self, {BARRIER}, {{b}}, {{site}});",
        SPACE=SPACE,
    ),
    instruction(
        "9.7.13 mbarrier.inval",
        "mbarrier.inval.SPACE.b64 [a]",
        f"mbarrier_invalidate(self, {BARRIER}, {{site}});",
        SPACE=SPACE,
    ),
    instruction(
        "9.7.13 mbarrier.expect_tx",
        "mbarrier.expect_tx{.relaxed}.SCOPE.SPACE.b64 [a], b:u32",
        f"mbarrier_expect(self, {BARRIER}, {{b}}, {{site}});",
        SCOPE=SCOPE,
        SPACE=SPACE,
    ),
    instruction(
        "9.7.13 mbarrier.arrive",
        "mbarrier.arrive.ORDER.SCOPE.SPACE.b64 d:u64, [a], b:u32=1",
        f"mbarrier_arrive(self, {BARRIER}, {{b}}, 0, {{ORDER}} | {{SCOPE}}, {{site}})",
        **ARRIVE_CHOICES,
    ),
    instruction(
        "9.7.13 mbarrier.arrive",
        "mbarrier.arrive.expect_tx.ORDER.SCOPE.SPACE.b64 d:u64, [a], b:u32",
        f"mbarrier_arrive(self, {BARRIER}, 1, {{b}}, {{ORDER}} | {{SCOPE}}, {{site}})",
        **ARRIVE_CHOICES,
    ),
    *_waits(),
    instruction(
        "9.7.13 cp.async.mbarrier.arrive",
        "cp.async.mbarrier.arrive.NOINC.SPACE.b64 [a]",
        f"copy_async_arrive(self, {BARRIER}, {{NOINC}}, {{site}});",
        NOINC={"": "true", "noinc": "false"},
        SPACE=SPACE,
    ),
]

# --- 9.7.9.25 bulk and tensor copies, 9.7.13 fences of the async proxy -----------------------------------------------


def split_tile(use: Use, name: str) -> tuple[str, str]:
    """`[map, {x, y}]` as the C++ of the map's address, and of an array of coordinates."""
    found = re.fullmatch(r"\[\s*([^,\s]+)\s*,\s*\{(.*)\}\s*\]", use.text(name), flags=re.DOTALL)
    coordinates = split_operands(found[2]) if found else []
    if not found or len(coordinates) != int(use.modifiers["AXES"][0]):
        raise ValueError(f"the coordinates {use.text(name)} are not understood")
    values = ", ".join(use.operand(c, "s32") for c in coordinates)
    return use.operand(found[1], "u64"), f"s32 at_[] = {{{values}}};"


def _tile_load(use: Use) -> str:
    tensor_map, coordinates = split_tile(use, "a")
    rank = use.modifiers["AXES"][0]
    call = f"tile_load(self, {use.address('d')}, {tensor_map}, at_, {rank}, {use.address('b')}, {use.site});"
    return f"{coordinates} {call}"


def _tile_store(use: Use) -> str:
    tensor_map, coordinates = split_tile(use, "d")
    rank = use.modifiers["AXES"][0]
    return f"{coordinates} tile_store(self, {tensor_map}, at_, {rank}, {use.address('a')}, {use.site});"


AXES = dict.fromkeys(("2d", "3d", "4d", "5d"), "")
INTO = dict.fromkeys(("shared::cluster", "shared::cta"), "")

COPIES = [
    instruction(
        "9.7.9 cp.async.bulk.tensor",
        "cp.async.bulk.tensor.AXES.INTO.global{.tile}.mbarrier::complete_tx::bytes.HINT [d], [a], [b], c:u64=0",
        _tile_load,
        AXES=AXES,
        INTO=INTO,
        HINT=CACHE_HINT,
    ),
    instruction(
        "9.7.9 cp.async.bulk.tensor",
        "cp.async.bulk.tensor.AXES.global.shared::cta{.tile}.bulk_group.HINT [d], [a], b:u64=0",
        _tile_store,
        AXES=AXES,
        HINT=CACHE_HINT,
    ),
    instruction(
        "9.7.9 cp.async.bulk",
        "cp.async.bulk.INTO.global.mbarrier::complete_tx::bytes.HINT [d], [a], b:u32, [c], e:u64=0",
        "bulk_load(self, {d:address}, {a:address}, {b}, {c:address}, {site});",
        INTO=INTO,
        HINT=CACHE_HINT,
    ),
    instruction(
        "9.7.9 cp.async.bulk",
        "cp.async.bulk.global.shared::cta.bulk_group.HINT [d], [a], b:u32, c:u64=0",
        "bulk_store(self, {d:address}, {a:address}, {b}, {site});",
        HINT=CACHE_HINT,
    ),
    instruction("9.7.9 cp.async.bulk.commit_group", "cp.async.bulk.commit_group", "bulk_commit(self);"),
    instruction("9.7.9 cp.async.bulk.wait_group", "cp.async.bulk.wait_group{.read} a:u32", "bulk_wait(self, {a});"),
    instruction("9.7.9 prefetch", "prefetch{.param}.tensormap [a]", ";"),
    instruction(
        "9.7.13 fence.proxy",
        "fence.proxy.async.SPACE",
        "{SPACE}",
        SPACE={
            **dict.fromkeys(("", "shared::cta", "shared::cluster"), "fence_async_proxy(self);"),
            "global": ";",
        },
    ),
    # The simulator's barriers are initialised for everybody at once; that others are told is checked as a race.
    instruction("9.7.13 fence.mbarrier_init", "fence.mbarrier_init.release.cluster", "mbarrier_announce(self);"),
    instruction("9.7.19 setmaxnreg", "setmaxnreg.KIND.sync.aligned.u32 a:u32", ";", KIND={"inc": "", "dec": ""}),
]

# --- 9.7.15 asynchronous warpgroup-level matrix instructions ---------------------------------------------------------


def _wgmma(use: Use) -> str:
    parts = use.statement.opcode.split(".")
    n, element, half_sums = int(parts[4].split("n")[1].split("k")[0]), parts[-1], parts[5] == "f16"
    in_registers, halves = use.count("a") > 1, element != "tf32"
    wanted = n // (4 if half_sums else 2)
    if use.count("d") != wanted:
        raise ValueError(f"{use.count('d')} accumulators where {wanted} are wanted")
    operands = len(use.statement.operands)
    if operands != 6 + halves * (2 - in_registers):
        raise ValueError(f"{operands} operands")
    negated = [use.text(name).strip() == "-1" for name in ("e", "f")]
    transposed = [False, use.text("g") == "1"] if in_registers else [use.text("g") == "1", use.text("h") == "1"]
    flags = ", ".join(str(flag).lower() for flag in (*negated, *transposed))
    form = f"WgmmaForm form_{{{ELEMENTS[element]}, {str(half_sums).lower()}, {n}, {flags}}};"
    places = ", ".join(f"(u32*)&{use.scope.register(r)[0]}" for r in use.elements("d"))
    a = (
        (_words("a_", use.values("a", "b32")), "a_, 0")
        if in_registers
        else ("", f"nullptr, {use.values('a', 'u64')[0]}")
    )
    call = f"wgmma(self, form_, d_, {a[1]}, {use.value('b')}, {use.value('c')}, {use.site});"
    return f"{form} u32* d_[] = {{{places}}}; {a[0]} {call}"


def wgmma_sums(body: Block) -> frozenset[str]:
    """The registers that a wgmma may still have to write, and those that get their values by a mov."""
    statements = list(body.statements())
    sums: set[str] = set()
    for s in statements:
        if s.opcode.startswith("wgmma.mma_async"):
            sums.update(r.strip() for r in s.operands[0].strip("{}").split(","))
    moves = [s.operands for s in statements if re.fullmatch(r"mov\.[bfus]32", s.opcode)] if sums else []
    while new := {to for to, source in moves if source in sums} - sums:
        sums |= new
    return frozenset(sums)


COLUMNS = range(8, 257, 8)
WGMMA_OPERANDS = "<d>, <a>, b:u64, c:pred, e:s32, f:s32"

WGMMA = [
    *(
        instruction(
            "9.7.15 wgmma.mma_async",
            f"wgmma.mma_async.sync.aligned.SHAPE.{types} {WGMMA_OPERANDS}, g:s32, h:s32=",
            _wgmma,
            SHAPE=dict.fromkeys((f"m64n{n}k16" for n in COLUMNS), ""),
        )
        for types in ("f32.bf16.bf16", "f32.f16.f16", "f16.f16.f16")
    ),
    instruction(
        "9.7.15 wgmma.mma_async",
        f"wgmma.mma_async.sync.aligned.SHAPE.f32.tf32.tf32 {WGMMA_OPERANDS}",
        _wgmma,
        SHAPE=dict.fromkeys((f"m64n{n}k8" for n in COLUMNS), ""),
    ),
    instruction("9.7.15 wgmma.fence", "wgmma.fence.sync.aligned", "wgmma_fence(self, {site});"),
    instruction("9.7.15 wgmma.commit_group", "wgmma.commit_group.sync.aligned", "wgmma_commit(self, {site});"),
    instruction("9.7.15 wgmma.wait_group", "wgmma.wait_group.sync.aligned a:u32", "wgmma_wait(self, {a}, {site});"),
]

INSTRUCTIONS: list[Instruction] = [
    *with_header("tensor_core.hpp", MATRIX),
    *with_header("hopper.hpp", [*MBARRIER, *COPIES, *WGMMA]),
]
