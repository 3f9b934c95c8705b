"""The instructions that the simulator knows: a table, a line each, with chapter and heading of the PTX ISA manual.

What is not here is an error at translation (UnknownInstruction), never a guess. table.py says how a line is written;
arithmetic.hpp, memory.hpp and runtime.hpp have the functions that the C++ calls. tests/bench/simulate holds every line
against a plain formula. Tensor cores and Hopper's copies have a table of their own, instructions_tensor.py.
"""

from __future__ import annotations

from bench.simulate.ptx import BYTES_OF
from bench.simulate.table import Instruction, instruction
from bench.simulate.use import Use

# --- choices that many lines share -----------------------------------------------------------------------------------

INTEGERS = ("u16", "u32", "u64", "s16", "s32", "s64")
WORDS = ("u32", "u64", "s32", "s64")
SIGNED = ("s16", "s32", "s64")
BITS = ("b16", "b32", "b64")
BYTES_UP = ("u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64")
FLUSH = {"": "", "ftz": "flush"}
SATURATE = {"": "", "sat": "saturate"}
HALF = {"f16": "F16", "bf16": "Bf16"}
HALF_PAIR = {"f16x2": "F16", "bf16x2": "Bf16"}
DIRECTED = {"rz": "Toward::Zero", "rm": "Toward::Down", "rp": "Toward::Up"}
TO_INTEGRAL = {"rni": "round_even", "rzi": "round_zero", "rmi": "round_down", "rpi": "round_up"}
ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED_ORDER = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
UNORDERED = {"equ": "==", "neu": "!=", "ltu": "<", "leu": "<=", "gtu": ">", "geu": ">="}
LOGIC = {"and": "&", "or": "|", "xor": "^"}

# --- 9.7.1 integer arithmetic ----------------------------------------------------------------------------------------

INTEGER = [
    instruction("9.7.1 add", "add.T d, a, b", "{a} + {b}", T=INTEGERS),
    instruction("9.7.1 add", "add.sat.s32 d, a, b", "saturate_s32((s64){a} + {b})"),
    instruction("9.7.1 sub", "sub.T d, a, b", "{a} - {b}", T=INTEGERS),
    instruction("9.7.1 sub", "sub.sat.s32 d, a, b", "saturate_s32((s64){a} - {b})"),
    # u16 is widened to int in C++, where the product can overflow: hence the unsigned factor.
    instruction("9.7.1 mul", "mul.lo.T d, a, b", "1u * {a} * {b}", T=INTEGERS),
    instruction("9.7.1 mul", "mul.wide.T d:W, a, b", "({W}){a} * ({W}){b}", T=("u16", "u32", "s16", "s32")),
    instruction("9.7.1 mul", "mul.hi.T d, a, b", "multiply_high<{T}, {W}>({a}, {b})", T=("u16", "u32", "s16", "s32")),
    instruction("9.7.1 mul", "mul.hi.u64 d, a, b", "multiply_high<u64, u128>({a}, {b})"),
    instruction("9.7.1 mul", "mul.hi.s64 d, a, b", "multiply_high<s64, s128>({a}, {b})"),
    instruction("9.7.1 mad", "mad.lo.T d, a, b, c", "1u * {a} * {b} + {c}", T=INTEGERS),
    instruction("9.7.1 mad", "mad.wide.T d:W, a, b, c:W", "({W}){a} * ({W}){b} + {c}", T=("u16", "u32", "s16", "s32")),
    instruction(
        "9.7.1 mad", "mad.hi.T d, a, b, c", "multiply_high<{T}, {W}>({a}, {b}) + {c}", T=("u16", "u32", "s16", "s32")
    ),
    instruction("9.7.1 div", "div.T d, a, b", "divide<{T}>(self, {a}, {b}, {site})", T=INTEGERS),
    instruction("9.7.1 rem", "rem.T d, a, b", "remainder<{T}>(self, {a}, {b}, {site})", T=INTEGERS),
    instruction("9.7.1 abs", "abs.T d, a", "absolute<{T}>({a})", T=SIGNED),
    instruction("9.7.1 neg", "neg.T d, a", "-{a}", T=SIGNED),
    instruction("9.7.1 min", "min.T d, a, b", "smaller<{T}>({a}, {b})", T=INTEGERS),
    instruction("9.7.1 max", "max.T d, a, b", "larger<{T}>({a}, {b})", T=INTEGERS),
    instruction("9.7.1 popc", "popc.T d:u32, a", "count_ones({a})", T=("b32", "b64")),
    instruction("9.7.1 clz", "clz.T d:u32, a", "leading_zeros<{T}>({a})", T=("b32", "b64")),
    instruction("9.7.1 bfind", "bfind.T d:u32, a", "find_bit<{T}>({a})", T=WORDS),
    instruction("9.7.1 bfind", "bfind.shiftamt.T d:u32, a", "find_bit_shift<{T}>({a})", T=WORDS),
    instruction("9.7.1 brev", "brev.T d, a", "reverse_bits<{T}>({a})", T=("b32", "b64")),
    instruction("9.7.1 bfe", "bfe.T d, a, b:u32, c:u32", "extract_bits<{T}>({a}, {b}, {c})", T=WORDS),
    instruction("9.7.1 bfi", "bfi.T d, a, b, c:u32, e:u32", "insert_bits<{T}>({a}, {b}, {c}, {e})", T=("b32", "b64")),
]

# --- 9.7.3 floating-point arithmetic ---------------------------------------------------------------------------------

FLOAT = [
    instruction(
        "9.7.3 add", "add{.rn}.FTZ.SAT.f32 d, a, b", "{SAT}({FTZ}({FTZ}({a}) + {FTZ}({b})))", FTZ=FLUSH, SAT=SATURATE
    ),
    instruction(
        "9.7.3 add",
        "add.RND.FTZ.f32 d, a, b",
        "{FTZ}(add_toward<{RND}>({FTZ}({a}), {FTZ}({b})))",
        RND=DIRECTED,
        FTZ=FLUSH,
    ),
    instruction("9.7.3 add", "add{.rn}.f64 d, a, b", "{a} + {b}"),
    instruction(
        "9.7.3 sub", "sub{.rn}.FTZ.SAT.f32 d, a, b", "{SAT}({FTZ}({FTZ}({a}) - {FTZ}({b})))", FTZ=FLUSH, SAT=SATURATE
    ),
    instruction(
        "9.7.3 sub",
        "sub.RND.FTZ.f32 d, a, b",
        "{FTZ}(add_toward<{RND}>({FTZ}({a}), -{FTZ}({b})))",
        RND=DIRECTED,
        FTZ=FLUSH,
    ),
    instruction("9.7.3 sub", "sub{.rn}.f64 d, a, b", "{a} - {b}"),
    instruction(
        "9.7.3 mul", "mul{.rn}.FTZ.SAT.f32 d, a, b", "{SAT}({FTZ}({FTZ}({a}) * {FTZ}({b})))", FTZ=FLUSH, SAT=SATURATE
    ),
    instruction(
        "9.7.3 mul",
        "mul.RND.FTZ.f32 d, a, b",
        "{FTZ}(multiply_toward<{RND}>({FTZ}({a}), {FTZ}({b})))",
        RND=DIRECTED,
        FTZ=FLUSH,
    ),
    instruction("9.7.3 mul", "mul{.rn}.f64 d, a, b", "{a} * {b}"),
    instruction(
        "9.7.3 fma",
        "fma.rn.FTZ.SAT.f32 d, a, b, c",
        "{SAT}({FTZ}(__builtin_fmaf({FTZ}({a}), {FTZ}({b}), {FTZ}({c}))))",
        FTZ=FLUSH,
        SAT=SATURATE,
    ),
    instruction(
        "9.7.3 fma",
        "fma.RND.FTZ.f32 d, a, b, c",
        "{FTZ}(fma_toward<{RND}>({FTZ}({a}), {FTZ}({b}), {FTZ}({c})))",
        RND=DIRECTED,
        FTZ=FLUSH,
    ),
    instruction("9.7.3 fma", "fma.rn.f64 d, a, b, c", "__builtin_fma({a}, {b}, {c})"),
    instruction(
        "9.7.3 mad", "mad.rn.FTZ.f32 d, a, b, c", "{FTZ}(__builtin_fmaf({FTZ}({a}), {FTZ}({b}), {FTZ}({c})))", FTZ=FLUSH
    ),
    # .approx and .full promise 2 units; the correctly rounded quotient is within them.
    instruction(
        "9.7.3 div",
        "div.HOW.FTZ.f32 d, a, b",
        "{FTZ}({FTZ}({a}) / {FTZ}({b}))",
        HOW={"rn": "", "approx": "", "full": ""},
        FTZ=FLUSH,
    ),
    instruction("9.7.3 div", "div.rn.f64 d, a, b", "{a} / {b}"),
    instruction("9.7.3 abs", "abs.FTZ.f32 d, a", "{FTZ}(__builtin_fabsf({a}))", FTZ=FLUSH),
    instruction("9.7.3 abs", "abs.f64 d, a", "__builtin_fabs({a})"),
    instruction("9.7.3 neg", "neg.FTZ.f32 d, a", "{FTZ}(-{a})", FTZ=FLUSH),
    instruction("9.7.3 neg", "neg.f64 d, a", "-{a}"),
    instruction(
        "9.7.3 min",
        "min.FTZ.NAN.f32 d, a, b",
        "minimum{NAN}({FTZ}({a}), {FTZ}({b}))",
        FTZ=FLUSH,
        NAN={"": "", "NaN": "_nan"},
    ),
    instruction("9.7.3 min", "min.f64 d, a, b", "minimum({a}, {b})"),
    instruction(
        "9.7.3 max",
        "max.FTZ.NAN.f32 d, a, b",
        "maximum{NAN}({FTZ}({a}), {FTZ}({b}))",
        FTZ=FLUSH,
        NAN={"": "", "NaN": "_nan"},
    ),
    instruction("9.7.3 max", "max.f64 d, a, b", "maximum({a}, {b})"),
    instruction(
        "9.7.3 rcp", "rcp.HOW.FTZ.f32 d, a", "{FTZ}(1.0f / {FTZ}({a}))", HOW={"rn": "", "approx": ""}, FTZ=FLUSH
    ),
    instruction("9.7.3 rcp", "rcp.rn.f64 d, a", "1.0 / {a}"),
    instruction("9.7.3 rcp.approx.ftz.f64", "rcp.approx.ftz.f64 d, a", "1.0 / {a}"),
    instruction(
        "9.7.3 sqrt",
        "sqrt.HOW.FTZ.f32 d, a",
        "{FTZ}(__builtin_sqrtf({FTZ}({a})))",
        HOW={"rn": "", "approx": ""},
        FTZ=FLUSH,
    ),
    instruction("9.7.3 sqrt", "sqrt.rn.f64 d, a", "__builtin_sqrt({a})"),
    instruction(
        "9.7.3 rsqrt",
        "rsqrt.approx.FTZ.f32 d, a",
        "{FTZ}((f32)(1.0 / __builtin_sqrt((f64){FTZ}({a}))))",
        FTZ=FLUSH,
    ),
    instruction("9.7.3 rsqrt.approx.ftz.f64", "rsqrt.approx.ftz.f64 d, a", "1.0 / __builtin_sqrt({a})"),
    instruction("9.7.3 sin", "sin.approx.FTZ.f32 d, a", "{FTZ}(__builtin_sinf({FTZ}({a})))", FTZ=FLUSH),
    instruction("9.7.3 cos", "cos.approx.FTZ.f32 d, a", "{FTZ}(__builtin_cosf({FTZ}({a})))", FTZ=FLUSH),
    instruction("9.7.3 lg2", "lg2.approx.FTZ.f32 d, a", "{FTZ}(__builtin_log2f({FTZ}({a})))", FTZ=FLUSH),
    instruction("9.7.3 ex2", "ex2.approx.FTZ.f32 d, a", "{FTZ}(__builtin_exp2f({FTZ}({a})))", FTZ=FLUSH),
    instruction("9.7.3 tanh", "tanh.approx.f32 d, a", "tanh_approx({a})"),
    instruction(
        "9.7.3 testp",
        "testp.KIND.T p:pred, a",
        "{KIND}({a})",
        KIND={
            "finite": "__builtin_isfinite",
            "infinite": "__builtin_isinf",
            "number": "!is_nan",
            "notanumber": "is_nan",
            "normal": "__builtin_isnormal",
        },
        T=("f32", "f64"),
    ),
    instruction("9.7.3 copysign", "copysign.f32 d, a, b", "__builtin_copysignf({b}, {a})"),
    instruction("9.7.3 copysign", "copysign.f64 d, a, b", "__builtin_copysign({b}, {a})"),
]


def _half(section: str, name: str, operands: str, function: str, **modifiers: dict[str, str]) -> list[Instruction]:
    """A line for one half, and one for pairs, which do both halves alike."""
    words = operands.split(", ")[1:]
    one = ", ".join(f"{{{w}}}" for w in words)
    low, high = (", ".join(f"{end}({{{w}}})" for w in words) for end in ("low", "high"))
    call = f"half_{function}<{{H}}>"
    return [
        instruction(section, f"{name}.H {operands}", f"{call}({one})", H=HALF, **modifiers),
        instruction(section, f"{name}.H {operands}", f"pack({call}({low}), {call}({high}))", H=HALF_PAIR, **modifiers),
    ]


# --- 9.7.4 half precision: the result is rounded once, to the half ---------------------------------------------------

HALVES = [
    *_half("9.7.4 add", "add{.rn}", "d, a, b", "add"),
    *_half("9.7.4 sub", "sub{.rn}", "d, a, b", "sub"),
    *_half("9.7.4 mul", "mul{.rn}", "d, a, b", "mul"),
    *_half("9.7.4 fma", "fma.rn", "d, a, b, c", "fma"),
    *_half("9.7.4 neg", "neg", "d, a", "neg"),
    *_half("9.7.4 abs", "abs", "d, a", "abs"),
    *_half("9.7.4 min", "min.NAN", "d, a, b", "min{NAN}", NAN={"": "", "NaN": "_nan"}),
    *_half("9.7.4 max", "max.NAN", "d, a, b", "max{NAN}", NAN={"": "", "NaN": "_nan"}),
]


# --- 9.7.6 and 9.7.7 comparison and selection ------------------------------------------------------------------------


def _compare(use: Use) -> str:
    """p = (a CMP b) BOOL c, and q = !(a CMP b) BOOL c."""
    a, b = use.value("a"), use.value("b")
    if use.type_of("a") in ("f16", "bf16"):
        half = HALF[use.type_of("a")]
        a, b = f"{half}::decode({a})", f"{half}::decode({b})"
    result = _compared(use, a, b, "f" in use.type_of("a"))
    combine = LOGIC.get(use.modifiers.get("BOOL", ""), "")
    after = f" {combine} {use.value('c')}" if combine else ""
    first = use.assign("p", f"{result}{after}")
    return first + " " + use.assign("q", f"!{result}{after}") if use.text("q") else first


def _compare_pair(use: Use) -> str:
    """p = a CMP b of the lower halves, q of the upper ones; each BOOL c."""
    half = HALF_PAIR[use.modifiers["H"]]
    combine = LOGIC.get(use.modifiers.get("BOOL", ""), "")
    after = f" {combine} {use.value('c')}" if combine else ""
    code = []
    for to, part in (("p", "low"), ("q", "high")):
        a, b = (f"{half}::decode({part}({use.value(name)}))" for name in "ab")
        code.append(use.assign(to, f"{_compared(use, a, b, True)}{after}"))
    return " ".join(code)


def _compared(use: Use, a: str, b: str, floating: bool) -> str:
    """Whether a CMP b, in C++."""
    compare = use.modifiers["CMP"]
    nan = f"(is_nan({a}) || is_nan({b}))"
    if compare == "num":
        return f"!{nan}"
    if compare == "nan":
        return nan
    if compare in UNORDERED:
        return f"({nan} || {a} {UNORDERED[compare]} {b})"
    if compare == "ne" and floating:
        return f"(!{nan} && {a} != {b})"  # the ordered forms are false for NaN, C++'s != is not
    return f"({a} {({**ORDERED, **UNSIGNED_ORDER})[compare]} {b})"


INTEGER_COMPARISONS = {name: "" for name in (*ORDERED, *UNSIGNED_ORDER)}
FLOAT_COMPARISONS = {name: "" for name in (*ORDERED, *UNORDERED, "num", "nan")}
COMPARED_INTEGERS = (*BITS, *INTEGERS)
COMPARED_FLOATS = ("f32", "f64", "f16", "bf16")

COMPARISONS = [
    instruction("9.7.6 setp", "setp.CMP.T p|q, a, b", _compare, CMP=INTEGER_COMPARISONS, T=COMPARED_INTEGERS),
    instruction(
        "9.7.6 setp",
        "setp.CMP.BOOL.T p|q, a, b, c:pred",
        _compare,
        CMP=INTEGER_COMPARISONS,
        BOOL=dict.fromkeys(LOGIC, ""),
        T=COMPARED_INTEGERS,
    ),
    instruction("9.7.6 setp", "setp.CMP{.ftz}.T p|q, a, b", _compare, CMP=FLOAT_COMPARISONS, T=COMPARED_FLOATS),
    instruction(
        "9.7.6 setp",
        "setp.CMP.BOOL{.ftz}.T p|q, a, b, c:pred",
        _compare,
        CMP=FLOAT_COMPARISONS,
        BOOL=dict.fromkeys(LOGIC, ""),
        T=COMPARED_FLOATS,
    ),
    instruction("9.7.6 setp", "setp.CMP{.ftz}.H p|q, a, b", _compare_pair, CMP=FLOAT_COMPARISONS, H=HALF_PAIR),
    instruction(
        "9.7.6 setp",
        "setp.CMP.BOOL{.ftz}.H p|q, a, b, c:pred",
        _compare_pair,
        CMP=FLOAT_COMPARISONS,
        BOOL=dict.fromkeys(LOGIC, ""),
        H=HALF_PAIR,
    ),
    instruction("9.7.6 selp", "selp.T d, a, b, c:pred", "{c} ? {a} : {b}", T=(*BITS, *INTEGERS, "f32", "f64")),
]

# --- 9.7.8 logic and shifts ------------------------------------------------------------------------------------------

LOGICAL = [
    instruction("9.7.8 and", "and.T d, a, b", "{a} & {b}", T=(*BITS, "pred")),
    instruction("9.7.8 or", "or.T d, a, b", "{a} | {b}", T=(*BITS, "pred")),
    instruction("9.7.8 xor", "xor.T d, a, b", "{a} ^ {b}", T=(*BITS, "pred")),
    instruction("9.7.8 not", "not.T d, a", "~{a}", T=BITS),
    instruction("9.7.8 not", "not.pred d, a", "!{a}"),
    instruction("9.7.8 cnot", "cnot.T d, a", "{a} ? 0 : 1", T=BITS),
    instruction("9.7.8 lop3", "lop3.b32 d, a, b, c, e:u32", "logic3({a}, {b}, {c}, {e})"),
    instruction("9.7.8 shf", "shf.l.wrap.b32 d, a, b, c:u32", "funnel_left({a}, {b}, {c} & 31)"),
    instruction("9.7.8 shf", "shf.l.clamp.b32 d, a, b, c:u32", "funnel_left({a}, {b}, smaller<u32>({c}, 32))"),
    instruction("9.7.8 shf", "shf.r.wrap.b32 d, a, b, c:u32", "funnel_right({a}, {b}, {c} & 31)"),
    instruction("9.7.8 shf", "shf.r.clamp.b32 d, a, b, c:u32", "funnel_right({a}, {b}, smaller<u32>({c}, 32))"),
    instruction("9.7.8 shl", "shl.T d, a, b:u32", "shift_left<{T}>({a}, {b})", T=BITS),
    instruction("9.7.8 shr", "shr.T d, a, b:u32", "shift_right<{T}>({a}, {b})", T=(*BITS, *INTEGERS)),
]


# --- 9.7.9 data movement and conversion ------------------------------------------------------------------------------


def _move(use: Use) -> str:
    """mov, also between one register and a vector of narrower ones: the first element is the lowest."""
    into, parts = use.count("d"), use.count("a")
    if into == parts == 1:
        return use.assign_all("d", use.values("a")) + use.follow_sum("d", "a")
    bits = 8 * BYTES_OF[use.type_of("T")]
    if into > 1:
        piece = f"b{bits // into}"
        shifted = [f"v_ >> {i * bits // into}" for i in range(into)]
        return f"u{bits} v_ = {use.values('a')[0]}; " + use.assign_all("d", shifted, piece)
    values = use.values("a", f"b{bits // parts}")
    terms = " | ".join(f"(u{bits})({v}) << {i * bits // parts}" for i, v in enumerate(values))
    return use.assign_all("d", [terms], f"b{bits}")


SPACES = {
    "": "Space::Generic",
    "global": "Space::Global",
    "shared": "Space::Shared",
    "shared::cta": "Space::Shared",
    "shared::cluster": "Space::Cluster",
    "local": "Space::Local",
    "const": "Space::Const",
    "param": "Space::Param",
}
MEMORY_SPACES = {name: SPACES[name] for name in ("", "global", "shared", "shared::cta", "shared::cluster")}
WRITABLE_SPACES = {**MEMORY_SPACES, "local": "Space::Local", "param": "Space::Param"}
LOAD_ORDER = {
    "": "0",
    "weak": "0",
    "volatile": "kStrong | kVolatile",
    "relaxed": "kStrong",
    "acquire": "kStrong | kAcquire",
}
STORE_ORDER = {
    "": "0",
    "weak": "0",
    "volatile": "kStrong | kVolatile",
    "relaxed": "kStrong",
    "release": "kStrong | kRelease",
}
ATOMIC_ORDER = {
    **{"": "0", "relaxed": "0", "acquire": "kAcquire", "release": "kRelease"},
    "acq_rel": "kAcquire | kRelease",
}
SCOPES = {**dict.fromkeys(("", "gpu", "sys"), "0"), "cta": "kBlockScope", "cluster": "kClusterScope"}
# Hints for the caches say nothing about values.
LOAD_CACHE = dict.fromkeys(("", "ca", "cg", "cs", "lu", "cv"), "")
STORE_CACHE = dict.fromkeys(("", "wb", "cg", "cs", "wt"), "")
EVICTION = dict.fromkeys(
    ("", *(f"L1::{x}" for x in ("evict_normal", "evict_unchanged", "evict_first", "evict_last", "no_allocate"))), ""
)
PREFETCH = dict.fromkeys(("", "L2::64B", "L2::128B", "L2::256B"), "")
CACHE_HINT = dict.fromkeys(("", "L2::cache_hint"), "")  # with an operand, the policy
VECTORS = dict.fromkeys(("", "v2", "v4", "v8"), "")
STORED = ("b8", "b16", "b32", "b64", "b128", *BYTES_UP, "f32", "f64")


def _check_vector(use: Use, name: str) -> str:
    """The C++ type of the memory that a vector access touches."""
    element, count = use.ctype(use.type_of("T")), use.count(name)
    wanted = int(use.modifiers["VEC"].lstrip("v") or 1)
    if wanted != count:
        raise ValueError(f"a vector of {count} registers where {wanted} are wanted")
    return element if count == 1 else f"Vector<{element}, {count}>"


def _load(use: Use) -> str:
    memory, count = _check_vector(use, "d"), use.count("d")
    loaded = use.fill(f"load<{{SPACE}}, {memory}>(self, {use.address('a')}, {{ORDER}} | {{SCOPE}}, {{site}})")
    if use.modifiers["SPACE"] == "param":
        loaded = use.load_parameter("a", memory) or loaded  # by name, or through an address
    if count == 1:
        return use.assign_all("d", [loaded])
    return f"{memory} v_ = {loaded}; " + use.assign_all("d", [f"v_.at[{i}]" for i in range(count)])


def _store(use: Use) -> str:
    memory, count = _check_vector(use, "a"), use.count("a")
    values = use.values("a")
    stored = f"({memory}){values[0]}" if count == 1 else f"{memory}{{{{{', '.join(values)}}}}}"
    if use.modifiers["SPACE"] == "param":
        return use.store_parameter("b", memory, stored)
    return (
        use.fill(f"store<{{SPACE}}, {memory}>(self, {use.address('b')}, ")
        + stored
        + use.fill(", {ORDER} | {SCOPE}, {site});")
    )


# cvta changes an address only between shared and generic, since the other spaces are the host's own memory.
CVTA_SPACES = dict.fromkeys(("global", "local", "const", "param"), "")
SHARED_SPACES = dict.fromkeys(("shared", "shared::cta"), "")
TO_F16 = {"rn": "encode", "rz": "encode_down"}

MOVEMENT = [
    instruction("9.7.9 mov", "mov.T <d>, <a>", _move, T=(*BITS, "b128", *INTEGERS, "f32", "f64", "pred")),
    instruction(
        "9.7.9 shfl.sync",
        "shfl.sync.MODE.b32 d|p, a, b:u32, c:u32, e:u32",
        "bool in_ = false; {d=shuffle(self, Shuffle::{MODE}, {a}, {b}, {c}, {e}, &in_, {site})} {p=in_}",
        MODE={"up": "Up", "down": "Down", "bfly": "Butterfly", "idx": "Index"},
    ),
    instruction("9.7.9 prmt", "prmt.b32 d, a, b, c:u32", "permute_bytes({a}, {b}, {c})"),
    instruction(
        "9.7.9 ld",
        "ld.ORDER.SCOPE.SPACE.CACHE.EVICT.HINT.FETCH.VEC.T <d>, [a], c:u64=0",
        _load,
        **{"ORDER": LOAD_ORDER, "SCOPE": SCOPES, "SPACE": SPACES, "CACHE": LOAD_CACHE},
        **{"EVICT": EVICTION, "HINT": CACHE_HINT, "FETCH": PREFETCH, "VEC": VECTORS, "T": STORED},
    ),
    instruction(
        "9.7.9 ld.global.nc",
        "ld.SPACE.CACHE.nc.EVICT.HINT.FETCH.VEC.T <d>, [a], c:u64=0",
        _load,
        **{
            "SPACE": {"global": "Space::Global"},
            "ORDER": {"": "kNonCoherent"},
            "SCOPE": {"": "0"},
            "CACHE": LOAD_CACHE,
        },
        **{"EVICT": EVICTION, "HINT": CACHE_HINT, "FETCH": PREFETCH, "VEC": VECTORS, "T": STORED},
    ),
    instruction(
        "9.7.9 st",
        "st.ORDER.SCOPE.SPACE.CACHE.EVICT.HINT.VEC.T [b], <a>, c:u64=0",
        _store,
        **{"ORDER": STORE_ORDER, "SCOPE": SCOPES, "SPACE": WRITABLE_SPACES, "CACHE": STORE_CACHE},
        **{"EVICT": EVICTION, "HINT": CACHE_HINT, "VEC": VECTORS, "T": STORED},
    ),
    instruction(
        "9.7.9 prefetch",
        "prefetch.SPACE.LEVEL [a]",
        ";",
        SPACE={"": "", "global": "", "local": ""},
        LEVEL=dict.fromkeys(("L1", "L2", "L2::evict_last", "L2::evict_normal"), ""),
    ),
    instruction(
        "9.7.9 isspacep",
        "isspacep.SPACE p:pred, a:u64",
        "{SPACE}(self, {a})",
        SPACE={
            **dict.fromkeys(("shared", "shared::cta"), "is_shared"),
            **{"local": "is_local", "const": "is_constant", "global": "is_global"},
        },
    ),
    instruction("9.7.9 cvta", "cvta.SPACE.u64 d, a", "{a}", SPACE=CVTA_SPACES),
    instruction("9.7.9 cvta", "cvta.to.SPACE.u64 d, a", "{a}", SPACE=CVTA_SPACES),
    instruction("9.7.9 cvta", "cvta.SPACE.u64 d, a", "shared_to_generic(self, {a})", SPACE=SHARED_SPACES),
    instruction("9.7.9 cvta", "cvta.to.SPACE.u64 d, a", "generic_to_shared(self, {a})", SPACE=SHARED_SPACES),
]

CONVERSIONS = [
    instruction("9.7.9 cvt", "cvt.D.S d:D, a:S", "{a}", D=BYTES_UP, S=BYTES_UP),
    instruction("9.7.9 cvt", "cvt.sat.D.S d:D, a:S", "clamp_integer<{D}>({a})", D=BYTES_UP, S=BYTES_UP),
    instruction("9.7.9 cvt", "cvt.rn.D.S d:D, a:S", "({D}){a}", D=("f32", "f64"), S=BYTES_UP),
    instruction("9.7.9 cvt", "cvt.rn.D.S d:D, a:S", "{D:half}::round((f64){a})", D=("f16", "bf16"), S=BYTES_UP),
    instruction(
        "9.7.9 cvt",
        "cvt.RND.FTZ{.sat}.D.f32 d:D, a:f32",
        "to_integer<{D}>({RND}((f64){FTZ}({a})))",
        RND=TO_INTEGRAL,
        FTZ=FLUSH,
        D=BYTES_UP,
    ),
    instruction(
        "9.7.9 cvt", "cvt.RND{.sat}.D.f64 d:D, a:f64", "to_integer<{D}>({RND}({a}))", RND=TO_INTEGRAL, D=BYTES_UP
    ),
    instruction(
        "9.7.9 cvt",
        "cvt.RND{.sat}.D.S d:D, a:S",
        "to_integer<{D}>({RND}((f64){S:half}::decode({a})))",
        RND=TO_INTEGRAL,
        D=BYTES_UP,
        S=("f16", "bf16"),
    ),
    instruction("9.7.9 cvt", "cvt.FTZ.SAT.f32.f32 d, a", "{SAT}({FTZ}({a}))", FTZ=FLUSH, SAT=SATURATE),
    instruction(
        "9.7.9 cvt",
        "cvt.RND.FTZ.SAT.f32.f32 d, a",
        "{SAT}((f32){RND}((f64){FTZ}({a})))",
        RND=TO_INTEGRAL,
        FTZ=FLUSH,
        SAT=SATURATE,
    ),
    instruction("9.7.9 cvt", "cvt.RND.f64.f64 d, a", "{RND}({a})", RND=TO_INTEGRAL),
    instruction("9.7.9 cvt", "cvt.FTZ.f64.f32 d:f64, a:f32", "(f64){FTZ}({a})", FTZ=FLUSH),
    instruction("9.7.9 cvt", "cvt.rn.FTZ.f32.f64 d:f32, a:f64", "{FTZ}((f32){a})", FTZ=FLUSH),
    instruction("9.7.9 cvt", "cvt.RND.f32.f64 d:f32, a:f64", "round_toward<{RND}>({a}, 0.0)", RND=DIRECTED),
    instruction("9.7.9 cvt", "cvt{.ftz}.f32.S d:f32, a:S", "{S:half}::decode({a})", S=("f16", "bf16")),
    instruction("9.7.9 cvt", "cvt.f64.S d:f64, a:S", "(f64){S:half}::decode({a})", S=("f16", "bf16")),
    instruction("9.7.9 cvt", "cvt.RND.D.f32 d:D, a:f32", "{D:half}::{RND}({a})", RND=TO_F16, D=("f16", "bf16")),
    instruction("9.7.9 cvt", "cvt.rn.D.f64 d:D, a:f64", "{D:half}::round({a})", D=("f16", "bf16")),
    *(
        instruction("9.7.9 cvt", "cvt.rn.D.S d:D, a:S", "{D:half}::round((f64){S:half}::decode({a}))", D=(d,), S=(s,))
        for d, s in (("f16", "bf16"), ("bf16", "f16"))
    ),
    # The first source is the upper half.
    instruction(
        "9.7.9 cvt",
        "cvt.RND.H.f32 d:u32, a:f32, b:f32",
        "pack({H}::{RND}({b}), {H}::{RND}({a}))",
        RND=TO_F16,
        H=HALF_PAIR,
    ),
    instruction("9.7.9 cvt", "cvt.rna.tf32.f32 d:u32, a:f32", "tf32_away({a})"),
    instruction("9.7.9 cvt", "cvt.rn.tf32.f32 d:u32, a:f32", "tf32_even({a})"),
]

# --- 9.7.9.25 asynchronous copies ------------------------------------------------------------------------------------

COPY_LEVEL = dict.fromkeys(("L2::64B", "L2::128B", "L2::256B", ""), "")

COPIES = [
    instruction(
        "9.7.9 cp.async",
        "cp.async.CACHE.SPACE.global.FETCH [d], [a], b:u32, c:u32=~0u",
        "copy_async(self, {d:address}, {a:address}, {b}, {c}, {site});",
        CACHE={"ca": "", "cg": ""},
        SPACE=SHARED_SPACES,
        FETCH=COPY_LEVEL,
    ),
    instruction("9.7.9 cp.async.commit_group", "cp.async.commit_group", "copy_async_commit(self);"),
    instruction("9.7.9 cp.async.wait_group", "cp.async.wait_group a:u32", "copy_async_wait(self, {a});"),
    instruction("9.7.9 cp.async.wait_all", "cp.async.wait_all", "copy_async_wait_all(self);"),
]


# --- 9.7.12 control flow ---------------------------------------------------------------------------------------------


def _call(use: Use) -> str:
    """A device function that was not inlined, by name or by address, or one of the four that the driver brings."""
    operands = list(use.statement.operands)
    given, wanted = [], []
    if operands[0].startswith("("):
        wanted = _names(operands.pop(0))
    target, operands = operands[0], operands[1:]
    if operands and operands[0].startswith("("):
        given = _names(operands[0])
    address = use.scope.variable_address
    places = [", ".join([*(f"(u8*)({address(n)})" for n in names), "nullptr"]) for names in (given, wanted)]
    arrays = f"u8* given_[] = {{{places[0]}}}; u8* wanted_[] = {{{places[1]}}}; "
    values = [f"*(const u64*)({address(n)})" for n in given]
    site = use.site
    if target == "__assertfail":
        line = f"*(const u32*)({address(given[2])})"
        return f"assertion_failed(self, (const void*){values[0]}, (const void*){values[1]}, {line}, {site});"
    if target == "vprintf":
        return f"{arrays}print(self, {values[0]}, {values[1]}, wanted_[0], {site});"
    if target == "malloc":
        return f"{arrays}heap_allocate(self, {values[0]}, wanted_[0], {site});"
    if target == "free":
        return f"heap_free(self, {values[0]}, {site});"
    kernel = use.scope.kernel
    if function := kernel.call(target):
        return f"{arrays}{function}(self, parameters, given_, wanted_);"
    if use.scope.find_register(target):
        counts = f"{len(given)}, {len(wanted)}"
        number = kernel.kernel_writer.number
        callee = use.operand(target, "u64")
        return f"{arrays}call_{number}_by_address(self, parameters, {callee}, given_, wanted_, {counts}, {site});"
    raise ValueError(f"a call of {target}, which this file only announces")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.strip("()").split(",") if name.strip()]


def _exit(use: Use) -> str:
    return (
        f"exit_thread(self, {use.site});" if use.scope.kernel.is_function else f"self.exit_site = {use.site}; return;"
    )


CONTROL = [
    instruction("9.7.12 bra", "bra{.uni} a:name", lambda use: use.jump("a")),
    instruction("9.7.12 brx.idx", "brx.idx{.uni} a:u32, b:name", lambda use: use.branch_table("a", "b")),
    instruction("9.7.12 call", "call{.uni} a:name, b:name=, c:name=, e:name=", _call),
    instruction("9.7.12 ret", "ret{.uni}", "self.exit_site = {site}; return;"),
    instruction("9.7.12 exit", "exit", _exit),
]

# --- 9.7.13 parallel synchronisation ---------------------------------------------------------------------------------

BARRIER_VOTES = {"and": "All", "or": "Any"}
VOTES = {"all": "All", "any": "Any", "uni": "Uniform"}


def _barriers() -> list[Instruction]:
    section, lines = "9.7.13 barrier", []
    for name in ("bar{.cta}", "barrier{.cta}"):
        end = "{.aligned}" if name.startswith("barrier") else ""
        sync, arrive = "barrier_sync(self, {a}, {b}, {site});", "barrier_arrive(self, {a}, {b}, {site});"
        lines.append(instruction(section, f"{name}.sync{end} a:u32, b:u32=kWholeBlock", sync))
        lines.append(instruction(section, f"{name}.arrive{end} a:u32, b:u32", arrive))
        for operands, threads in (("a:u32, c:pred", "kWholeBlock"), ("a:u32, b:u32, c:pred", "{b}")):
            count = f"barrier_count(self, {{a}}, {threads}, {{c}}, {{site}})"
            vote = f"barrier_vote(self, {{a}}, {threads}, {{c}}, Vote::{{VOTE}}, {{site}})"
            lines.append(instruction(section, f"{name}.red.popc{end}.u32 d, {operands}", count))
            lines.append(instruction(section, f"{name}.red.VOTE{end}.pred d, {operands}", vote, VOTE=BARRIER_VOTES))
    return lines


ATOMIC_CHOICES = {"ORDER": ATOMIC_ORDER, "SCOPE": SCOPES, "SPACE": MEMORY_SPACES}


def _atomics() -> list[Instruction]:
    """Each operation twice: `atom` answers the old value, `red` does not."""
    lines = []
    operations: list[tuple[str, str, tuple[str, ...]]] = [
        ("add", "o_ + {b}", ("u32", "s32", "u64", "f32", "f64")),
        ("min", "smaller<{T}>(o_, {b})", WORDS),
        ("max", "larger<{T}>(o_, {b})", WORDS),
        ("and", "o_ & {b}", ("b32", "b64")),
        ("or", "o_ | {b}", ("b32", "b64")),
        ("xor", "o_ ^ {b}", ("b32", "b64")),
        ("inc", "o_ >= {b} ? 0 : o_ + 1", ("u32",)),
        ("dec", "o_ == 0 || o_ > {b} ? {b} : o_ - 1", ("u32",)),
        ("exch", "{b}", ("b32", "b64")),
    ]
    body = "atomic<{SPACE}, {T}>(self, {a:address}, ACCESS, [&]({T} o_) -> {T} { return (void)o_, CHANGE; }, {site})"
    locking = body.replace("ACCESS", "{ORDER} | {SCOPE} | kExchange")
    body = body.replace("ACCESS", "{ORDER} | {SCOPE}")
    for name, change, types in operations:
        code = (locking if name == "exch" else body).replace("CHANGE", change)
        choices = {**ATOMIC_CHOICES, "T": types}
        lines.append(instruction("9.7.13 atom", f"atom.ORDER.SCOPE.SPACE.{name}.T d, [a], b", code, **choices))
        if name != "exch":
            lines.append(instruction("9.7.13 red", f"red.ORDER.SCOPE.SPACE.{name}.T [a], b", f"{code};", **choices))
    cas = locking.replace("CHANGE", "o_ == {b} ? {c} : o_")
    swapped = {**ATOMIC_CHOICES, "T": BITS}
    lines.append(instruction("9.7.13 atom", "atom.ORDER.SCOPE.SPACE.cas.T d, [a], b, c", cas, **swapped))
    pair = "pack(half_add<{H}>(low(o_), low({b})), half_add<{H}>(high(o_), high({b})))"
    for half, change, ctype in ((HALF, "half_add<{H}>(o_, {b})", "u16"), (HALF_PAIR, pair, "u32")):
        code = body.replace("{T}", ctype).replace("CHANGE", change)
        choices = {**ATOMIC_CHOICES, "H": half}
        syntax = "ORDER.SCOPE.SPACE.add.noftz.H"
        lines.append(instruction("9.7.13 atom", f"atom.{syntax} d, [a], b", code, **choices))
        lines.append(instruction("9.7.13 red", f"red.{syntax} [a], b", f"{code};", **choices))
    return lines


FENCES = {name: code for name, code in SCOPES.items() if name}
REDUCTIONS = {
    **{"add.u32": "Add", "add.s32": "Add", "min.u32": "MinUnsigned", "min.s32": "MinSigned"},
    **{"max.u32": "MaxUnsigned", "max.s32": "MaxSigned", "and.b32": "And", "or.b32": "Or", "xor.b32": "Xor"},
}

SYNCHRONISATION = [
    *_barriers(),
    instruction("9.7.13 bar.warp.sync", "bar.warp.sync a:u32", "sync_warp(self, {a}, {site});"),
    instruction(
        "9.7.13 membar", "membar.LEVEL", "fence(self, {LEVEL});", LEVEL={"cta": "kBlockScope", "gl": "0", "sys": "0"}
    ),
    instruction(
        "9.7.13 fence",
        "fence.ORDER.SCOPE",
        "fence(self, {SCOPE});",
        ORDER=dict.fromkeys(("", "sc", "acq_rel"), ""),
        SCOPE=FENCES,
    ),
    *_atomics(),
    instruction(
        "9.7.13 vote.sync",
        "vote.sync.KIND.pred d, a:pred, b:u32",
        "vote(self, Vote::{KIND}, {a}, {b}, {site})",
        KIND=VOTES,
    ),
    instruction(
        "9.7.13 vote.sync", "vote.sync.ballot.b32 d, a:pred, b:u32", "vote(self, Vote::Ballot, {a}, {b}, {site})"
    ),
    instruction(
        "9.7.13 match.sync", "match.any.sync.T d:u32, a, b:u32", "match_any(self, {a}, {b}, {site})", T=("b32", "b64")
    ),
    instruction(
        "9.7.13 match.sync",
        "match.all.sync.T d|p:u32, a, b:u32",
        "bool in_ = false; {d=match_all(self, {a}, {b}, &in_, {site})} {p=in_}",
        T=("b32", "b64"),
    ),
    instruction("9.7.13 activemask", "activemask.b32 d", "active_mask(self, {site})"),
    instruction(
        "9.7.13 redux.sync",
        "redux.sync.KIND d:u32, a:u32, b:u32",
        "reduce(self, Reduce::{KIND}, {a}, {b}, {site})",
        KIND=REDUCTIONS,
    ),
    instruction(
        "9.7.13 elect.sync",
        "elect.sync d|p:u32, a:u32",
        "bool in_ = false; {d=elect(self, {a}, &in_, {site})} {p=in_}",
    ),
    # The kernel before has always ended here, so there is nothing to wait for.
    instruction("9.7.13 griddepcontrol", "griddepcontrol.KIND", ";", KIND={"launch_dependents": "", "wait": ""}),
]

# --- 9.7.19 miscellaneous --------------------------------------------------------------------------------------------

MISCELLANEOUS = [
    instruction("9.7.19 brkpt", "brkpt", "trap(self, {site});"),
    instruction("9.7.19 nanosleep", "nanosleep.u32 a", ";"),
    instruction("9.7.19 trap", "trap", "trap(self, {site});"),
]

INSTRUCTIONS: list[Instruction] = [
    *(*INTEGER, *FLOAT, *HALVES, *COMPARISONS, *LOGICAL, *MOVEMENT, *CONVERSIONS),
    *(*COPIES, *CONTROL, *SYNCHRONISATION, *MISCELLANEOUS),
]
