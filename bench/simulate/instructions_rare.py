"""What published kernels use now and then: the third part of the instruction table, with the sections of the manual.

Carries, dot products of bytes, 8-bit floats, atomics on vectors, fragments (wmma), reductions by bulk copies. wmma.hpp
has the functions that the C++ calls besides those of the usual headers.
"""

from __future__ import annotations

from bench.simulate.instructions import (
    ATOMIC_CHOICES,
    BYTES_UP,
    COMPARED_FLOATS,
    COMPARED_INTEGERS,
    FLOAT_COMPARISONS,
    FLUSH,
    HALF,
    HALF_PAIR,
    INTEGER_COMPARISONS,
    MEMORY_SPACES,
    ORDERED,
    TO_INTEGRAL,
    UNORDERED,
    UNSIGNED_ORDER,
)
from bench.simulate.instructions_tensor import AXES, CACHE_HINT, split_tile
from bench.simulate.table import Instruction, instruction, with_header
from bench.simulate.use import Use

# --- 9.7.2 extended precision: the carry is a variable of the function -----------------------------------------------

WORDS = ("u32", "u64", "s32", "s64")
WRITES = {"": "unused_", "cc": "carry_"}
UNUSED = "u32 unused_; (void)unused_; "


def _carries() -> list[Instruction]:
    section, lines = "9.7.2 extended-precision arithmetic", []
    for name, begins, reads in (("add", "0", "carry_"), ("sub", "1", "carry_")):
        call = f"{name}_with_carry<{{T}}>({{a}}, {{b}}, IN, OUT)"
        first = call.replace("IN", begins).replace("OUT", "carry_")
        lines.append(instruction(section, f"{name}.cc.T d, a, b", first, T=WORDS))
        later = UNUSED + "{d=" + call.replace("IN", reads).replace("OUT", "{CC}") + "}"
        lines.append(instruction(section, f"{name}c.CC.T d, a, b", later, CC=WRITES, T=WORDS))
    for part in ("lo", "hi"):
        product = f"product_{part}<{{T}}>({{a}}, {{b}})"
        call = f"add_with_carry<{{T}}>({product}, {{c}}, IN, OUT)"
        first = call.replace("IN", "0").replace("OUT", "carry_")
        lines.append(instruction(section, f"mad.{part}.cc.T d, a, b, c", first, T=WORDS))
        later = UNUSED + "{d=" + call.replace("IN", "carry_").replace("OUT", "{CC}") + "}"
        lines.append(instruction(section, f"madc.{part}.CC.T d, a, b, c", later, CC=WRITES, T=WORDS))
    return lines


SIGNS = {"u32": "false", "s32": "true"}
INTEGERS = [
    *_carries(),
    instruction(
        "9.7.1 dp4a", "dp4a.A.B d:s32, a:b32, b:b32, c:b32", "dot_bytes({a}, {A}, {b}, {B}, {c})", A=SIGNS, B=SIGNS
    ),
    instruction(
        "9.7.1 dp2a",
        "dp2a.HALF.A.B d:s32, a:b32, b:b32, c:b32",
        "dot_halves({a}, {A}, {b}, {B}, {HALF}, {c})",
        HALF={"lo": "0", "hi": "16"},
        A=SIGNS,
        B=SIGNS,
    ),
    instruction("9.7.1 sad", "sad.T d, a, b, c", "({a} < {b} ? {b} - {a} : {a} - {b}) + {c}", T=WORDS),
    instruction("9.7.1 mul24", "mul24.lo.u32 d, a, b", "({a} & 0xffffffu) * ({b} & 0xffffffu)"),
    instruction(
        "9.7.1 mul24", "mul24.lo.s32 d, a, b", "(s32)((u32)((s32)({a} << 8) >> 8) * (u32)((s32)({b} << 8) >> 8))"
    ),
]

# --- floats: other roundings, and of eight bits ----------------------------------------------------------------------

DOUBLE = {"rz": "Toward::Zero", "rm": "Toward::Down", "rp": "Toward::Up"}
BYTE = {"e4m3x2": "E4m3", "e5m2x2": "E5m2"}
RELU = {"": "", "relu": "relu"}
FLOATS = [
    instruction(
        "9.7.3 rcp", "rcp.RND.FTZ.f32 d, a", "{FTZ}(divide_toward<{RND}>(1.0f, {FTZ}({a})))", RND=DOUBLE, FTZ=FLUSH
    ),
    instruction(
        "9.7.3 div",
        "div.RND.FTZ.f32 d, a, b",
        "{FTZ}(divide_toward<{RND}>({FTZ}({a}), {FTZ}({b})))",
        RND=DOUBLE,
        FTZ=FLUSH,
    ),
    instruction("9.7.3 sqrt", "sqrt.RND.FTZ.f32 d, a", "{FTZ}(sqrt_toward<{RND}>({FTZ}({a})))", RND=DOUBLE, FTZ=FLUSH),
    # The first source is the upper byte.
    instruction(
        "9.7.9 cvt",
        "cvt.rn.satfinite.RELU.B.f32 d:b16, a:f32, b:f32",
        "pack_bytes({B}::encode({RELU}((f64){a})), {B}::encode({RELU}((f64){b})))",
        RELU=RELU,
        B=BYTE,
    ),
    instruction(
        "9.7.9 cvt",
        "cvt.rn.satfinite.RELU.B.f16x2 d:b16, a:b32",
        "pack_bytes({B}::encode({RELU}((f64)F16::decode(high({a})))), {B}::encode({RELU}((f64)F16::decode(low({a})))))",
        RELU=RELU,
        B=BYTE,
    ),
    instruction(
        "9.7.9 cvt",
        "cvt.rn.RELU.f16x2.B d:b32, a:b16",
        "pack(F16::round({RELU}({B}::decode({a} & 255))), F16::round({RELU}({B}::decode({a} >> 8 & 255))))",
        RELU=RELU,
        B=BYTE,
    ),
]

# --- what cuda_fp16.hpp and cuda_bf16.hpp are made of: their maths, comparisons and other roundings -------------------


def _holds(compare: str, a: str, b: str, floats: bool) -> str:
    nan = f"(is_nan({a}) || is_nan({b}))"
    if compare in ("num", "nan"):
        return nan if compare == "nan" else f"!{nan}"
    if compare in UNORDERED:
        return f"({nan} || {a} {UNORDERED[compare]} {b})"
    sign = ({**ORDERED, **UNSIGNED_ORDER})[compare]
    return f"(!{nan} && {a} {sign} {b})" if floats else f"({a} {sign} {b})"


def _set(use: Use) -> str:
    """d = 1 (a float) or all ones (an integer) where a CMP b, else 0; of pairs, each half by itself."""
    compare, kind, result = use.modifiers["CMP"], use.type_of("a"), use.type_of("d")
    a, b = use.value("a"), use.value("b")
    if half := HALF_PAIR.get(kind):
        parts = [
            f"(u16)({_holds(compare, f'{half}::decode({end}({a}))', f'{half}::decode({end}({b}))', True)} ? ONE : 0)"
            for end in ("low", "high")
        ]
        return use.assign("d", f"pack({', '.join(parts)})".replace("ONE", f"{half}::encode(1.0f)"))
    if half := HALF.get(kind):
        a, b = f"{half}::decode({a})", f"{half}::decode({b})"
    one, none = f"({result})-1", f"({result})0"
    if result in HALF:
        one, none = f"{HALF[result]}::encode(1.0f)", "(u16)0"
    elif result == "f32":
        one, none = "1.0f", "0.0f"
    return use.assign("d", f"{_holds(compare, a, b, kind in COMPARED_FLOATS)} ? {one} : {none}")


def _narrow() -> list[Instruction]:
    low, high = "low({a})", "high({a})"
    tanh, relu = "{H}::encode(tanh_approx({H}::decode(WORD)))", "half_relu<{H}>(half_fma<{H}>(A, B, C))"
    lines = [
        instruction("9.7.4 tanh", "tanh.approx.H d, a", tanh.replace("WORD", "{a}"), H=HALF),
        instruction(
            "9.7.4 tanh",
            "tanh.approx.H d, a",
            f"pack({tanh.replace('WORD', low)}, {tanh.replace('WORD', high)})",
            H=HALF_PAIR,
        ),
    ]
    fused = {end: relu for end in ("", "low", "high")}
    for end in fused:
        for word in "ABC":
            operand = f"{{{word.lower()}}}"
            fused[end] = fused[end].replace(f"{word},", f"{end}({operand}),").replace(f"{word})", f"{end}({operand}))")
    lines += [
        instruction("9.7.4 fma", "fma.rn.relu.H d, a, b, c", fused[""], H=HALF),
        instruction("9.7.4 fma", "fma.rn.relu.H d, a, b, c", f"pack({fused['low']}, {fused['high']})", H=HALF_PAIR),
    ]
    for name, half in HALF.items():
        code = f"{half}::round({{RND}}((f64){half}::decode({{a}})))"
        lines.append(instruction("9.7.9 cvt", f"cvt.RND.{name}.{name} d, a", code, RND=TO_INTEGRAL))
    toward = "half_toward<{D:half}, {RND}>({a})"
    directed = {name: DOUBLE[name] for name in ("rm", "rp")}
    lines += [
        instruction("9.7.9 cvt", "cvt.RND.D.f32 d:D, a:f32", toward, RND=directed, D=tuple(HALF)),
        instruction("9.7.9 cvt", "cvt.RND.D.S d:D, a:S", toward, RND=DOUBLE, D=tuple(HALF), S=BYTES_UP),
        instruction(
            "9.7.6 set",
            "set.CMP.D.S d:D, a:S, b:S",
            _set,
            CMP=INTEGER_COMPARISONS,
            D=("u32", "s32", "f32"),
            S=COMPARED_INTEGERS,
        ),
        instruction(
            "9.7.6 set",
            "set.CMP{.ftz}.D.S d:D, a:S, b:S",
            _set,
            CMP=FLOAT_COMPARISONS,
            D=("u32", "s32", "f32", "u16", "s16", "f16", "bf16"),
            S=COMPARED_FLOATS,
        ),
    ]
    for pair in HALF_PAIR:
        lines.append(instruction("9.7.6 set", f"set.CMP{{.ftz}}.{pair}.{pair} d, a, b", _set, CMP=FLOAT_COMPARISONS))
    return lines


# --- 9.7.13 atomics on vectors: each element for itself --------------------------------------------------------------


def _vector_atomic(use: Use) -> str:
    values, kind = use.values("b"), use.type_of("H")
    if len(values) != int(use.modifiers["VEC"][1:]):
        raise ValueError(f"a vector of {len(values)} registers")
    memory, add = {
        "f32": ("f32", "o_ + x_"),
        **{k: ("u16", f"half_add<{c}>(o_, x_)") for k, c in HALF.items()},
        **{
            k: ("u32", f"pack(half_add<{c}>(low(o_), low(x_)), half_add<{c}>(high(o_), high(x_)))")
            for k, c in HALF_PAIR.items()
        },
    }[kind]
    size = {"f32": 4, "u16": 2, "u32": 4}[memory]
    code = [
        f"u64 at_ = {use.address('a')}; aligned(self, at_, {size * len(values)}, {use.site});",
        f"{memory} old_[{len(values)}];",
    ]
    access, function = use.fill("{ORDER} | {SCOPE}"), f"atomic<{use.fill('{SPACE}')}, {memory}>"
    for i, value in enumerate(values):
        code.append(
            f"{{ {memory} x_ = {value}; old_[{i}] = {function}(self, at_ + {i * size}, {access}, "
            f"[&]({memory} o_) -> {memory} {{ return {add}; }}, {use.site}); }}"
        )
    if use.statement.opcode.startswith("atom"):
        code.append(use.assign_all("d", [f"old_[{i}]" for i in range(len(values))]))
    return " ".join(code)


def _vector_atomics() -> list[Instruction]:
    lines = []
    choices = {
        **ATOMIC_CHOICES,
        "SPACE": {k: v for k, v in MEMORY_SPACES.items() if k in ("", "global")},
        "HINT": CACHE_HINT,
    }
    for vectors, types in ((("v2", "v4"), ("f32", *HALF_PAIR)), (("v2", "v4", "v8"), tuple(HALF))):
        noftz = "{.noftz}"
        vec = dict.fromkeys(vectors, "")
        kinds = dict.fromkeys(types, "")
        for place in (f"add{noftz}.HINT.VEC.H", f"VEC.H.add{noftz}.HINT"):
            syntax = f"ORDER.SCOPE.SPACE.{place}"
            lines.append(
                instruction("9.7.13 atom", f"atom.{syntax} <d>, [a], <b>", _vector_atomic, VEC=vec, H=kinds, **choices)
            )
            lines.append(
                instruction("9.7.13 red", f"red.{syntax} [a], <b>", _vector_atomic, VEC=vec, H=kinds, **choices)
            )
    return lines


# --- 9.7.14 wmma -----------------------------------------------------------------------------------------------------

MATRIX_TYPES = ("f16", "bf16", "tf32", "s8", "u8", "f64")
SHAPES = {
    **{"m16n16k16": "16, 16, 16", "m32n8k16": "32, 8, 16", "m8n32k16": "8, 32, 16", "m16n16k8": "16, 16, 8"},
    "m8n8k4": "8, 8, 4",
}
LAYOUTS = {"row": "true", "col": "false"}
FRAGMENTS = {
    **{"f16": "Kind::F16", "bf16": "Kind::Bf16", "tf32": "Kind::Tf32", "f32": "Kind::F32"},
    **{"s8": "Kind::S8", "u8": "Kind::U8", "s32": "Kind::S32", "f64": "Kind::F64"},
}


def _fragment_words(use: Use, name: str, kind: str) -> list[str]:
    """The 32-bit words of a fragment's registers."""
    if kind != "f64":
        return use.values(name, "b32")
    return [f"(u32)(bits<u64>({v}) >> {shift})" for v in use.values(name, "f64") for shift in (0, 32)]


def _fragment_results(use: Use, name: str, kind: str) -> str:
    """Assigns the words of an array `<name>_` to a fragment's registers."""
    count = use.count(name)
    if kind != "f64":
        return use.assign_all(name, [f"{name}_[{i}]" for i in range(count)], "b32")
    pairs = [f"bits<f64>({name}_[{2 * i}] | (u64){name}_[{2 * i + 1}] << 32)" for i in range(count)]
    return use.assign_all(name, pairs, "f64")


def _fragment_access(use: Use) -> str:
    """wmma.load and wmma.store: which matrix, how it lies in memory, and the registers of it that this lane has."""
    load = use.statement.opcode.startswith("wmma.load")
    name, kind = "d" if load else "b", use.modifiers["TYPE"]
    count, matrix = use.count(name) * (2 if kind == "f64" else 1), use.statement.opcode.split(".")[2]
    rows, columns, inner = (int(n) for n in use.fill("{SHAPE}").split(", "))
    size = {"a": (rows, inner), "b": (inner, columns)}.get(matrix, (rows, columns))
    stride = use.value("s") or str(size[1] if use.modifiers["LAYOUT"] == "row" else size[0])
    form = f"{{{size[0]}, {size[1]}, {use.fill('{LAYOUT}')}, {use.fill('{TYPE}')}, {count}}}"
    place = f"{use.address('a')}, {stride}, {use.fill('{SPACE}')}"
    call = f"fragment_access(self, {form}, {str(load).lower()}, {name}_, {place}, {use.site});"
    if load:
        return f"u32 d_[{count}]; {call} " + _fragment_results(use, "d", kind)
    return f"u32 b_[] = {{{', '.join(_fragment_words(use, 'b', kind))}}}; {call}"


def _fragment_product(use: Use) -> str:
    spelled = dict(zip("dabc", (use.modifiers.get(n) or "f16" for n in ("D", "A", "A", "C")), strict=True))
    if use.modifiers.get("B", use.modifiers["A"]) != use.modifiers["A"]:
        raise ValueError("matrices of two types")
    words = {n: _fragment_words(use, n, spelled[n]) for n in "abc"}
    arrays = " ".join(f"u32 {n}_[] = {{{', '.join(w)}}};" for n, w in words.items())
    kinds = [FRAGMENTS[spelled[n]] for n in "dabc"]
    counts = [use.count(n) * (2 if spelled[n] == "f64" else 1) for n in "dabc"]
    saturate = str("satfinite" in use.statement.opcode).lower()
    form = f"{{{use.fill('{SHAPE}')}, {{{', '.join(kinds)}}}, {{{', '.join(map(str, counts))}}}, {saturate}}}"
    call = f"fragment_product(self, {form}, d_, a_, b_, c_, {use.site});"
    return f"u32 d_[{counts[0]}]; {arrays} {call} " + _fragment_results(use, "d", spelled["d"])


def _wmma() -> list[Instruction]:
    section, lines = "9.7.14 wmma", []
    choices = {"LAYOUT": LAYOUTS, "SHAPE": SHAPES, "SPACE": MEMORY_SPACES}
    for matrix, types in (("a", MATRIX_TYPES), ("b", MATRIX_TYPES), ("c", ("f16", "f32", "s32", "f64"))):
        kinds = {t: FRAGMENTS[t] for t in types}
        syntax = f"wmma.load.{matrix}.sync.aligned.LAYOUT.SHAPE.SPACE.TYPE <d>, [a], s:u32="
        lines.append(instruction(section, syntax, _fragment_access, TYPE=kinds, **choices))
    kinds = {t: FRAGMENTS[t] for t in ("f16", "f32", "s32", "f64")}
    syntax = "wmma.store.d.sync.aligned.LAYOUT.SHAPE.SPACE.TYPE [a], <b>, s:u32="
    lines.append(instruction(section, syntax, _fragment_access, TYPE=kinds, **choices))
    sides = {"L": {"row": "", "col": ""}, "R": {"row": "", "col": ""}, "SHAPE": SHAPES}
    operands = "<d>, <a>, <b>, <c>"
    sums, pieces = {t: FRAGMENTS[t] for t in ("f16", "f32")}, {t: FRAGMENTS[t] for t in ("bf16", "tf32")}
    head = "wmma.mma.sync.aligned.L.R.SHAPE"
    half = {"": FRAGMENTS["f16"]}
    lines.append(instruction(section, f"{head}.D.C.A {operands}", _fragment_product, D=sums, C=sums, A=half, **sides))
    floats = {"D": {"f32": FRAGMENTS["f32"]}, "C": {"f32": FRAGMENTS["f32"]}, "A": pieces, "B": pieces}
    lines.append(instruction(section, f"{head}.D.A.B.C {operands}", _fragment_product, **floats, **sides))
    double = {side: {"f64": FRAGMENTS["f64"]} for side in "DABC"}
    lines.append(instruction(section, f"{head}{{.rn}}.D.A.B.C {operands}", _fragment_product, **double, **sides))
    whole = {"s32": FRAGMENTS["s32"]}
    bytes_ = {t: FRAGMENTS[t] for t in ("s8", "u8")}
    lines.append(
        instruction(
            section,
            f"{head}.D.A.B.C{{.satfinite}} {operands}",
            _fragment_product,
            **{"D": whole, "C": whole, "A": bytes_, "B": bytes_},
            **sides,
        )
    )
    return lines


# --- 9.7.9.25 reductions by bulk copies ------------------------------------------------------------------------------

REDUCED = {
    **{
        "add.f32": "add_to<f32>, 4",
        "add.f64": "add_to<f64>, 8",
        "add.u32": "add_to<u32>, 4",
        "add.s32": "add_to<u32>, 4",
    },
    **{"add.u64": "add_to<u64>, 8", "add.noftz.f16": "add_half_to<F16>, 2", "add.noftz.bf16": "add_half_to<Bf16>, 2"},
    **{
        "min.u32": "min_to<u32>, 4",
        "min.s32": "min_to<s32>, 4",
        "max.u32": "max_to<u32>, 4",
        "max.s32": "max_to<s32>, 4",
    },
}


def _tile_reduce(use: Use) -> str:
    tensor_map, coordinates = split_tile(use, "d")
    rank = use.modifiers["AXES"][0]
    return f"{coordinates} tile_reduce(self, {tensor_map}, at_, {rank}, {use.address('a')}, {use.site});"


BULK = [
    instruction(
        "9.7.9 cp.reduce.async.bulk",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.HINT.KIND [d], [a], b:u32, c:u64=0",
        "bulk_reduce(self, {d:address}, {a:address}, {b}, {KIND}, {site});",
        HINT=CACHE_HINT,
        KIND=REDUCED,
    ),
    instruction(
        "9.7.9 cp.reduce.async.bulk.tensor",
        "cp.reduce.async.bulk.tensor.AXES.global.shared::cta.add{.tile}.bulk_group.HINT [d], [a], b:u64=0",
        _tile_reduce,
        AXES=AXES,
        HINT=CACHE_HINT,
    ),
]

INSTRUCTIONS: list[Instruction] = [
    *(*INTEGERS, *FLOATS, *_vector_atomics()),
    *with_header("narrow.hpp", _narrow()),
    *with_header("wmma.hpp", _wmma()),
    *with_header("hopper.hpp", BULK),
]
