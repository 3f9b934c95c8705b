"""Short pieces of PTX for the instructions that touch memory or other threads, each with what every thread must answer.

A snippet runs in one block of 64 threads, in order. It finds its thread number in %r0 and its input, a 64-bit word, in
%rd0, and leaves its answers in %rd10 and %rd11. Shared memory has 4096 bytes.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.simulate import run_ptx
from kernels.cuda import Argument

THREADS = 64

HEAD = """
.version 8.5
.target sm_90a
.address_size 64
.const .align 8 .b64 constants[4] = {11, 22, 33, 44};
.global .align 8 .b64 variable[64];
.global .align 1 .b8 message[6] = {97, 32, 60, 32, 98, 0};
.extern .shared .align 16 .b8 memory[];
"""

KERNEL = """
.visible .entry NAME(.param .u64 out_parameter, .param .u64 given_parameter)
{
.reg .pred %p<20>;
.reg .b16 %rs<20>;
.reg .b32 %r<60>;
.reg .b64 %rd<60>;
.reg .f32 %f<20>;
.reg .f64 %fd<20>;
.reg .b128 %q<4>;
.local .align 16 .b8 depot[64];
mov.u32 %r0, %tid.x;
ld.param.u64 %rd1, [out_parameter];
ld.param.u64 %rd2, [given_parameter];
mul.wide.u32 %rd3, %r0, 8;
add.u64 %rd1, %rd1, %rd3;
add.u64 %rd2, %rd2, %rd3;
LOAD
BODY
STORE
ret;
}
"""


@dataclass(frozen=True)
class Snippet:
    """`answer(thread, given)` is (%rd10, %rd11) of that thread; `error` the kind of the report where it must fail."""

    body: str
    answer: Callable[[int, list[int]], tuple[int, ...]] = lambda t, given: (0,)
    error: str = ""


def snippet_ptx(bodies: dict[str, str]) -> str:
    """One module with a kernel for each body. A body that stores for itself mentions %rd1."""
    text = HEAD
    for name, body in bodies.items():
        own = "%rd1+" in body
        load = "" if own else "ld.global.b64 %rd0, [%rd2];\nmov.b64 %rd10, 0;\nmov.b64 %rd11, 0;"
        store = "" if own else f"st.global.b64 [%rd1], %rd10;\nst.global.b64 [%rd1+{8 * THREADS}], %rd11;"
        parts = {"NAME": name, "LOAD": load, "BODY": body, "STORE": store}
        kernel = KERNEL
        for key, part in parts.items():
            kernel = kernel.replace(key, part)
        text += kernel
    return text


def launch(ptx: str, symbol: str, threads: int, out: torch.Tensor, given: torch.Tensor, **options) -> None:
    arguments = [
        Argument("out", struct.pack("<Q", out.data_ptr()), (out,)),
        Argument("given", struct.pack("<Q", given.data_ptr()), (given,), const=True),
    ]
    run_ptx(ptx, symbol, (1, 1, 1), (threads, 1, 1), 4096, arguments, **options)


SNIPPETS: dict[str, Snippet] = {}


def add(name: str, body: str, answer=lambda t, given: (0,), error: str = "") -> None:
    assert name not in SNIPPETS
    SNIPPETS[name] = Snippet(body, answer, error)


WARP = 32
FULL = 0xFFFFFFFF
U32 = 0xFFFFFFFF
U64 = 0xFFFFFFFFFFFFFFFF


def lane(t: int) -> int:
    return t % WARP


def low(word: int) -> int:
    return word & U32


# --- moves, special registers, address spaces ------------------------------------------------------------------------

add(
    "move_vectors",
    """mov.b64 {%r1, %r2}, %rd0;
    mov.b64 %rd10, {%r2, %r1};
    mov.b32 {%rs1, %rs2}, %r1;
    mov.b32 %r3, {%rs2, %rs1};
    cvt.u64.u32 %rd11, %r3;""",
    lambda t, g: (g[t] >> 32 | low(g[t]) << 32, (g[t] & 0xFFFF) << 16 | g[t] >> 16 & 0xFFFF),
)
add(
    "move_kinds",
    """mov.u16 %rs1, 7; mov.s16 %rs2, -1; mov.b16 %rs3, %rs2; cvt.u64.u16 %rd10, %rs3;
    mov.f32 %f1, 0f3F800000; mov.b32 %r1, %f1; mov.f64 %fd1, 0d4000000000000000; mov.b64 %rd5, %fd1;
    shr.u64 %rd5, %rd5, 32; cvt.u64.u32 %rd6, %r1; xor.b64 %rd11, %rd5, %rd6;
    setp.eq.u32 %p1, %r0, 3; mov.pred %p2, %p1; @%p2 mov.u64 %rd10, 5; @!%p2 mov.s64 %rd10, -6;
    mov.b128 %q1, {%rd10, %rd11}; mov.b128 {%rd10, %rd12}, %q1;""",
    lambda t, g: (5 if t == 3 else U64 - 5, 0x3F800000 ^ 0x40000000),
)
add(
    "special_registers",
    """mov.u32 %r1, %laneid; mov.u32 %r2, %warpid; mov.u32 %r3, %ntid.x; mov.u32 %r4, %nctaid.x;
    mov.u32 %r5, %ctaid.y;
    mad.lo.s32 %r6, %r2, 1000, %r1; mad.lo.s32 %r6, %r3, 100000, %r6; add.s32 %r6, %r6, %r4; add.s32 %r6, %r6, %r5;
    cvt.u64.u32 %rd10, %r6;
    mov.u32 %r7, %lanemask_lt; mov.u32 %r8, %lanemask_ge; xor.b32 %r9, %r7, %r8; mov.u32 %r10, %lanemask_eq;
    mov.u32 %r11, %lanemask_le; mov.u32 %r12, %lanemask_gt; and.b32 %r13, %r11, %r12; or.b32 %r13, %r13, %r10;
    cvt.u64.u32 %rd11, %r9; cvt.u64.u32 %rd12, %r13; shl.b64 %rd12, %rd12, 32; or.b64 %rd11, %rd11, %rd12;""",
    lambda t, g: (6400000 + t // 32 * 1000 + lane(t) + 1, FULL | (1 << lane(t)) << 32),
)
add(  # as on a card: one of many multiprocessors, none of the first grids, nanoseconds since 1970
    "as_on_a_card",
    """mov.u32 %r1, %nsmid; mov.u32 %r2, %smid; setp.lt.u32 %p1, %r2, %r1; mov.u64 %rd4, %gridid;
    setp.ne.u64 %p2, %rd4, 0; and.pred %p1, %p1, %p2; mov.u64 %rd5, %globaltimer;
    setp.gt.u64 %p3, %rd5, 1700000000000000000; and.pred %p1, %p1, %p3; selp.u64 %rd10, 1, 0, %p1;
    cvt.u64.u32 %rd11, %r1;""",
    lambda t, g: (1, 132),
)
add(
    "address_spaces",
    """mov.u64 %rd4, memory; cvta.shared.u64 %rd5, %rd4; cvta.to.shared.u64 %rd6, %rd5; setp.eq.u64 %p1, %rd4, %rd6;
    isspacep.shared %p2, %rd5; isspacep.global %p3, %rd1; and.pred %p1, %p1, %p2; and.pred %p1, %p1, %p3;
    mov.u64 %rd7, depot; cvta.local.u64 %rd8, %rd7; cvta.to.local.u64 %rd8, %rd8; isspacep.local %p4, %rd8;
    mov.u64 %rd9, constants; cvta.const.u64 %rd12, %rd9; isspacep.const %p5, %rd12; and.pred %p1, %p1, %p4;
    and.pred %p1, %p1, %p5;
    isspacep.shared %p6, %rd1; not.pred %p6, %p6; and.pred %p1, %p1, %p6; selp.u64 %rd10, 1, 0, %p1;
    cvta.global.u64 %rd13, %rd2; cvta.to.global.u64 %rd13, %rd13; ld.global.u64 %rd11, [%rd13];""",
    lambda t, g: (1, g[t]),
)
add(
    "local_const_param",
    """st.local.u64 [depot+8], %rd0; mov.u64 %rd4, depot; ld.local.u64 %rd10, [%rd4+8]; ld.u64 %rd5, [%rd4+8];
    add.u64 %rd10, %rd10, %rd5; st.u64 [%rd4+16], %rd0; ld.local.u64 %rd5, [depot+16]; add.u64 %rd10, %rd10, %rd5;
    ld.const.u64 %rd11, [constants+16]; mov.u64 %rd6, constants; ld.u64 %rd7, [%rd6+8]; add.u64 %rd11, %rd11, %rd7;
    mov.b64 %rd8, given_parameter; ld.param.u64 %rd9, [%rd8]; add.u64 %rd9, %rd9, %rd3; setp.eq.u64 %p1, %rd9, %rd2;
    @%p1 add.u64 %rd11, %rd11, 1000;""",
    lambda t, g: (3 * g[t] & U64, 33 + 22 + 1000),
)
add(
    "module_variable",
    """mov.u64 %rd4, variable; add.u64 %rd4, %rd4, %rd3; st.global.u64 [%rd4], %rd0; ld.global.u64 %rd10, [%rd4];
    ld.global.u8 %r1, [message]; cvt.u64.u32 %rd11, %r1;""",
    lambda t, g: (g[t], 97),
)

# --- loads and stores: each type and vector through shared and global memory -----------------------------------------

SHARED = "mul.lo.u32 %r50, %r0, 32; mov.u32 %r51, memory; add.u32 %r50, %r50, %r51;\n"


def signed(value: int, bits: int) -> int:
    """Sign-extended to 64 bits, as raw bits."""
    value &= (1 << bits) - 1
    return value | (U64 ^ (1 << bits) - 1) if value >> (bits - 1) else value


for kind, answer in {
    "u8": lambda w: w & 0xFF,
    "s8": lambda w: signed(w, 8),
    "u16": lambda w: w & 0xFFFF,
    "s16": lambda w: signed(w, 16),
    "u32": low,
    "s32": lambda w: signed(w, 32),
    "b64": lambda w: w,
}.items():
    add(
        f"load_store_{kind}",
        SHARED
        + f"""st.shared.b64 [%r50+8], %rd0; ld.shared.{kind} %rd10, [%r50+8];
        ld.volatile.global.{kind} %rd11, [%rd2]; st.shared.{kind} [%r50], %rd11; ld.shared.{kind} %rd12, [%r50];
        setp.ne.b64 %p1, %rd11, %rd12; @%p1 mov.u64 %rd11, 999;""",
        lambda t, g, answer=answer: (answer(g[t]), answer(g[t])),
    )
add(
    "load_store_vectors",
    SHARED
    + """mov.b64 {%r1, %r2}, %rd0; mov.b32 {%rs1, %rs2}, %r1; mov.b32 {%rs3, %rs4}, %r2;
    st.shared.v4.b16 [%r50], {%rs1, %rs2, %rs3, %rs4}; ld.shared.v2.b32 {%r3, %r4}, [%r50]; mov.b64 %rd10, {%r3, %r4};
    st.shared.v2.b64 [%r50+16], {%rd0, %rd10}; ld.shared.v4.b32 {%r5, %r6, %r7, %r8}, [%r50+16];
    mov.b64 %rd5, {%r5, %r6}; mov.b64 %rd6, {%r7, %r8}; add.u64 %rd11, %rd5, %rd6;""",
    lambda t, g: (g[t], 2 * g[t] & U64),
)
add(
    "load_store_floats",
    SHARED
    + """mov.b64 {%r1, %r2}, %rd0; mov.b32 %f1, %r1; mov.b64 %fd1, %rd0; st.shared.f32 [%r50], %f1;
    st.shared.f64 [%r50+8], %fd1; ld.shared.f32 %f2, [%r50]; ld.shared.f64 %fd2, [%r50+8]; mov.b32 %r3, %f2;
    cvt.u64.u32 %rd10, %r3; mov.b64 %rd11, %fd2;""",
    lambda t, g: (low(g[t]), g[t]),
)
add(
    "load_hints",
    """ld.global.nc.L1::no_allocate.L2::128B.u64 %rd10, [%rd2]; ld.global.ca.u64 %rd4, [%rd2];
    ld.relaxed.gpu.global.u64 %rd5, [%rd2];
    ld.acquire.sys.global.u64 %rd6, [%rd2]; ld.weak.global.cg.L2::64B.u64 %rd7, [%rd2]; ld.u64 %rd8, [%rd2];
    ld.global.cs.nc.b64 %rd9, [%rd2];
    add.u64 %rd11, %rd4, %rd5; add.u64 %rd11, %rd11, %rd6; add.u64 %rd11, %rd11, %rd7; add.u64 %rd11, %rd11, %rd8;
    add.u64 %rd11, %rd11, %rd9; prefetch.global.L2 [%rd2]; prefetch.L1 [%rd2];""",
    lambda t, g: (g[t], 6 * g[t] & U64),
)
add(
    "store_kinds",
    """mov.u64 %rd4, variable; add.u64 %rd4, %rd4, %rd3; st.relaxed.gpu.global.u32 [%rd4], 1;
    st.release.gpu.global.u16 [%rd4+4], 2;
    st.volatile.global.u8 [%rd4+6], 3; st.global.wt.L1::no_allocate.u8 [%rd4+7], 4; ld.global.u64 %rd10, [%rd4];
    st.shared::cta.u64 [memory], 5; bar.sync 0; ld.shared::cta.u64 %rd11, [memory];""",
    lambda t, g: (1 | 2 << 32 | 3 << 48 | 4 << 56, 5),
)

# --- warp operations -------------------------------------------------------------------------------------------------


def shuffled(mode: str, source: int, t: int, width: int) -> tuple[int, bool]:
    """The lane read from, within segments of `width` lanes, and whether it lies inside."""
    segment, position = lane(t) // width * width, lane(t) % width
    at = {"up": position - source, "down": position + source, "bfly": position ^ source, "idx": source % width}[mode]
    return (segment + at, True) if 0 <= at < width else (lane(t), False)


for mode, source, width_ in (
    ("up", 3, 32),
    ("down", 5, 32),
    ("bfly", 6, 32),
    ("idx", 9, 32),
    ("up", 2, 8),
    ("down", 1, 16),
    ("idx", 13, 8),
):
    clamp = 0 if mode == "up" else 31
    add(
        f"shuffle_{mode}_{width_}",
        f"""cvt.u32.u64 %r1, %rd0; shfl.sync.{mode}.b32 %r2|%p1, %r1, {source}, {(32 - width_) << 8 | clamp}, -1;
        cvt.u64.u32 %rd10, %r2; selp.u64 %rd11, 1, 0, %p1;""",
        lambda t, g, mode=mode, source=source, w=width_: (
            low(g[t // 32 * 32 + shuffled(mode, source, t, w)[0]]),
            int(shuffled(mode, source, t, w)[1]),
        ),
    )
add(
    "votes",
    """setp.gt.u32 %p1, %r0, 9; vote.sync.all.pred %p2, %p1, -1; vote.sync.any.pred %p3, %p1, -1;
    vote.sync.uni.pred %p4, %p1, -1;
    vote.sync.ballot.b32 %r1, %p1, -1; selp.u32 %r2, 1, 0, %p2; selp.u32 %r3, 2, 0, %p3; selp.u32 %r4, 4, 0, %p4;
    or.b32 %r2, %r2, %r3; or.b32 %r2, %r2, %r4; cvt.u64.u32 %rd10, %r2; cvt.u64.u32 %rd11, %r1;
    activemask.b32 %r5; setp.eq.u32 %p5, %r5, 0xffffffff; @!%p5 mov.u64 %rd11, 77;""",
    lambda t, g: (2, FULL << 10 & FULL) if t < 32 else (7, FULL),
)
add(
    "active_mask_of_a_branch",
    """and.b32 %r1, %r0, 3; setp.ne.u32 %p1, %r1, 0; @%p1 bra OTHERS; activemask.b32 %r2; cvt.u64.u32 %rd10, %r2;
    OTHERS: bar.warp.sync 0xffffffff;""",
    lambda t, g: (0x11111111 if t % 4 == 0 else 0,),
)
add(
    "matches",
    """shr.u32 %r1, %r0, 2; cvt.u64.u32 %rd4, %r1; match.any.sync.b32 %r2, %r1, -1; match.any.sync.b64 %r3, %rd4, -1;
    setp.ne.u32 %p3, %r2, %r3; cvt.u64.u32 %rd10, %r2; @%p3 mov.u64 %rd10, 0; match.all.sync.b32 %r4|%p1, %r1, -1;
    shr.u64 %rd4, %rd4, 3; match.all.sync.b64 %r5|%p2, %rd4, -1; selp.u32 %r6, 1, 0, %p1; selp.u32 %r7, 2, 0, %p2;
    add.u32 %r6, %r6, %r7; add.u32 %r6, %r6, %r4; sub.u32 %r5, %r5, 0xffffffff; add.u32 %r6, %r6, %r5;
    cvt.u64.u32 %rd11, %r6;""",
    lambda t, g: (0xF << lane(t) // 4 * 4, 2),
)


def reduced(kind: str, t: int, given: list[int]) -> int:
    words = [low(w) for w in given[t // 32 * 32 : t // 32 * 32 + 32]]
    if kind.endswith("s32"):
        words = [w - (1 << 32) if w >> 31 else w for w in words]
    result = words[0]
    for w in words[1:]:
        name = kind.split(".")[0]
        result = {
            "add": result + w,
            "min": min(result, w),
            "max": max(result, w),
            "and": result & w,
            "or": result | w,
            "xor": result ^ w,
        }[name]
    return low(result)


for kind in ("add.u32", "add.s32", "min.u32", "min.s32", "max.u32", "max.s32", "and.b32", "or.b32", "xor.b32"):
    add(
        f"redux_{kind.replace('.', '_')}",
        f"cvt.u32.u64 %r1, %rd0; redux.sync.{kind} %r2, %r1, -1; cvt.u64.u32 %rd10, %r2;",
        lambda t, g, kind=kind: (reduced(kind, t, g),),
    )
add(
    "elect",
    """elect.sync %r1|%p1, 0xffffffff; cvt.u64.u32 %rd10, %r1; selp.u64 %rd11, 1, 0, %p1; and.b32 %r2, %r0, 31;
    setp.lt.u32 %p2, %r2, 4; @%p2 bra DONE; elect.sync _|%p3, 0xfffffff0; @%p3 mov.u64 %rd10, 44;
    DONE: bar.warp.sync -1;""",
    lambda t, g: (44 if lane(t) == 4 else 0, int(lane(t) == 0)),
)

# --- barriers --------------------------------------------------------------------------------------------------------

EXCHANGE = """mul.lo.u32 %r1, %r0, 8; mov.u32 %r2, memory; add.u32 %r3, %r1, %r2; st.shared.b64 [%r3], %rd0;
BARRIER
xor.b32 %r4, %r1, 504; add.u32 %r4, %r4, %r2; ld.shared.b64 %rd10, [%r4];"""
for name in ("bar", "bar.cta", "barrier", "barrier.cta"):
    word = name.replace(".", "_")
    end = ".aligned" if name.startswith("barrier") else ""
    for suffix, operands in (("", "1"), ("_counted", "2, 64")):
        add(
            f"{word}_sync{suffix}",
            EXCHANGE.replace("BARRIER", f"{name}.sync{end} {operands};"),
            lambda t, g: (g[63 - t],),
        )
    for suffix, operands in (("", "3"), ("_counted", "3, 64")):
        add(
            f"{word}_red{suffix}",
            f"""setp.lt.u32 %p1, %r0, 10; {name}.red.popc{end}.u32 %r1, {operands}, %p1;
    {name}.red.and{end}.pred %p2, {operands}, %p1;
            {name}.red.or{end}.pred %p3, {operands}, %p1; {name}.red.and{end}.pred %p4, {operands}, !%p5;
            cvt.u64.u32 %rd10, %r1; selp.u32 %r2, 1, 0, %p2; selp.u32 %r3, 2, 0, %p3; selp.u32 %r4, 4, 0, %p4;
            or.b32 %r2, %r2, %r3; or.b32 %r2, %r2, %r4; cvt.u64.u32 %rd11, %r2;""",
            lambda t, g: (10, 6),
        )
    # The second warp writes and only announces it; the first warp waits.
    add(
        f"{word}_arrive",
        f"""mul.lo.u32 %r1, %r0, 8; mov.u32 %r2, memory; add.u32 %r3, %r1, %r2; setp.lt.u32 %p1, %r0, 32;
    @%p1 bra WAIT;
        st.shared.b64 [%r3+-256], %rd0; {name}.arrive{end} 5, 64; bra DONE;
        WAIT: {name}.sync{end} 5, 64; ld.shared.b64 %rd10, [%r3]; DONE:""",
        lambda t, g: (g[t + 32] if t < 32 else 0,),
    )
add(
    "warp_sync_orders_memory",
    """mul.lo.u32 %r1, %r0, 8; mov.u32 %r2, memory; add.u32 %r3, %r1, %r2; st.shared.b64 [%r3], %rd0;
    bar.warp.sync 0xffffffff;
    xor.b32 %r4, %r1, 8; add.u32 %r4, %r4, %r2; ld.shared.b64 %rd10, [%r4];""",
    lambda t, g: (g[t ^ 1],),
)
add(
    "fences_change_nothing",
    """membar.cta; membar.gl; membar.sys; fence.sc.gpu; fence.acq_rel.cta; fence.acq_rel.sys; nanosleep.u32 100;
    griddepcontrol.wait; griddepcontrol.launch_dependents; mov.u64 %rd10, %rd0;""",
    lambda t, g: (g[t],),
)

# --- atomics: all threads on one word; in order, thread t finds what the t before it left ----------------------------


def folded(operation: str, bits: int, start: int, values: list[int], is_signed: bool) -> int:
    """The word after these operations."""

    def view(x: int) -> int:
        x &= (1 << bits) - 1
        return x - (1 << bits) if is_signed and x >> (bits - 1) else x

    operations: dict[str, Callable[[int, int], int]] = {
        "add": lambda w, v: view(w + v),
        "min": min,
        "max": max,
        "and": lambda w, v: w & v,
        "or": lambda w, v: w | v,
        "xor": lambda w, v: w ^ v,
        "inc": lambda w, v: 0 if w >= v else w + 1,
        "dec": lambda w, v: v if w == 0 or w > v else w - 1,
        "exch": lambda w, v: v,
    }
    word = view(start)
    for value in values:
        word = operations[operation](word, view(value))
    return word & ((1 << bits) - 1)


START = 1000
ATOMICS = [
    *(("add", k) for k in ("u32", "s32", "u64")),
    *((name, k) for name in ("min", "max") for k in ("u32", "s32", "u64", "s64")),
    *((name, k) for name in ("and", "or", "xor", "exch") for k in ("b32", "b64")),
    *(("inc", "u32"), ("dec", "u32")),
]
SET_UP = f"""mov.u64 %rd5, memory; setp.ne.u32 %p1, %r0, 0; @!%p1 st.shared.u64 [%rd5], {START}; bar.sync 0;
cvt.u32.u64 %r1, %rd0; """
for operation, kind in ATOMICS:
    bits, value, register = (
        int(kind[1:]),
        "%r1" if kind.endswith("32") else "%rd0",
        "%r2" if kind.endswith("32") else "%rd6",
    )
    widen = "cvt.u64.u32 %rd10, %r2;" if bits == 32 else "mov.u64 %rd10, %rd6;"
    after = "bar.sync 0; ld.shared.u64 %rd11, [%rd5];"
    add(
        f"atom_{operation}_{kind}",
        f"{SET_UP} atom.shared.{operation}.{kind} {register}, [%rd5], {value}; {widen} {after}",
        lambda t, g, o=operation, b=bits, s=kind[0] == "s": (
            folded(o, b, START, g[:t], s),
            folded(o, b, START, g[:THREADS], s),
        ),
    )
    if operation != "exch":
        add(
            f"red_{operation}_{kind}",
            f"{SET_UP} cvta.shared.u64 %rd6, %rd5; red.relaxed.gpu.{operation}.{kind} [%rd6], {value}; {after}",
            lambda t, g, o=operation, b=bits, s=kind[0] == "s": (0, folded(o, b, START, g[:THREADS], s)),
        )
for kind, register, one in (("f32", "%f1", "0f3F800000"), ("f64", "%fd1", "0d3FF0000000000000")):
    bits = int(kind[1:])
    read = "ld.shared.u32 %r3, [%rd5]; cvt.u64.u32 %rd11, %r3;" if bits == 32 else "ld.shared.u64 %rd11, [%rd5];"
    sixty_four = 0x42800000 if bits == 32 else 0x4050000000000000
    clear = "mov.u64 %rd5, memory; setp.ne.u32 %p1, %r0, 0; @!%p1 st.shared.u64 [%rd5], 0; bar.sync 0;"
    add(
        f"atom_add_{kind}",
        f"{clear} atom.shared.add.{kind} {register}, [%rd5], {one}; bar.sync 0; {read}",
        lambda t, g, n=sixty_four: (0, n),
    )
    add(
        f"red_add_{kind}",
        f"{clear} red.shared.add.{kind} [%rd5], {one}; bar.sync 0; {read}",
        lambda t, g, n=sixty_four: (0, n),
    )
for kind, unit, sum_ in (("f16", 0x3C00, 0x5400), ("bf16", 0x3F80, 0x4280)):
    clear = "mov.u64 %rd5, memory; setp.ne.u32 %p1, %r0, 0; @!%p1 st.shared.u64 [%rd5], 0; bar.sync 0;"
    for suffix, packed, total in (("", unit, sum_), ("x2", unit | unit << 16, sum_ | sum_ << 16)):
        register, stored = ("%rs1", "u16") if not suffix else ("%r1", "u32")
        move = f"mov.b{stored[1:]} {register}, {packed};"
        old, read = register.replace("1", "2"), f"ld.shared.{stored} %rd11, [%rd5];"
        add(
            f"atom_add_{kind}{suffix}",
            f"{clear} {move} atom.shared.add.noftz.{kind}{suffix} {old}, [%rd5], {register}; bar.sync 0; {read}",
            lambda t, g, n=total: (0, n),
        )
        add(
            f"red_add_{kind}{suffix}",
            f"{clear} {move} red.shared.add.noftz.{kind}{suffix} [%rd5], {register}; bar.sync 0; {read}",
            lambda t, g, n=total: (0, n),
        )
add(
    "compare_and_swap",
    f"""{SET_UP} atom.acq_rel.gpu.shared.cas.b32 %r2, [%rd5], {START}, %r0; cvt.u64.u32 %rd10, %r2; bar.sync 0;
    atom.shared.cas.b64 %rd6, [%rd5], 0, 5; atom.shared.cas.b16 %rs1, [%rd5], 5, 6; bar.sync 0;
    ld.shared.u64 %rd11, [%rd5];""",
    lambda t, g: (START if t == 0 else 0, 6),
)

# --- asynchronous copies ---------------------------------------------------------------------------------------------

COPY = """mul.lo.u32 %r1, %r0, 16; mov.u32 %r2, memory; add.u32 %r1, %r1, %r2;
    and.b64 %rd4, %rd3, 0xfffffffffffffff0; sub.u64 %rd5, %rd2, %rd3; add.u64 %rd5, %rd5, %rd4;
"""  # %rd5: the pair of words that this thread's belongs to
add(
    "copy_16",
    f"""{COPY} cp.async.cg.shared.global [%r1], [%rd5], 16; cp.async.commit_group; cp.async.wait_group 0;
    ld.shared.v2.b64 {{%rd10, %rd11}}, [%r1];""",
    lambda t, g: (g[t // 2 * 2], g[t // 2 * 2 + 1]),
)
add(
    "copy_with_zeros",
    f"""{COPY} cp.async.ca.shared.global.L2::128B [%r1], [%rd2], 8, 4;
    cp.async.ca.shared::cta.global [%r1+8], [%rd2], 8, 0; cp.async.wait_all;
    ld.shared.v2.b64 {{%rd10, %rd11}}, [%r1];""",
    lambda t, g: (low(g[t]), 0),
)
add(
    "copy_in_groups",
    f"""{COPY} cp.async.ca.shared.global [%r1], [%rd2], 4; cp.async.commit_group;
    cp.async.ca.shared.global [%r1+8], [%rd2], 8;
    cp.async.commit_group; cp.async.wait_group 1; ld.shared.u32 %r3, [%r1]; cvt.u64.u32 %rd10, %r3;
    cp.async.wait_group 0;
    ld.shared.u64 %rd11, [%r1+8];""",
    lambda t, g: (low(g[t]), g[t]),
)
add(
    "copy_is_not_there_before_the_wait",
    f"""{COPY} cp.async.ca.shared.global [%r1], [%rd2], 8; cp.async.commit_group; cp.async.wait_group 1;
    ld.shared.u64 %rd10, [%r1];""",
    error="unfinished copy",
)

# --- control ---------------------------------------------------------------------------------------------------------

add(
    "branches",
    """mov.u64 %rd10, 0; LOOP: add.u64 %rd10, %rd10, 2; cvt.u32.u64 %r1, %rd10; setp.lt.u32 %p1, %r1, %r0;
    @%p1 bra LOOP;
    { .reg .b32 inner; mov.u32 inner, 5; setp.ne.u32 %p2, inner, 5; @%p2 bra.uni SKIP; mov.u64 %rd11, 9; SKIP: }""",
    lambda t, g: (max(2, t + t % 2), 9),
)
add(
    "branch_table",
    """and.b32 %r1, %r0, 1; TABLE: .branchtargets EVEN, ODD; brx.idx %r1, TABLE; EVEN: mov.u64 %rd10, 100;
    bra.uni DONE;
    ODD: mov.u64 %rd10, 200; DONE:""",
    lambda t, g: (200 if t % 2 else 100,),
)
add("branch_outside_of_its_table", "TABLE: .branchtargets A, B; brx.idx %r0, TABLE; A: B:", error="branch")
add("trap", "setp.ne.u32 %p1, %r0, 3; @%p1 bra DONE; trap; DONE:", error="trap")
add("breakpoint", "setp.ne.u32 %p1, %r0, 3; @%p1 bra DONE; brkpt; DONE:", error="trap")
add("exit", "mov.u64 %rd10, 7; st.global.b64 [%rd1], %rd10; exit;", lambda t, g: (7,))
add("division_by_zero", "div.u32 %r1, 5, %r0; cvt.u64.u32 %rd10, %r1;", error="division by zero")
ASSERT = """{ .param .b64 param0; st.param.b64 [param0], %rd4; .param .b64 param1; st.param.b64 [param1], %rd4;
    .param .b32 param2;
st.param.b32 [param2], 12; .param .b64 param3; st.param.b64 [param3], %rd4; .param .b64 param4;
    st.param.b64 [param4], 1;
CALL __assertfail, (param0, param1, param2, param3, param4); }"""
add("assertion", "mov.u64 %rd4, message; " + ASSERT.replace("CALL", "call.uni"), error="assertion")
add(
    "call_with_a_result",
    "mov.u64 %rd4, message; " + ASSERT.replace("CALL", ".param .b32 retval; call.uni (retval),"),
    error="assertion",
)
