"""Bounds of calls: by hand for a made-up kernel, and what must hold for all that are committed."""

from dataclasses import fields, replace

import pytest

from bench.gpu import bounds, bounds_page, units
from bench.machine import limits as rates
from bench.machine.limits import H200

M, N, K = 65536, 2304, 768  # qkv's
TILES = (M // 128) * (N // 128)


def kernel(**counts: dict[str, float]) -> units.Entry:
    """A kernel of one launch with a tile of 128 x 128 each; what is not given was counted as nothing."""
    facts = dict(launches=1, items=TILES, threads=128, registers=128, shared_bytes=0, resident=2)
    return {**facts, "counts": {name: counts.get(name, {}) for name in units.COUNTS}}


def entry_of(kernels: dict[str, units.Entry], layer: str, phase: str, name: str) -> units.Entry:
    """A variant's entry, with samples at three small shapes that have these constants for items and work."""
    shape, call = units.shape_of(layer, phase, name), units.call_name(phase, name)
    rest = {"work": units.work(layer, shape), "side": 0, "before": 0}
    samples: units.Entry = {}
    for key, items, work in (("a", 4, 1000), ("b", 8, 4000), ("c", 8, 3000)):
        samples[key] = {}
        for kernel_name, facts in kernels.items():
            counts = {n: c.get("items", 0) * items + c.get("work", 0) * work for n, c in facts["counts"].items()}
            if facts.get("odd"):
                counts[facts["odd"]] += items**3
            samples[key][kernel_name] = {"items": items, "work": work, "side": 0, "before": 0, "counts": counts}
    return {
        "samples": samples,
        "calls": {call: {"kernels": {k: {**f, **rest} for k, f in kernels.items()}, "small": [*"abc"]}},
    }


def of(kernels: dict[str, units.Entry], layer: str = "matmul", name: str = "qkv") -> bounds.Bound:
    return bounds.bound(layer, "cuda.made_up", "forward", name, entry_of(kernels, layer, "forward", name))


def test_a_bound_is_the_largest_resource_of_each_kernel_and_the_sum_of_kernels():
    slow = kernel(wgmma_flops={"work": 2.0}, shared_wavefronts={"items": 1000.0, "work": 0.001}, special={"items": 1.0})
    imbalance = 70 * 132 / TILES  # 9216 tiles: one multiprocessor has 70
    products = 2 * M * N * K / 989.4e12 * imbalance
    wavefronts = (1000 * TILES + 0.001 * M * N * K) / (132 * 1.98e9) * imbalance
    found = of({"slow": slow})
    assert found.parts[0].seconds[bounds.TENSOR] == pytest.approx(products)
    assert found.seconds == pytest.approx(wavefronts) and wavefronts > products and found.set_by == bounds.SHARED
    twice = of({"slow": slow, "again": slow})
    assert twice.seconds == pytest.approx(2 * wavefronts)
    assert found.parts[0].ends == pytest.approx(1000 * TILES / (1000 * TILES + 0.001 * M * N * K))
    assert found.in_turn > found.seconds


def test_products_by_mma_have_a_longer_bound_than_by_wgmma():
    by_mma, by_wgmma = of({"k": kernel(mma_flops={"work": 2.0})}), of({"k": kernel(wgmma_flops={"work": 2.0})})
    assert by_mma.seconds == pytest.approx(by_wgmma.seconds / 0.68) and by_mma.set_by == bounds.TENSOR


def test_a_call_is_never_below_its_floor():
    nothing = of({"k": kernel()})
    assert nothing.seconds == nothing.floor == 2 * M * N * K / 989.4e12 and nothing.set_by == bounds.TENSOR
    elements = {"B": 1, "T": 1, "C": 768, "eps": 1e-5, "dresidual": True}
    assert bounds.floor("layernorm", "forward", elements)[1] == bounds.MEMORY


def test_an_uneven_call_and_several_launches_have_no_imbalance():
    slow = kernel(fp32={"items": 1.0})
    causal = of({"k": {**slow, "items": 133}}, "attention", "")
    assert causal.parts[0].imbalance == 1 and of({"k": {**slow, "items": 133}}).parts[0].imbalance > 1.9
    assert of({"k": {**slow, "items": 133, "launches": 2}}).parts[0].imbalance == 1


def test_what_was_not_counted_takes_nothing_and_is_not_the_best():
    full = kernel(wgmma_flops={"work": 2.5})
    low, high = of({"k": {**full, "odd": "wgmma_flops"}}), of({"k": full})
    assert low.seconds < high.seconds and not low.complete and high.complete
    assert bounds.best([low, high]) is high and bounds.best([low]) is None
    almost = of({"k": {**full, "odd": "special"}})
    assert not almost.complete and bounds.best([low, almost]) is almost, "its products are known"


# --- what is committed ---


@pytest.fixture(scope="module")
def committed() -> list[bounds.Bound]:
    return bounds.bounds(units.read())


def test_no_bound_is_below_the_floor_or_above_a_slower_machines(committed):
    """Half as fast in everything: every bound is twice as long. Twice as fast in one thing: none is longer."""
    half = replace(H200, **{f.name: replace(x, value=x.value / 2) for f, x in rate_limits()})
    for before, slow in zip(committed, bounds.at(half, committed), strict=True):
        assert before.seconds >= before.floor > 0
        # Clock and rates a cycle are both halved.
        assert slow.floor == pytest.approx(2 * before.floor) and slow.seconds >= 2 * before.seconds * (1 - 1e-12)
    for _, limit in rate_limits():
        name = next(f.name for f in fields(H200) if getattr(H200, f.name) is limit)
        faster = replace(H200, **{name: replace(limit, value=2 * limit.value)})
        pairs = zip(committed, bounds.at(faster, committed), strict=True)
        assert all(fast.seconds <= before.seconds for before, fast in pairs), name


def rate_limits():
    return [(f, getattr(H200, f.name)) for f in fields(H200) if f.name != "multiprocessors"]


def test_no_naive_kernel_has_a_lower_bound_than_the_best(committed):
    for b in (b for b in committed if b.variant.endswith(".naive") and b.complete):
        mine = [c for c in committed if (c.layer, c.phase, c.name) == (b.layer, b.phase, b.name)]
        best = bounds.best(mine)
        assert best and b.seconds >= best.seconds
    naive = [b for b in committed if (b.layer, b.variant) == ("matmul", "cuda.naive") and b.complete]
    assert naive and all(b.seconds > 5 * b.floor for b in naive), "without tensor cores"


def test_products_are_at_least_the_contracts(committed):
    """What tensor cores multiply is the call's products, padding and ones for dbias besides, whatever was scaled."""
    checked = 0
    for b in (b for b in committed if b.layer in bounds.PRODUCTS and b.knows("mma_flops", "wgmma_flops")):
        wanted, done = bounds.products(b.layer, b.phase, units.shape_of(b.layer, b.phase, b.name)), b.multiplied()
        if done:
            checked += 1
            # Of attention's backward two kernels need q k^T and dout v^T; half of the tiles on the diagonal is masked.
            again = 7 / 5 if b.layer == "attention" and b.phase == "backward" else 1
            assert 0.999 * wanted <= done <= 1.2 * again * wanted, (b.variant, b.phase, b.name, done / wanted)
    assert checked > 20


def test_no_measured_rate_is_above_its_bound(committed):
    """Of a real card, quoted: a bound that it beats is a mistake in the model."""
    found = bounds_page.checks(committed)
    assert len(found) > 10 and sum(c.bound is not None for c in found) > 10
    for check in found:
        assert check.bound is None or check.quoted < check.bound, check.what


def test_the_step_is_all_calls_of_the_model(committed):
    calls = bounds.step(committed)
    assert {(c.layer, c.phase, c.name): c.calls for c in calls}["matmul", "backward", "fc"] == 12
    assert sum(c.calls for c in calls if c.layer == "residual_layernorm") == 2 * 24
    total, floor = sum(c.seconds for c in calls), sum(c.calls * c.floor for c in calls)
    # perf.md has 78.18 ms at 790 TFLOP/s and 4.3 TB/s, 2.53 ms of it for bias gradients that are summed by themselves.
    measured = bounds.slower(H200, 4.3e12, 790e12)
    assert sum(c.calls * c.floor for c in bounds.step([], measured)) == pytest.approx(75.65e-3, rel=0.01)
    assert floor <= total < 97e-3
    assert rates.memory_seconds(4.8e12) == 1
