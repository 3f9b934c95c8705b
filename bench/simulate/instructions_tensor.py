"""Tensor cores and Hopper's copies: the second part of the instruction table, with the sections of the PTX ISA manual.

tensor_core.hpp and hopper.hpp have the functions that the C++ calls. What only clusters of several blocks need has a
table of its own, instructions_cluster.py. Sparse forms are not here, and so are unknown instructions.
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

ELEMENTS = {
    **{"f16": "Element::F16", "bf16": "Element::Bf16", "tf32": "Element::Tf32", "s8": "Element::S8"},
    **{"u8": "Element::U8", "e4m3": "Element::E4m3", "e5m2": "Element::E5m2"},
}
SUMS = {"f32": "Sums::F32", "f16": "Sums::F16", "s32": "Sums::S32"}
BYTES = {"S": ("s8", "u8"), "F": ("e4m3", "e5m2")}  # of one product's operands, each its own


def _sums(use: Use, dtype: str) -> str:
    return "Sums::S32Saturated" if "satfinite" in use.statement.opcode.split(".") else SUMS[dtype]


def _require(use: Use, **wanted: int) -> None:
    """Raises ValueError where a vector operand has another number of registers."""
    for name, count in wanted.items():
        if use.count(name) != count:
            raise ValueError(f"operand {name} has {use.count(name)} registers where {count} are wanted")


def _mma(use: Use) -> str:
    words, rows = int(use.fill("{SHAPE}")), int(use.modifiers["SHAPE"].split("n")[0][1:])
    *_, dtype, a, b, _ = use.statement.opcode.split(".")
    sums = rows // (8 if dtype == "f16" else 4)
    _require(use, d=sums, a=words * rows // 32, b=words // 4, c=sums)
    form = f"{{{ELEMENTS[a]}, {ELEMENTS[b]}, {words}, {rows}, {_sums(use, dtype)}}}"
    inputs = [_words(f"{name}_", use.values(name, "b32")) for name in ("a", "b", "c")]
    call = f"mma(self, {form}, d_, a_, b_, c_, {use.site});"
    return " ".join([f"u32 d_[{sums}];", *inputs, call, use.assign_all("d", [f"d_[{i}]" for i in range(sums)], "b32")])


def _mma_doubles(use: Use) -> str:
    rows, k = (int(n) for n in use.fill("{SHAPE}").split(", "))
    _require(use, d=rows // 4, a=k * rows // 32, b=k // 4, c=rows // 4)
    inputs = [f"f64 {name}_[] = {{{', '.join(use.values(name, 'f64'))}}};" for name in ("a", "b", "c")]
    results = use.assign_all("d", [f"d_[{i}]" for i in range(rows // 4)], "f64")
    return " ".join(
        [f"f64 d_[{rows // 4}];", *inputs, f"mma_doubles(self, {rows}, {k}, d_, a_, b_, c_, {use.site});", results]
    )


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
BYTE_SHAPES = {"m8n8k16": "4", "m16n8k16": "4", "m16n8k32": "8"}
FLOAT8_SHAPES = {"m16n8k32": "8"}
DOUBLE_SHAPES = {"m8n8k4": "8, 4", "m16n8k4": "16, 4", "m16n8k8": "16, 8", "m16n8k16": "16, 16"}
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
        "9.7.14 mma",
        "mma.sync.aligned.SHAPE.row.col{.satfinite}.s32.A.B.s32 <d>, <a>, <b>, <c>",
        _mma,
        **{"SHAPE": BYTE_SHAPES, "A": dict.fromkeys(BYTES["S"], ""), "B": dict.fromkeys(BYTES["S"], "")},
    ),
    instruction(
        "9.7.14 mma",
        "mma.sync.aligned.SHAPE.row.col.f32.A.B.f32 <d>, <a>, <b>, <c>",
        _mma,
        **{"SHAPE": FLOAT8_SHAPES, "A": dict.fromkeys(BYTES["F"], ""), "B": dict.fromkeys(BYTES["F"], "")},
    ),
    instruction(
        "9.7.14 mma",
        "mma.sync.aligned.SHAPE.row.col.f64.f64.f64.f64 <d>, <a>, <b>, <c>",
        _mma_doubles,
        SHAPE=DOUBLE_SHAPES,
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


def _arrivals() -> list[Instruction]:
    lines = []
    for name, kind in (("arrive", "Plain"), ("arrive_drop", "Drop")):
        section, no_complete = f"9.7.13 mbarrier.{name}", "NoComplete" if kind == "Plain" else "DropNoComplete"
        for syntax, arrivals, expected, how in (
            ("{NAME}.ORDER.SCOPE.SPACE.b64 d:u64, [a], b:u32=1", "{b}", "0", kind),
            ("{NAME}.expect_tx.ORDER.SCOPE.SPACE.b64 d:u64, [a], b:u32", "1", "{b}", kind),
            ("{NAME}.noComplete.ORDER.SCOPE.SPACE.b64 d:u64, [a], b:u32", "{b}", "0", no_complete),
        ):
            order = "{ORDER} | {SCOPE}"
            code = f"mbarrier_arrive(self, {BARRIER}, {arrivals}, {expected}, {order}, {{site}}, Arrival::{how})"
            lines.append(instruction(section, f"mbarrier.{syntax.replace('{NAME}', name)}", code, **ARRIVE_CHOICES))
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
    *_arrivals(),
    instruction("9.7.13 mbarrier.pending_count", "mbarrier.pending_count.b64 d:u32, a:u64", "mbarrier_pending({a})"),
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
    n = int(parts[4].split("n")[1].split("k")[0])
    *_, dtype, a_type, b_type = parts
    in_registers, halves = use.count("a") > 1, b_type in ("f16", "bf16")
    _require(use, d=n // (4 if dtype == "f16" else 2))
    operands = len(use.statement.operands)
    if operands != (4 if dtype == "s32" else 6 + halves * (2 - in_registers)):
        raise ValueError(f"{operands} operands")
    whole = dtype == "s32"  # no signs, and K is contiguous
    negated = [not whole and use.text(name).strip() == "-1" for name in ("e", "f")]
    told = [halves and use.text(name) == "1" for name in ("g", "h")]
    transposed = [False, told[0]] if in_registers else told
    flags = ", ".join(str(flag).lower() for flag in (*negated, *transposed))
    form = f"WgmmaForm form_{{{ELEMENTS[a_type]}, {ELEMENTS[b_type]}, {_sums(use, dtype)}, {n}, {flags}}};"
    places = ", ".join(f"(u32*)&{use.scope.register(r)[0]}" for r in use.elements("d"))
    a = (
        (_words("a_", use.values("a", "b32")), "a_, 0")
        if in_registers
        else ("", f"nullptr, {use.values('a', 'u64')[0]}")
    )
    call = f"wgmma(self, form_, d_, {a[1]}, {use.value('b')}, {use.value('c')}, {use.site});"
    code = f"{form} u32* d_[] = {{{places}}}; {a[0]} "
    sums = [use.product_register(r) for r in use.elements("d")]
    of_a = [use.product_register(r) for r in use.elements("a")] if in_registers else []
    if None in (*sums, *of_a):  # of a function: who called it is not known here
        return code + call
    for registers, check in ((sums, "wgmma_unfenced"), (of_a, "wgmma_unfenced_a")):
        unfenced = " || ".join(f"{u}.used == fences_" for u in registers)
        code += f" if ({unfenced}) {check}(self, {use.site});" if registers else ""
    begun = " ".join(f"{u}.operation = operation_;" for u in (*sums, *of_a))
    return f"{code} const u32 operation_ = {call} {begun}"


MOVE = re.compile(r"mov\.[bfus]32")
NAME = re.compile(r"%?[A-Za-z_$][\w$]*")


def product_registers(body: Block) -> frozenset[str]:
    """The registers that a wgmma reads or writes, and those that are copied from or to them."""
    statements = list(body.statements())
    products = [s for s in statements if s.opcode.startswith("wgmma.mma_async")]
    found = {r for s in products for operand in s.operands[:2] if "{" in operand for r in NAME.findall(operand)}
    moves = [s.operands for s in statements if MOVE.fullmatch(s.opcode)] if found else []
    moves = [(to, source) for to, source in moves if NAME.fullmatch(to) and NAME.fullmatch(source)]
    while new := {r for pair in moves if found & set(pair) for r in pair} - found:
        found |= new
    return frozenset(found)


def watched(use: Use, code: str) -> str:
    """The C++ of a statement, and what it does to registers of products: a use of one that a wgmma has under way is
    too early, and after any other use comes a wgmma.fence before the next product with it (PTX ISA 9.7.15.6.1)."""
    if use.statement.opcode.startswith("wgmma."):
        return code
    registers = {r for text in use.statement.operands for r in NAME.findall(text)}
    uses = {r: u for r in registers if (u := use.product_register(r))}
    if not uses:
        return code
    if MOVE.fullmatch(use.statement.opcode) and NAME.fullmatch(use.text("d")):  # ptxas may give both one register
        to, source = (use.product_register(use.text(name)) for name in ("d", "a"))
        return f"{code} {to} = {source or 'WgmmaUse()'};" if to else code
    written = {r for o, text in use.operands.values() if o.is_result for r in NAME.findall(text or "")}
    before, after = "", ""
    for r, u in sorted(uses.items()):
        if r in written or r in use.scope.kernel.sums:
            before += f"if ({u}.operation > waited_) wgmma_too_early(self, {str(r in written).lower()}, {use.site}); "
            after += f" {u} = {{0, fences_}};" if r in written else f" {u}.used = fences_;"
    return before + code + after


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
WHOLE_COLUMNS = (8, 16, 24, *range(32, 257, 16))  # of integers
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
    instruction(
        "9.7.15 wgmma.mma_async",
        "wgmma.mma_async.sync.aligned.SHAPE{.satfinite}.s32.A.B <d>, <a>, b:u64, c:pred",
        _wgmma,
        SHAPE=dict.fromkeys((f"m64n{n}k32" for n in WHOLE_COLUMNS), ""),
        A=dict.fromkeys(BYTES["S"], ""),
        B=dict.fromkeys(BYTES["S"], ""),
    ),
    instruction(
        "9.7.15 wgmma.mma_async",
        f"wgmma.mma_async.sync.aligned.SHAPE.D.A.B {WGMMA_OPERANDS}",
        _wgmma,
        SHAPE=dict.fromkeys((f"m64n{n}k32" for n in COLUMNS), ""),
        D=dict.fromkeys(("f32", "f16"), ""),
        A=dict.fromkeys(BYTES["F"], ""),
        B=dict.fromkeys(BYTES["F"], ""),
    ),
    instruction("9.7.15 wgmma.fence", "wgmma.fence.sync.aligned", "wgmma_fence(self, {site}); fences_++;"),
    instruction("9.7.15 wgmma.commit_group", "wgmma.commit_group.sync.aligned", "wgmma_commit(self, {site});"),
    instruction(
        "9.7.15 wgmma.wait_group", "wgmma.wait_group.sync.aligned a:u32", "waited_ = wgmma_wait(self, {a}, {site});"
    ),
]

INSTRUCTIONS: list[Instruction] = [
    *with_header("tensor_core.hpp", MATRIX),
    *with_header("hopper.hpp", [*MBARRIER, *COPIES, *WGMMA]),
]
