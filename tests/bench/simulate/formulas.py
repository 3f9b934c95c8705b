"""What each register instruction computes, written plainly in Python: exact fractions rounded once, integers masked."""

import math
import struct
from collections.abc import Callable
from fractions import Fraction

FORMATS = {"f16": (5, 10), "bf16": (8, 7), "f32": (8, 23), "f64": (11, 52)}  # bits of exponent and mantissa
BITS = {"pred": 1, "tf32": 32, **{name: 1 + e + m for name, (e, m) in FORMATS.items()}}
BITS |= {f"{kind}{n}": n for kind in "bus" for n in (8, 16, 32, 64)}
INF = math.inf


def mask(value: int, kind: str) -> int:
    return value & ((1 << BITS[kind]) - 1)


def integer(raw: int, kind: str) -> int:
    """Raw bits as the number they stand for."""
    raw = mask(raw, kind)
    return raw - (1 << BITS[kind]) if kind[0] == "s" and raw >> (BITS[kind] - 1) else raw


def number(raw: int, kind: str) -> float:
    """Raw bits of a float as a Python float, which holds every one of these formats exactly."""
    if kind == "f64":
        return struct.unpack("<d", struct.pack("<Q", mask(raw, kind)))[0]
    if kind == "f32":
        return struct.unpack("<f", struct.pack("<I", mask(raw, kind)))[0]
    if kind == "f16":
        return struct.unpack("<e", struct.pack("<H", mask(raw, kind)))[0]
    return struct.unpack("<f", struct.pack("<I", mask(raw, "u16") << 16))[0]


def encode(value: float | Fraction, kind: str, mode: str = "rn", negative_zero: bool = False) -> int:
    """Round an exact value to a format. `mode` is rn, rz, rm or rp, or rna (ties away from zero)."""
    exponent, mantissa = FORMATS[kind]
    bias = (1 << (exponent - 1)) - 1
    top = 1 << (exponent + mantissa)
    if isinstance(value, float):
        if math.isnan(value):
            return nan(kind)
        negative_zero = math.copysign(1, value) < 0
        if math.isinf(value):
            return (top if value < 0 else 0) | ((1 << exponent) - 1) << mantissa
        value = Fraction(value)
    sign = top if value < 0 or (value == 0 and negative_zero) else 0
    size = abs(value)
    if size == 0:
        return sign
    power = size.numerator.bit_length() - size.denominator.bit_length()
    while Fraction(2) ** power > size:
        power -= 1
    while Fraction(2) ** (power + 1) <= size:
        power += 1
    power = max(power, 1 - bias)
    steps = size / Fraction(2) ** (power - mantissa)
    whole = steps.numerator // steps.denominator
    rest = steps - whole
    away = {"rz": False, "rm": bool(sign), "rp": not sign, "rna": rest >= Fraction(1, 2)}.get(mode)
    if away is None:
        away = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole & 1 == 1)
    whole += bool(away and rest)
    raw = whole + ((power + bias - 1) << mantissa) if power > 1 - bias or whole >> mantissa else whole
    infinity = ((1 << exponent) - 1) << mantissa
    if raw >= infinity:
        down = mode == "rz" or (mode == "rm" and not sign) or (mode == "rp" and sign)
        raw = infinity - 1 if down else infinity
    return sign | raw


def nan(kind: str) -> int:
    exponent, mantissa = FORMATS[kind]
    return ((1 << exponent) - 1) << mantissa | ((1 << mantissa) - 1)


def is_nan(raw: int, kind: str) -> bool:
    return kind in FORMATS and math.isnan(number(raw, kind))


def flushed(x: float) -> float:
    return math.copysign(0.0, x) if abs(x) < 2.0**-126 else x


def _exact(operation: Callable, floats: tuple[float, ...], kind: str, mode: str) -> int:
    """An operation of finite floats exactly, then rounded; with infinities and NaN as Python's floats do it."""
    try:
        by_python = operation(*floats)
    except (ZeroDivisionError, OverflowError, ValueError):
        by_python = math.nan
    if not all(map(math.isfinite, floats)):
        if operation is fma and math.isfinite(floats[0]) and math.isfinite(floats[1]):
            by_python = floats[2]  # Python's product may overflow, where the exact one does not
        return encode(by_python, kind)
    exact = operation(*map(Fraction, floats))
    return encode(exact, kind, mode, math.copysign(1, by_python) < 0 if exact == 0 else False)


def fma(a, b, c):
    return a * b + c


def zero_sign(operation: str, floats: tuple[float, ...], mode: str) -> int | None:
    """Sums that cancel exactly are +0, and -0 when rounding down; products keep their signs."""
    if operation == "mul" or not all(map(math.isfinite, floats)):
        return None
    if operation == "fma":
        terms = (math.copysign(1, floats[0]) * math.copysign(1, floats[1]), math.copysign(1, floats[2]))
        total = Fraction(floats[0]) * Fraction(floats[1]) + Fraction(floats[2])
    else:
        second = -floats[1] if operation == "sub" else floats[1]
        terms = (math.copysign(1, floats[0]), math.copysign(1, second))
        total = Fraction(floats[0]) + Fraction(second)
    if total != 0:
        return None
    return int(terms[0] < 0) if terms[0] == terms[1] else int(mode == "rm")


ARITHMETIC: dict[str, Callable] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "fma": fma,
    "mad": fma,
}


def arithmetic(operation: str, kind: str, raw: tuple[int, ...], mode: str = "rn", ftz=False, sat=False) -> int:
    floats = tuple(number(r, kind) for r in raw)
    if ftz:
        floats = tuple(map(flushed, floats))
    operation = "fma" if operation == "mad" else operation
    sign = zero_sign(operation, floats, mode)
    result = _exact(ARITHMETIC[operation], floats, kind, mode) if sign is None else sign << (BITS[kind] - 1)
    return finish(result, kind, ftz, sat)


def finish(raw: int, kind: str, ftz: bool, sat: bool = False) -> int:
    x = number(raw, kind)
    if ftz:
        x = flushed(x)
    if sat:
        x = min(x, 1.0) if x > 0 else 0.0  # also for NaN and -0
    return encode(x, kind) if ftz or sat else raw


def divide(kind: str, raw: tuple[int, ...], ftz: bool) -> int:
    a, b = (flushed(number(r, kind)) if ftz else number(r, kind) for r in raw)
    if a != a or b != b:
        return nan(kind)
    if b == 0:
        sign = math.copysign(1, a) * math.copysign(1, b)
        return encode(math.nan if a == 0 else sign * INF, kind)
    if not (math.isfinite(a) and math.isfinite(b)):
        return finish(encode(a / b, kind), kind, ftz)
    sign = math.copysign(1, a) * math.copysign(1, b) < 0
    return finish(encode(Fraction(a) / Fraction(b), kind, "rn", sign), kind, ftz)


def least(kind: str, raw: tuple[int, ...], largest: bool, ftz: bool, propagate: bool) -> int:
    a, b = (flushed(number(r, kind)) if ftz else number(r, kind) for r in raw)
    if math.isnan(a) or math.isnan(b):
        both = math.isnan(a) and math.isnan(b)
        return nan(kind) if propagate or both else encode(b if math.isnan(a) else a, kind)
    key = [(x, math.copysign(1, x)) for x in (a, b)]
    return encode((max(key) if largest else min(key))[0], kind)


def root(kind: str, raw: int, ftz: bool) -> int:
    x = flushed(number(raw, kind)) if ftz else number(raw, kind)
    if x != x or x < 0:
        return nan(kind)
    if x == 0 or x == INF:
        return encode(x, kind)
    size = Fraction(x)
    shift = 1200  # an integer root with so many bits after the point rounds as the exact one does
    whole = math.isqrt((size.numerator << (2 * shift)) // size.denominator)
    exact = Fraction(whole, 1 << shift)
    if exact * exact != size:
        exact += Fraction(1, 1 << (shift + 1))
    return encode(exact, kind)


def rounded(x: float, mode: str) -> float:
    """rni, rzi, rmi or rpi."""
    if not math.isfinite(x):
        return x
    functions: dict[str, Callable] = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
    value = functions[mode](x)
    return math.copysign(float(value), x) if value == 0 else float(value)


def to_integer(x: float, kind: str) -> int:
    low = -(1 << (BITS[kind] - 1)) if kind[0] == "s" else 0
    high = low + (1 << BITS[kind]) - 1
    if math.isnan(x):
        return 1 << 63 if BITS[kind] == 64 else 0
    return mask(low if x <= low else high if x >= high else int(x), kind)


def clamp(value: int, kind: str) -> int:
    low = -(1 << (BITS[kind] - 1)) if kind[0] == "s" else 0
    return mask(min(max(value, low), low + (1 << BITS[kind]) - 1), kind)


def compare(name: str, a, b, either_nan: bool) -> bool:
    if name in ("num", "nan"):
        return either_nan == (name == "nan")
    base = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(
        name, name.removesuffix("u") if len(name) == 3 else name
    )
    if either_nan:
        return len(name) == 3
    return {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[base]


def quotient(a: int, b: int) -> int:
    """Toward zero, as C does."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def shift(operation: str, kind: str, raw: int, by: int) -> int:
    if operation == "shl":
        return mask(raw << by, kind) if by < BITS[kind] else 0
    return mask(integer(raw, kind) >> min(by, 64), kind)


def bit_field(kind: str, raw: int, position: int, length: int) -> int:
    position, length, bits = position & 255, length & 255, BITS[kind]
    if kind[0] == "u" or length == 0:
        return mask(raw, kind) >> position & ((1 << length) - 1)
    sign = mask(raw, kind) >> min(position + length - 1, bits - 1) & 1
    field = [
        (mask(raw, kind) >> (position + i) & 1) if i < length and position + i < bits else sign for i in range(bits)
    ]
    return sum(bit << i for i, bit in enumerate(field))


def insert_field(kind: str, a: int, b: int, position: int, length: int) -> int:
    position, length = position & 255, length & 255
    field = mask(((1 << length) - 1) << position, kind)
    return mask(b, kind) & ~field | mask(a << position, kind) & field


def highest_bit(kind: str, raw: int) -> int:
    value = integer(raw, kind)
    value = ~value if value < 0 else value
    return value.bit_length() - 1 if value else 0xFFFFFFFF


def permute(a: int, b: int, selector: int) -> int:
    pool = struct.pack("<II", a & 0xFFFFFFFF, b & 0xFFFFFFFF)
    out = []
    for i in range(4):
        nibble = selector >> (4 * i) & 15
        byte = pool[nibble & 7]
        out.append((255 if byte & 128 else 0) if nibble & 8 else byte)
    return struct.unpack("<I", bytes(out))[0]


def logic3(a: int, b: int, c: int, table: int) -> int:
    return sum((table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i for i in range(32))


def pairwise(function: Callable, raw: tuple[int, ...]) -> int:
    """The same for the low and the high halves of packed operands."""
    low, high = (function(tuple(r >> n & 0xFFFF for r in raw)) for n in (0, 16))
    return low | high << 16
