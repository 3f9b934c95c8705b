"""Calls, printf, malloc, wide integers, 8-bit floats, wmma and the like: what published kernels use now and then."""

import math
from functools import cache

import pytest
import torch

from bench.simulate import SimulationError, UnknownInstruction, instructions_rare
from bench.simulate.ptx import parse
from bench.simulate.translate import find_line
from tests.bench.simulate.kernels import compiled, names, run

N = 256
U32 = 0xFFFFFFFF
FAILING = {
    "callers_locals_overrun": ("out-of-bounds", "local memory"),
    "no_function": ("call", "where no function of this kernel is"),
    "heap_overrun": ("out-of-bounds", "0 bytes behind the end of `memory of malloc, rare.cu:"),
    "heap_after_free": ("out-of-bounds", "read of 4 bytes"),
    "freed_twice": ("call", "free already"),
    "some_beside_all": ("warp operation", "lanes of one warp meet in different operations"),
    "vector_atomic_misaligned": ("misaligned", "8 bytes"),
    "grid_without_sync": ("race", "race on `out`"),
}


@cache
def given() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)  # as `run` draws it
    return torch.randint(-8, 8, (N,), generator=generator).float()


def signed(word: int, bits: int = 32) -> int:
    word &= (1 << bits) - 1
    return word - (1 << bits) if word >> (bits - 1) else word


def by_thread(function) -> list:
    return [function(t, given()[t].item()) for t in range(64)]


def structs(t: int, x: float) -> float:
    at, n = [1.0, 2.0, 3.0], t
    for value in (x, 10.0):
        at[n % 3] += value
        n += 1
    total = torch.tensor(at[0]) + torch.tensor(at[1]) * 100
    return (total + torch.tensor(at[2]) * 10000 + torch.tensor(float(n)) * 1000000).item()


def doubles(t: int, x: float) -> float:
    x /= 3
    powers = (abs(x) + 0.5) ** 1.7 + math.exp(-x * x)
    return math.sin(x) + powers + math.log(abs(x) + 1) + math.erf(x) + math.tanh(x)


def wide_integers(t: int, _: float) -> int:
    x = ((0xFEDCBA9876543210 + t) * 0x123456789ABCDEF + (t << 100) - U32 - (U32 << 32)) & (1 << 128) - 1
    y = -((x >> 1) // (t + 3))
    return (x >> 64 ^ y >> 40) & U32


def carries(t: int, _: float) -> int:
    a, b = (0xFFFFFFF0 + t) & U32, 0x20
    carry = a + b >> 32
    low, high = (a + b) & U32, (a + 5 + carry) & U32
    d, borrow = (b - a) & U32, int(b < a)
    d, borrow = (d - 1 - borrow) & U32, int(d - 1 - borrow < 0)
    d = -borrow & U32
    product = a * b
    e, carry = (product + a) & U32, (product & U32) + a >> 32
    f, carry = ((product >> 32) + b + carry) & U32, (product >> 32) + b + carry >> 32
    g = (a * a + carry) & U32
    g, carry = ((g * b >> 32) + g) & U32, (g * b >> 32) + g >> 32
    g, carry = (g + carry) & U32, g + carry >> 32
    total = (g * 3 & U32) + 7 + carry
    g, carry = total & U32, total >> 32
    g = ((a * g >> 32) + 1 + carry) & U32
    return (low ^ high * 3 ^ d * 5 ^ e * 7 ^ f * 11 ^ g * 13) & U32


def bytes_dotted(t: int, _: float) -> int:
    a, b = 0x80FF7F01 * (t + 1) & U32, 0x7F80FE03 + t & U32
    parts = [((a >> i) & 255, (b >> i) & 255) for i in range(0, 32, 8)]
    c = sum(signed(x, 8) * signed(y, 8) for x, y in parts) + 5
    d = sum(x * y for x, y in parts) + 7
    e, f = (
        sum(signed(a >> 16 * i, 16) * signed(b >> first + 8 * i, 8) for i in range(2)) + add
        for first, add in ((0, 1), (16, 2))
    )
    s, m = abs(a - b) + 9, (a & 0xFFFFFF) * (b & 0xFFFFFF)
    return (c ^ d * 3 ^ e * 5 ^ f * 7 ^ s * 11 ^ (m & U32) * 13 ^ signed(a, 24) * signed(b, 24) * 17) & U32


def eighths(dtype: torch.dtype, x: torch.Tensor) -> torch.Tensor:
    most = torch.finfo(dtype).max
    return x.clamp(-most, most).to(dtype).float()


def eight_bits() -> list[float]:
    x = given()[:64]
    a = eighths(torch.float8_e4m3fn, x * torch.tensor(7.3))
    b = eighths(torch.float8_e5m2, x * torch.tensor(1000.7))
    c = eighths(torch.float8_e4m3fn, x) + 100 * eighths(torch.float8_e4m3fn, torch.tensor(0.3).half().float())
    return [*a.tolist(), *b.tolist(), *c.tolist()]


def ulps() -> list[float]:
    """One unit in the last place where nothing is exact."""
    x = given()[:64].add(torch.tensor(9.3))
    found = []
    for exact in (1.7000000476837158 / x.double(), x.double().sqrt(), 1 / x.double()):
        nearest = exact.float()
        up = torch.where(nearest.double() < exact, torch.nextafter(nearest, torch.tensor(math.inf)), nearest)
        down = torch.where(nearest.double() > exact, torch.nextafter(nearest, torch.tensor(-math.inf)), nearest)
        found += (up - down).tolist()
    return found


def rounded(x: torch.Tensor, dtype: torch.dtype, up: bool) -> torch.Tensor:
    """To the next value of a narrow float that is no less (or no more)."""
    near = x.to(dtype)
    wrong = near.double() < x if up else near.double() > x
    far = torch.full_like(near, math.inf if up else -math.inf)
    return torch.where(wrong, torch.nextafter(near, far), near).float()


def narrow() -> list[list[float]]:
    x = (given()[:16] / 8 + torch.tensor(0.3)).float()
    half, bf16 = torch.float16, torch.bfloat16
    found: list[torch.Tensor] = []
    h, b, h2, b2 = (v.float() for v in (x.to(half), x.to(bf16), (2 * x).to(half), (2 * x).to(bf16)))
    for one, dtype in ((h, half), (b, bf16)):
        found += [one.tanh().to(dtype).float()]
    found += [h.tanh() + 2 * h2.tanh(), b.tanh() + 2 * b2.tanh()]
    fused = [(v.double().square() - 0.25).clamp(min=0).to(t).float() for v, t in ((h, half), (b, bf16))]
    high = [(v.double().square() - 0.25).clamp(min=0).to(t).float() for v, t in ((h2, half), (b2, bf16))]
    found += [*fused, fused[0] + 2 * high[0], fused[1] + 2 * high[1]]
    found += [v.round() + 10 * v.ceil() + 100 * v.trunc() + 1000 * v.floor() for v in (h, b)]
    third = (x / 3).double()
    found += [rounded(third, dtype, True) - rounded(third, dtype, False) for dtype in (half, bf16)]
    odd = torch.tensor([(1 if t % 2 else -1) * (4097 + 4 * t) for t in range(16)]).double()
    zero = [torch.where(odd > 0, rounded(odd, dtype, False), rounded(odd, dtype, True)) for dtype in (half, bf16)]
    found += [rounded(odd, half, True) - 4096 + 8192 * (zero[0] - 4096)]
    found += [rounded(odd, bf16, False) + 8192 * (zero[1] - 4096)]
    found += [(x > 0.5).float() + 10 * (torch.arange(16) < 7)]
    found += [(h > 0.5).float() + 2 * (h2 > 0.5) + 4 * (b > 0.5) + 8 * (b2 > 0.5)]
    return [v.tolist() for v in found]


def pair(t: int) -> float:
    return float(given()[t] + given()[t ^ 1])


def product(m: int, n: int, k: int, a_rows: bool, b_rows: bool) -> list[float]:
    flat = torch.arange(512)
    a, b = given()[flat % 64][: m * k], given()[(flat * 7 + 3) % 64][: k * n]
    a = a.view(m, k) if a_rows else a.view(k, m).t()
    b = b.view(k, n) if b_rows else b.view(n, k).t()
    return (a @ b + 1).t().reshape(-1).tolist()


def doubled() -> list[float]:
    exact = torch.tensor(product(8, 8, 4, True, False), dtype=torch.float64) / 3
    return [*exact.float().tolist(), *(exact - exact.float()).float().tolist()]


def saturated() -> list[int]:
    sums = torch.tensor(product(16, 16, 16, True, False)).long().view(16, 16).t() - 1
    ends = torch.tensor([0x7FFFFFF0 if i % 2 else -0x7FFFFFF0 for i in range(256)]).view(16, 16)
    return [v & U32 for v in (sums + ends).clamp(-(2**31), 2**31 - 1).t().reshape(-1).tolist()]


SHARES = [64 * v for v in (9.0, 18.0, 3.0, 4.0, 2.0, 4.0)]
WANTED = {
    "recursion": lambda: by_thread(lambda t, x: math.factorial(t % 8)),
    "structs": lambda: by_thread(structs),
    "callers_locals": lambda: by_thread(lambda t, x: t % 4 + 1),
    "shared_in_a_function": lambda: given()[:64].flip(0).tolist(),
    "function_pointers": lambda: by_thread(lambda t, x: x**3 if t % 2 else x**2),
    "virtual_functions": lambda: by_thread(lambda t, x: x**2 if t % 2 else 3 * x**2),
    "exit_in_a_function": lambda: by_thread(lambda t, x: 1 if t > 40 else 2),
    "doubles": lambda: by_thread(doubles),
    "prints": lambda: [5.0],
    "heap": lambda: by_thread(lambda t, x: 3 * x),
    "wide_integers": lambda: by_thread(wide_integers),
    "carries": lambda: by_thread(carries),
    "bytes_dotted": lambda: by_thread(bytes_dotted),
    "eight_bits": eight_bits,
    "directed": ulps,
    "narrow": narrow,
    "vector_atomics": lambda: SHARES,
    "some_before_all": lambda: [pair(t) if t % 32 < 6 else float(given()[t]) for t in range(64)],
    "bulk_reduction": lambda: given()[:64].tolist(),
    "grid_sync": lambda: given()[: 4 * 64].view(4, 64).flip(0).reshape(-1).tolist(),
    "wmma_half": lambda: product(16, 16, 16, True, False),
    "wmma_half_sums": lambda: product(16, 16, 16, False, True),
    "wmma_wide": lambda: product(32, 8, 16, True, True),
    "wmma_bf16": lambda: product(8, 32, 16, False, False),
    "wmma_tf32": lambda: product(16, 16, 8, True, False),
    "wmma_bytes": lambda: product(16, 16, 16, True, False),
    "wmma_bytes_saturated": saturated,
    "wmma_doubles": doubled,
}
COOPERATIVE = {"grid_sync": {"grid": 4, "cooperative": True}, "grid_without_sync": {"grid": 4, "cooperative": True}}


def all_names() -> list[str]:
    return names("rare.cu")


def test_every_kernel_is_run():
    assert sorted({*WANTED, *FAILING}) == sorted(all_names())


@pytest.mark.parametrize("seed", (0, 5))
@pytest.mark.parametrize("kernel", WANTED)
def test_what_comes_out(kernel, seed, capfd):
    out, _, counters = run("rare.cu", kernel, N, seed=seed, **COOPERATIVE.get(kernel, {}))
    wanted = WANTED[kernel]()
    if isinstance(wanted[0], int) and max(wanted) > 1000000:
        assert [v & U32 for v in counters[: len(wanted)].tolist()] == wanted
    elif kernel == "narrow":
        rows = out.view(16, 16)
        assert torch.allclose(rows[:4], torch.tensor(wanted[:4]), rtol=2**-7)  # tanh.approx of bf16 is good to 2^-8
        assert rows[4:].tolist() == wanted[4:]
    elif kernel == "doubles":
        assert torch.allclose(out[:64], torch.tensor(wanted), rtol=1e-6)
    else:
        assert out[: len(wanted)].tolist() == wanted
    if kernel == "prints":
        assert capfd.readouterr().err == "-7  2.50 text|1099511627776 ff%\n"
    if kernel == "vector_atomics":
        assert out[8:9].view(torch.float16).tolist() == [256.0, 256.0]


@pytest.mark.parametrize("kernel", FAILING)
def test_what_must_fail(kernel):
    with pytest.raises(SimulationError) as caught:
        run("rare.cu", kernel, N, **COOPERATIVE.get(kernel, {}))
    kind, message = FAILING[kernel]
    first = caught.value.reports[0]
    assert first.kind == kind and message in first.message and "rare.cu:" in first.message


def test_a_grid_that_waits_for_itself_must_be_launched_so():
    with pytest.raises(SimulationError, match="trap"):
        run("rare.cu", "grid_sync", N, grid=4)
    with pytest.raises(SimulationError, match="at most"):
        run("rare.cu", "grid_sync", N, grid=5000, cooperative=True)


def test_every_line_of_the_rare_table_is_used():
    used = set()
    module = parse(compiled("rare.cu").code.decode())
    for body in [*(k.body for k in module.kernels), *(f.body for f in module.functions.values())]:
        used |= {find_line(s)[0].syntax for s in body.statements() if not s.opcode.startswith(("ret", "call"))}
    unused = {line.syntax for line in instructions_rare.INSTRUCTIONS} - used
    assert {u.partition(" ")[0] for u in unused} <= TRIED_ELSEWHERE


TRIED_ELSEWHERE = {
    "cp.reduce.async.bulk.tensor.AXES.global.shared::cta.add{.tile}.bulk_group.HINT",  # test_hopper.py
}


def test_a_kernel_that_nobody_launches_may_need_what_is_not_there(tmp_path):
    from bench.simulate import run_ptx

    good = ".visible .entry good() { ret; }"
    bad = ".visible .entry bad() { .reg .f32 %f<3>; frobnicate.f32 %f1, %f2; ret; }"
    text = f".version 8.5\n.target sm_90a\n.address_size 64\n{good}\n{bad}\n"
    run_ptx(text, "good", (1, 1, 1), (1, 1, 1), 0, [])
    with pytest.raises(UnknownInstruction, match="frobnicate"):
        run_ptx(text, "bad", (1, 1, 1), (1, 1, 1), 0, [])
