"""Every line of the instruction table against a plain formula: random inputs and edge values, all lines of all kinds.

Register instructions are generated from the table itself: for each line, opcodes that together spell each choice at
least once, some forty to a kernel. What touches memory or other threads has a snippet of its own in test_snippets.py.
"""

import math
import random
import struct
from functools import cache

import pytest
import torch

from bench.simulate import instructions, instructions_tensor
from bench.simulate.ptx import Statement, parse
from bench.simulate.table import TYPE, WIDE, Instruction
from bench.simulate.translate import find_line
from tests.bench.simulate import formulas as f
from tests.bench.simulate.snippets import SNIPPETS, launch, snippet_ptx

THREADS = 256
PER_KERNEL = 40
REGISTER_LINES = [
    *(*instructions.INTEGER, *instructions.FLOAT, *instructions.HALVES, *instructions.COMPARISONS),
    *(*instructions.LOGICAL, *instructions.CONVERSIONS),
    *(line for line in instructions.MOVEMENT if line.syntax.startswith("prmt")),
]
# Not exact by their nature: the greatest relative error allowed here. The manual's own bounds are looser.
APPROXIMATE = {
    **{"rsqrt.approx": 2.0**-23, "rcp.approx.ftz.f64": 2.0**-51, "rsqrt.approx.ftz.f64": 2.0**-51},
    **{
        "sin.approx": 2.0**-22,
        "cos.approx": 2.0**-22,
        "lg2.approx": 2.0**-22,
        "ex2.approx": 2.0**-22,
        "tanh.approx": 2.0**-11,
    },
}
FUNCTIONS = {
    "sin": math.sin,
    "cos": math.cos,
    "tanh": math.tanh,
    "lg2": lambda x: math.log2(x) if x > 0 else -math.inf if x == 0 else math.nan,
    "ex2": lambda x: math.inf if x >= 1024 else 2.0**x,
    "rsqrt": lambda x: math.copysign(math.inf, x) if x == 0 else x**-0.5 if x > 0 else math.nan,
    "rcp": lambda x: math.copysign(math.inf, x) if x == 0 else 1 / x,
}


# --- opcodes of a line -----------------------------------------------------------------------------------------------


def opcodes(line: Instruction) -> list[str]:
    """Spellings that together use every spelling of each choice."""
    rng = random.Random(line.syntax)
    spelled = list(dict.fromkeys(s for s in line.spellings() if find_line(_statement(line, s))[0] is line))
    rng.shuffle(spelled)
    missing = {(name, spelling) for s in spelled for name, spelling in _choices(line, s).items()}
    chosen: list[str] = []
    for opcode in spelled:
        new = set(_choices(line, opcode).items()) & missing
        if new or not chosen:
            chosen.append(opcode)
            missing -= new
    return chosen


def _choices(line: Instruction, opcode: str) -> dict[str, str]:
    return line.match(opcode, len(line.operands)) or {}


def _statement(line: Instruction, opcode: str) -> Statement:
    return Statement(opcode, ("x",) * len(line.operands), None, 0)  # type: ignore[arg-type]


def operand_type(line: Instruction, opcode: str, name: str) -> str:
    choices = _choices(line, opcode)
    operand = next(o for o in line.operands if name in (o.name, o.second))
    if name in ("p", "q"):
        return "pred"
    if operand.type == "W":
        return WIDE[choices["T"]]
    if operand.type:
        return choices.get(operand.type, operand.type)
    return choices.get("T") or [part for part in opcode.split(".") if TYPE.fullmatch(part)][-1]


# --- inputs: half edge values, half random ---------------------------------------------------------------------------


def _float_raws(kind: str, rng: random.Random) -> list[int]:
    exponent, mantissa = f.FORMATS[kind]
    one = ((1 << (exponent - 1)) - 1) << mantissa
    top = ((1 << exponent) - 1) << mantissa
    tiny = 1 << mantissa
    edges = [
        0,
        1,
        tiny - 1,
        tiny,
        one,
        one + 1,
        one - 1,
        one + (1 << mantissa),
        one + (1 << mantissa - 1),
        top - 1,
        top,
    ]
    edges += [e | 1 << (exponent + mantissa) for e in edges] + [top | 1 << (mantissa - 1)]
    near = [one + rng.randrange(-4 << mantissa, 6 << mantissa) for _ in range(40)]
    near = [r | rng.getrandbits(1) << (exponent + mantissa) for r in near]
    return edges + edges + near + [rng.getrandbits(1 + exponent + mantissa) for _ in range(40)]


@cache
def inputs(kind: str, name: str, nonzero: bool) -> list[int]:
    """Raw values for operand `name`, one for each thread."""
    rng = random.Random(f"{kind} {name}")
    if kind in f.FORMATS:
        pool = _float_raws(kind, rng)
    elif kind in ("f16x2", "bf16x2"):
        halves = _float_raws(kind[:-2], rng)
        pool = [rng.choice(halves) | rng.choice(halves) << 16 for _ in range(THREADS)]
    else:
        bits = f.BITS[kind]
        edges = [0, 1, 2, 31, 32, 33, 63, 64, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1]
        pool = [f.mask(e, kind) for e in edges] * 3 + list(range(8)) + [rng.getrandbits(bits) for _ in range(40)]
    values = [rng.choice(pool) for _ in range(THREADS)]
    return [v or 3 for v in values] if nonzero else values


# --- formulas --------------------------------------------------------------------------------------------------------


def expected(opcode: str, raws: dict[str, int], kinds: dict[str, str]) -> dict[str, int]:
    """The results by operand: d, p, q."""
    parts = opcode.split(".")
    base, has = parts[0], set(parts).__contains__
    kind = kinds.get("a", "")
    raw = tuple(raws[n] for n in ("a", "b", "c", "e") if n in raws)
    if base == "setp":
        return _setp(parts, raws, kind)
    if base == "testp":
        x = f.number(raws["a"], kind)
        tests = {"finite": math.isfinite(x), "infinite": math.isinf(x), "number": x == x, "notanumber": x != x}
        smallest = 2.0**-126 if kind == "f32" else 2.0**-1022
        tests["normal"] = math.isfinite(x) and abs(x) >= smallest
        return {"p": int(tests[parts[1]])}
    if base == "cvt":
        return {"d": _cvt(parts, raws, kinds)}
    if base in ("selp", "prmt", "lop3", "shf", "shl", "shr", "and", "or", "xor", "not", "cnot"):
        return {"d": _bits(base, parts, raw, kind)}
    if kind in f.FORMATS:
        return {"d": _float(base, has, kind, raw)}
    if kind in ("f16x2", "bf16x2"):
        return {"d": f.pairwise(lambda halves: _float(base, has, kind[:-2], halves), raw)}
    return {"d": f.mask(_integer(base, has, kind, raw), kinds["d"])}


def _setp(parts: list[str], raws: dict[str, int], kind: str) -> dict[str, int]:
    if kind in ("f16x2", "bf16x2"):  # p of the lower halves, q of the upper ones
        low, high = (
            _setp(parts, {n: raw if n == "c" else raw >> at & 0xFFFF for n, raw in raws.items()}, kind[:-2])["p"]
            for at in (0, 16)
        )
        return {"p": low, "q": high}
    decode = f.number if kind in f.FORMATS else f.integer
    a, b = decode(raws["a"], kind), decode(raws["b"], kind)
    result = f.compare(parts[1], a, b, a != a or b != b)
    combine = next((p for p in parts if p in ("and", "or", "xor")), "")
    third = raws.get("c", 0) & 1
    both = []
    for value in (int(result), int(not result)):
        both.append({"and": value & third, "or": value | third, "xor": value ^ third}.get(combine, value))
    return {"p": both[0], "q": both[1]}


def _bits(base: str, parts: list[str], raw: tuple[int, ...], kind: str) -> int:
    if base == "selp":
        return f.mask(raw[0] if raw[2] & 1 else raw[1], kind)
    if base == "prmt":
        return f.permute(*raw)
    if base == "lop3":
        return f.logic3(*raw)
    if base == "shf":
        by = raw[2] & 31 if "wrap" in parts else min(raw[2], 32)
        both = f.mask(raw[1], "u32") << 32 | f.mask(raw[0], "u32")
        return f.mask(both << by >> 32 if parts[1] == "l" else both >> by, "u32")
    if base in ("shl", "shr"):
        return f.shift(base, kind, raw[0], f.mask(raw[1], "u32"))
    if base == "cnot":
        return int(f.mask(raw[0], kind) == 0)
    if base == "not":
        return f.mask(~raw[0], kind)
    return f.mask({"and": raw[0] & raw[1], "or": raw[0] | raw[1], "xor": raw[0] ^ raw[1]}[base], kind)


def _float(base: str, has, kind: str, raw: tuple[int, ...]) -> int:
    ftz = has("ftz")
    if base in f.ARITHMETIC:
        mode = next((m for m in ("rz", "rm", "rp") if has(m)), "rn")
        return f.arithmetic(base, kind, raw, mode, ftz, has("sat"))
    if base == "div":
        return f.divide(kind, raw, ftz)
    if base in ("min", "max"):
        return f.least(kind, raw, base == "max", ftz, has("NaN"))
    if base in ("abs", "neg"):
        top = 1 << (f.BITS[kind] - 1)
        return f.finish(raw[0] & ~top if base == "abs" else raw[0] ^ top, kind, ftz)
    if base == "copysign":
        top = 1 << (f.BITS[kind] - 1)
        return raw[1] & ~top | raw[0] & top
    if base == "rcp" and kind == "f32":
        return f.divide(kind, (f.encode(1.0, kind), raw[0]), ftz)
    if base == "sqrt":
        return f.root(kind, raw[0], ftz)
    if base == "rcp" and not has("approx"):
        return f.divide(kind, (f.encode(1.0, kind), raw[0]), False)
    x = f.number(raw[0], kind)
    return f.finish(_apply(base, f.flushed(x) if ftz and kind == "f32" else x, kind), kind, ftz and kind == "f32")


def _apply(base: str, x: float, kind: str) -> int:
    try:
        return f.encode(FUNCTIONS[base](x), kind)
    except (ValueError, OverflowError, ZeroDivisionError):
        return f.nan(kind)


def _integer(base: str, has, kind: str, raw: tuple[int, ...]) -> int:
    values = [f.integer(r, kind) for r in raw]
    a, b = values[0], values[1] if len(values) > 1 else 0
    if base in ("add", "sub"):
        total = a + b if base == "add" else a - b
        return f.clamp(total, kind) if has("sat") else total
    if base in ("mul", "mad"):
        wide_kind = WIDE.get(kind, kind) if has("wide") else kind
        product = a * b >> f.BITS[kind] if has("hi") else a * b
        return product + (f.integer(raw[2], wide_kind) if base == "mad" else 0)
    simple = {
        "div": lambda: f.quotient(a, b),
        "rem": lambda: a - b * f.quotient(a, b),
        "abs": lambda: abs(a),
        "neg": lambda: -a,
        "min": lambda: min(a, b),
        "max": lambda: max(a, b),
        "popc": lambda: f.mask(a, kind).bit_count(),
        "clz": lambda: f.BITS[kind] - f.mask(a, kind).bit_length(),
        "brev": lambda: int(f"{f.mask(a, kind):0{f.BITS[kind]}b}"[::-1], 2),
        "bfe": lambda: f.bit_field(kind, *raw),
        "bfi": lambda: f.insert_field(kind, *raw),
    }
    if base == "bfind":
        found = f.highest_bit(kind, raw[0])
        return f.BITS[kind] - 1 - found if has("shiftamt") and found != 0xFFFFFFFF else found
    return simple[base]()


def _cvt(parts: list[str], raws: dict[str, int], kinds: dict[str, str]) -> int:
    types = [p for p in parts if TYPE.fullmatch(p)]
    into, source = types[0], types[-1]
    ftz, sat = "ftz" in parts, "sat" in parts
    integral = next((p for p in parts if p in ("rni", "rzi", "rmi", "rpi")), None)
    mode = next((p for p in parts if p in ("rz", "rm", "rp", "rna")), "rn")
    if into in ("f16x2", "bf16x2"):
        high, low = (f.encode(f.number(raws[n], "f32"), into[:-2], mode) for n in ("a", "b"))
        return low | high << 16
    if source not in f.FORMATS:
        value = f.integer(raws["a"], source)
        if into in f.FORMATS:
            return f.encode(f.Fraction(value), into)
        return f.clamp(value, into) if sat else f.mask(value, into)
    x = f.number(raws["a"], source)
    if ftz and source in ("f32",):
        x = f.flushed(x)
    if integral:
        x = f.rounded(x, integral)
    if into == "tf32":
        return _tf32(raws["a"], x, mode)
    if into in f.FORMATS:
        return f.finish(f.encode(x, into, mode), into, ftz and into == "f32", sat)
    return f.to_integer(x, into)


def _tf32(raw: int, x: float, mode: str) -> int:
    """f32 with 13 bits fewer: round to a multiple of 2^13 in the last place."""
    if x != x:
        return 0x7FFFFFFF
    if math.isinf(x):
        return raw
    low, kept = raw & 0x1FFF, raw & ~0x1FFF
    up = low >= 0x1000 if mode == "rna" else low > 0x1000 or (low == 0x1000 and kept & 0x2000)
    return kept + (0x2000 if up else 0)


# --- kernels: forty instructions to each -----------------------------------------------------------------------------

SOURCES = ("a", "b", "c", "e")
WIDTHS = {1: "u32", 8: "b16", 16: "b16", 32: "b32", 64: "b64"}  # how a value of so many bits is loaded and kept


def width(kind: str) -> int:
    return 32 if kind.endswith("x2") else f.BITS[kind]


class Job:
    """One opcode to try: where its inputs come from, and what came out."""

    def __init__(self, line: Instruction, opcode: str):
        self.line, self.opcode = line, opcode
        names = [n for o in line.operands for n in (o.name, o.second) if n]
        self.kinds = {n: operand_type(line, opcode, n) for n in names}
        self.results = [n for n in names if n in ("d", "p", "q")]
        nonzero = opcode.startswith(("div", "rem")) and self.kinds["b"] not in f.FORMATS
        self.table = 0xE8 if opcode.startswith("lop3") else None  # lop3's table is a constant in the text
        self.inputs = {n: inputs(self.kinds[n], n, nonzero and n == "b") for n in names if n in SOURCES}
        if self.table is not None:
            self.inputs["e"] = [self.table] * THREADS

    def text(self, slot: int, columns: dict[tuple[int, ...], int]) -> str:
        """PTX that loads the inputs, runs the instruction and stores its results from `slot` on."""
        lines, names = ["{"], {}
        for name, values in self.inputs.items():
            if name == "e" and self.table is not None:
                names[name] = str(self.table)
                continue
            bits = width(self.kinds[name])
            column = columns.setdefault(tuple(values), len(columns))
            held = WIDTHS[bits]
            lines += [f".reg .{held} {name}; ld.global.{held} {name}, [%rd2+{column * THREADS * 8}];"]
            names[name] = name
            if bits == 1:
                lines += [f".reg .pred p{name}; and.b32 {name}, {name}, 1; setp.ne.u32 p{name}, {name}, 0;"]
                names[name] = f"p{name}"
        for name in self.results:
            kind = "pred" if self.kinds[name] == "pred" else WIDTHS[width(self.kinds[name])]
            lines.append(f".reg .{kind} r{name};")
        written = [self.operand(o, names) for o in self.line.operands]
        lines.append(f"{self.opcode} {', '.join(written)};")
        for i, name in enumerate(self.results):
            at = f"[%rd1+{(slot + i) * THREADS * 8}]"
            bits = width(self.kinds[name])
            if bits == 1:
                lines.append(f".reg .b32 s{name}; selp.b32 s{name}, 1, 0, r{name}; st.global.b32 {at}, s{name};")
            else:
                lines.append(f"st.global.{WIDTHS[bits]} {at}, r{name};")
        return "\n".join([*lines, "}"])

    def operand(self, operand, names: dict[str, str]) -> str:
        if operand.is_result:
            return f"r{operand.name}" + (f"|r{operand.second}" if operand.second else "")
        return names[operand.name]

    def check(self, answers: dict[str, list[int]]) -> None:
        for i in range(THREADS):
            raws = {n: values[i] for n, values in self.inputs.items()}
            wanted = expected(self.opcode, raws, self.kinds)
            for name in self.results:
                kind = self.kinds[name]
                got, want = answers[name][i], wanted[name]
                if WIDTHS[width(kind)] == "b16" and width(kind) == 8:
                    got = f.mask(got, kind)
                assert self.agree(got, want, kind), (
                    f"{self.opcode}: {name} is {got:#x}, not {want:#x}, for { {n: hex(r) for n, r in raws.items()} }"
                )

    def agree(self, got: int, want: int, kind: str) -> bool:
        if kind.endswith("x2"):
            return all(self.agree(got >> n & 0xFFFF, want >> n & 0xFFFF, kind[:-2]) for n in (0, 16))
        if kind in ("b16", "u16", "u32", "b32") and self.opcode.startswith("cvt") and "x2" in self.opcode:
            half = next(p for p in self.opcode.split(".") if p.endswith("x2"))[:-2]
            return all(self.agree(got >> n & 0xFFFF, want >> n & 0xFFFF, half) for n in (0, 16))
        if got == want or (f.is_nan(got, kind) and f.is_nan(want, kind)):
            return True
        bound = next((b for n, b in APPROXIMATE.items() if self.opcode.startswith(n)), None)
        if bound is None or kind not in f.FORMATS:
            return False
        x, y = f.number(got, kind), f.number(want, kind)
        return abs(x - y) <= bound * abs(y) + 2.0**-149 * (not self.opcode.startswith("lg2")) + (
            2.0**-22 if self.opcode.startswith("lg2") else 0
        )


def jobs_of(line: Instruction) -> list[Job]:
    return [Job(line, opcode) for opcode in opcodes(line)]


ALL_JOBS = {line: jobs_of(line) for line in REGISTER_LINES}


@cache
def results() -> dict[Job, dict[str, list[int]]]:
    """Run all jobs: one module, forty instructions to a kernel."""
    jobs = [job for group in ALL_JOBS.values() for job in group]
    columns: dict[tuple[int, ...], int] = {}
    groups = [jobs[i : i + PER_KERNEL] for i in range(0, len(jobs), PER_KERNEL)]
    bodies = []
    for group in groups:
        slot, texts = 0, []
        for job in group:
            texts.append(job.text(slot, columns))
            slot += len(job.results)
        bodies.append("\n".join(texts))
    ptx = snippet_ptx({f"group{i}": body for i, body in enumerate(bodies)})
    flat = [struct.unpack("<q", struct.pack("<Q", v))[0] for values in columns for v in values]
    given = torch.tensor(flat, dtype=torch.int64)
    answers: dict[Job, dict[str, list[int]]] = {}
    for i, group in enumerate(groups):
        slots = sum(len(job.results) for job in group)
        out = torch.zeros(slots * THREADS, dtype=torch.int64)
        launch(ptx, f"group{i}", THREADS, out, given)
        raw = [v & (2**64 - 1) for v in out.tolist()]
        slot = 0
        for job in group:
            answers[job] = {}
            for name in job.results:
                answers[job][name] = raw[slot * THREADS : (slot + 1) * THREADS]
                slot += 1
    return answers


# --- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", REGISTER_LINES, ids=lambda line: line.syntax.replace(" ", "_"))
def test_register_instruction(line):
    assert ALL_JOBS[line], "no opcode of this line reaches it: an earlier line describes them all"
    for job in ALL_JOBS[line]:
        job.check(results()[job])


def test_every_choice_of_a_register_line_is_tried():
    for line, jobs in ALL_JOBS.items():
        for name, spellings in line.choices.items():
            tried = {_choices(line, job.opcode)[name] for job in jobs}
            untried = {s for s in spellings if s} - tried
            reachable = {_choices(line, s)[name] for s in line.spellings() if find_line(_statement(line, s))[0] is line}
            assert not untried & reachable, f"{line.syntax}: {name} = {untried & reachable}"


def test_every_line_of_the_table_has_a_test():
    tested = set(REGISTER_LINES)
    for name, snippet in SNIPPETS.items():
        for kernel in parse(snippet_ptx({name: snippet.body})).kernels:
            tested |= {find_line(s)[0] for s in kernel.body.statements()}
    untested = [line.syntax for line in instructions.INSTRUCTIONS if line not in tested]
    assert not untested


def test_the_tensor_table_is_covered_by_its_own_tests():
    """Lines of instructions_tensor.py have tests of their own; here only that none hides a line of this table."""
    mine = {line.syntax for line in instructions.INSTRUCTIONS}
    assert not [line.syntax for line in instructions_tensor.INSTRUCTIONS if line.syntax in mine]
