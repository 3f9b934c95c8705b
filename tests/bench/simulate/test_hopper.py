"""mbarrier, TMA and wgmma: instructions against plain formulas, planted bugs by their reports, and a card's bits."""

import re
import struct

import pytest
import torch

from bench import simulate
from bench.simulate import SimulationError, UnknownInstruction, count, run_ptx, tensor_map
from bench.simulate.launcher import take_notes
from bench.simulate.ptx import Place, Statement
from bench.simulate.translate import find_line
from kernels import cuda
from kernels.cuda import Argument, Kernel
from kernels.cuda.compiler import compile_source
from tests.bench.simulate import hopper_cases as cases
from tests.bench.simulate.devices import HERE, on_a_card
from tests.bench.simulate.kernels import marked_lines, names
from tests.bench.simulate.matmuls import WGMMA, inputs, is_right, multiply

SEEDS = (0, 1, 6, 7)  # 7 lands every copy at once, 6 half of them


# --- mbarriers and copies --------------------------------------------------------------------------------------------


def phases(device: str) -> list[int]:
    out = torch.full((8,), -1, dtype=torch.int32, device=device)
    cases.run("barrier_phases", [out])
    return out.tolist()


def left(kernel: str, device: str) -> list[int]:
    out = torch.full((5,), -1, dtype=torch.int32, device=device)
    cases.run(kernel, [out])
    return out.tolist()


LEFT = {"barrier_left": [4, 2, 0, 1, 0], "barrier_left_for_good": [1, 0, 0, 1, 0]}


def exchange(kernel: str, device: str, seed: int = 0) -> torch.Tensor:
    given = torch.arange(1, 129, dtype=torch.int32, device=device)
    out = torch.zeros(128, dtype=torch.int32, device=device)
    cases.run(kernel, [out, given], seed)
    return out.cpu()


EXCHANGES = ("barrier_orders_memory", "copies_arrive<true>", "copies_arrive<false>")


def test_phases_end_after_all_arrivals():
    assert phases("cpu") == [0, 1, 0, 1, 0, 1, 1, 0]


@pytest.mark.parametrize("kernel", LEFT)
def test_who_leaves_a_barrier_is_not_waited_for(kernel):
    assert left(kernel, "cpu") == LEFT[kernel]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", EXCHANGES)
def test_barriers_order_memory_and_wait_for_copies(kernel, seed):
    assert exchange(kernel, "cpu", seed).tolist() == list(range(128, 0, -1))


def bulk_round(device: str, seed: int = 0) -> bool:
    given = torch.arange(500, dtype=torch.int32, device=device)
    out = torch.zeros_like(given)
    cases.run("bulk_round", [out, given, 496 * 4], seed)
    return torch.equal(out[:496], given[:496]) and not out[496:].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_bulk_copies_go_in_and_out(seed):
    assert bulk_round("cpu", seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", cases.TILE_CASES, ids=str)
def test_tiles_are_loaded(case, seed):
    assert torch.equal(cases.load_tile(case, seed=seed), cases.loaded(case))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", cases.TILE_CASES, ids=str)
def test_tiles_are_stored(case, seed):
    assert torch.equal(cases.store_tile(case, seed=seed), cases.stored(case))


def test_tiles_of_five_axes_are_loaded():
    case = cases.TileCase((2, 3, 2, 9, 16), (1, 1, 2, 4, 8), (0, 0, 0, 7, 8))
    wanted, tensor = torch.zeros(case.box, dtype=case.dtype), cases.whole_numbers(*case.shape)
    wanted[..., :2, :] = tensor[:1, :1, :, 7:, 8:]  # two of its four rows are there
    assert torch.equal(cases.load_tile(case), wanted.flatten().view(torch.int32))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_tiles_are_added(dtype):
    case = cases.TileCase((20, 16), (16, 8), (9, 5), swizzle=32 if dtype == torch.float32 else 0, dtype=dtype)
    after, before = cases.add_tile(case)
    assert torch.equal(after.float(), before.float() + added(case))


def added(case) -> torch.Tensor:
    """The tile where it lies in the tensor, zero elsewhere."""
    tile = cases.whole_numbers(*case.box, dtype=case.dtype, seed=6)
    whole = torch.zeros([s + 300 for s in case.shape])
    whole[tuple(slice(100 + a, 100 + a + b) for a, b in zip(case.at, case.box, strict=True))] = tile.float()
    return whole[tuple(slice(100, 100 + s) for s in case.shape)]


@pytest.mark.parametrize(
    ("tensor", "box", "swizzle", "problem"),
    [
        (torch.zeros(8), (8,), 0, "axes"),
        (torch.zeros(8, 8), (8,), 0, "axes"),
        (torch.zeros(8, 6), (8, 4), 0, "strides"),
        (torch.zeros(8, 8).T, (8, 8), 0, "contiguous|strides"),
        (torch.zeros(8, 8)[:, 1:], (8, 4), 0, "begin"),
        (torch.zeros(8, 512), (8, 260), 0, "1 to 256"),
        (torch.zeros(8, 8), (8, 3), 0, "row of the box"),
        (torch.zeros(8, 64), (8, 64), 128, "swizzle is wide"),
        (torch.zeros(8, 8), (8, 8), 16, "swizzles are"),
    ],
)
def test_maps_that_the_driver_refuses(tensor, box, swizzle, problem):
    with pytest.raises(ValueError, match=problem):
        tensor_map(tensor[:, :] if tensor.ndim > 1 else tensor, box, swizzle)


def test_traffic_of_a_tile_is_counted_by_its_rows():
    with count() as counts:
        cases.load_tile(cases.TileCase((64, 64), (16, 64), (0, 0)))
    (tile,) = (t for t in counts[0].lines.values() if t.load_requests)
    assert (tile.load_requests, tile.load_sectors, tile.ideal_load_sectors) == (16, 16 * 4, 16 * 4)
    assert tile.shared_requests == 0


def test_the_launcher_passes_maps_by_value():
    shape = WGMMA.shapes[0]
    a, b, _ = inputs(shape)
    out = torch.full((shape[0], shape[1]), float("nan"), dtype=torch.bfloat16)
    maps = [tensor_map(m, (128, 64), 128) for m in (a, b)]
    simulate.install("cuda")
    try:
        kernel = Kernel("matmul_wgmma.cu", "matmul_wgmma")(grid=(2, 1), block=WGMMA.block, shared=WGMMA.shared)
        kernel(*maps, tensor_map(out, (64, 128), const=False), shape[2])
    finally:
        cuda.simulate_with(None)
    assert is_right(out, shape)


def test_a_map_that_is_read_only_cannot_be_stored_through():
    shape = WGMMA.shapes[0]
    a, b, _ = inputs(shape)
    out = torch.zeros(shape[0], shape[1], dtype=torch.bfloat16)
    with pytest.raises(SimulationError, match="read-only input"):
        cases.launch(
            "matmul_wgmma.cu",
            ("matmul_wgmma",),
            "matmul_wgmma",
            [*(cases.Map(m, (128, 64), 128) for m in (a, b)), cases.Map(out, (64, 128)), shape[2]],
            grid=(2, 1, 1),
            block=WGMMA.block,
            shared=WGMMA.shared,
        )


def test_without_the_race_checker(monkeypatch):
    monkeypatch.setenv("LAYERBENCH_SIMULATE_RACES", "0")
    for shape in WGMMA.shapes:
        assert is_right(multiply(WGMMA, shape, seed=1), shape)


@pytest.mark.parametrize(
    ("opcode", "operands"),
    [
        ("cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster", 5),
        ("cp.reduce.async.bulk.tensor.2d.global.shared::cta.min.tile.bulk_group", 2),
        ("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32", 4),
        ("mma.sp.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32", 5),
        ("wgmma.mma_async.sp.sync.aligned.m64n64k32.f32.bf16.bf16", 9),
        ("wgmma.mma_async.sync.aligned.m64n64k256.s32.b1.b1.and.popc", 4),
        ("wgmma.mma_async.sync.aligned.m64n40k32.s32.s8.s8", 4),
        ("wgmma.mma_async.sync.aligned.m64n12k16.f32.bf16.bf16", 8),
        ("tcgen05.mma.cta_group::1.kind::f16", 5),
        ("ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8", 2),
        ("barrier.cluster.arrive.acquire", 0),
        ("mapa.shared::cta.u32", 3),
    ],
)
def test_what_is_not_simulated_stays_unknown(opcode, operands):
    with pytest.raises(UnknownInstruction, match=re.escape(opcode)):
        find_line(Statement(opcode, tuple("x" * operands), Place(), 1))


# --- wgmma -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", (0, 7))
@pytest.mark.parametrize("case", cases.PRODUCT_CASES, ids=str)
def test_products(case, seed):
    assert torch.equal(cases.multiply(case, seed=seed), cases.product_of(case))


@pytest.mark.parametrize("b", (cases.K32, cases.K64, cases.K128), ids=str)
def test_a_tile_inside_of_its_swizzles_pattern_is_read_by_the_address_and_told(b):
    case = cases.ProductCase(cases.BF16, 32, cases.K128, b)
    take_notes()
    assert torch.equal(cases.multiply(case, ahead=8), cases.product_of(case))  # a whole pattern
    assert take_notes() == ()
    ahead = 128 // b.width
    assert torch.equal(cases.multiply(case, ahead=ahead), cases.product_of(case))
    kinds = {note.kind: note.message for note in take_notes()}
    assert "matrix B begins at shared byte" in kinds["swizzle"] and "hopper.cu:" in kinds["swizzle"]


def test_a_pattern_that_begins_with_its_tile_is_read_wrong_inside_of_the_addresses(monkeypatch):
    case = cases.ProductCase(cases.BF16, 32, cases.K128, cases.K128)
    swizzle = cases.swizzle

    def from_the_tile(image, width):
        lines = image.view(torch.uint8).reshape(-1, width)
        first = 1 if len(lines) == case.n + 1 else 0
        return torch.cat([lines[:first].flatten(), swizzle(lines[first:].contiguous(), width)])

    monkeypatch.setattr(cases, "swizzle", from_the_tile)
    assert torch.equal(cases.multiply(case), cases.product_of(case))
    assert not torch.equal(cases.multiply(case, ahead=1), cases.product_of(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.WIDTH_CASES, ids=str)
def test_products_of_every_width(case):
    assert torch.equal(cases.multiply(case), cases.product_of(case))


def test_products_in_f16_and_with_a_negated_operand():
    a, b = cases.whole_numbers(64, 16, seed=7), cases.whole_numbers(16, 16, seed=8)
    got = cases.small_products("products_in_f16", torch.float16, 16).view(torch.float16)
    want = cases.sums_of(-(a.float() @ b.float().T)).half()  # neighbours share a register
    assert torch.equal(got.view(4, 128, 2).transpose(1, 2).reshape(8, 128), want)


def test_narrow_products_of_two_negated_operands():
    a, b = cases.whole_numbers(64, 16, seed=7), cases.whole_numbers(8, 16, seed=8)
    got = cases.small_products("narrow_products", torch.bfloat16, 8).view(torch.float32)
    assert torch.equal(got, cases.sums_of(a.float() @ b.float().T))


BYTE_PRODUCTS = {
    "products_of_s8": (torch.int8, torch.int8, 1),
    "products_of_u8_s8": (torch.uint8, torch.int8, 1),
    "products_of_e4m3": (torch.float8_e4m3fn, torch.float8_e4m3fn, -1),
}


def bytes_of(kernel: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)

    def drawn(rows: int, dtype: torch.dtype) -> torch.Tensor:
        if dtype.is_floating_point:
            return torch.randint(-8, 9, (rows, 32), generator=generator).float().to(dtype)
        ends = torch.iinfo(dtype)
        return torch.randint(ends.min, ends.max + 1, (rows, 32), generator=generator).to(dtype)

    a, b, _ = BYTE_PRODUCTS[kernel]
    return drawn(64, a), drawn(8, b)


@pytest.mark.parametrize("kernel", BYTE_PRODUCTS)
def test_products_of_bytes(kernel):
    a, b = bytes_of(kernel)
    kind = torch.float32 if a.dtype.is_floating_point else torch.int32
    begun = torch.arange(1, 5, dtype=torch.int32).view(kind).view(4, 1)
    wanted = cases.sums_of(BYTE_PRODUCTS[kernel][2] * (a.double() @ b.double().T)).to(kind) + begun
    assert torch.equal(cases.unswizzled(kernel, a, b).view(kind), wanted)


# --- planted bugs ----------------------------------------------------------------------------------------------------

FOUND_AS = {
    "barrier_never_made": "mbarrier",
    "barrier_made_without_a_barrier": "race",
    "barrier_overwritten": "mbarrier",
    "too_many_arrivals": "mbarrier",
    "too_few_arrivals": "deadlock",
    "more_leave_than_came": "mbarrier",
    "completes_without_leave": "mbarrier",
    "tile_not_waited_for": "unfinished copy",
    "too_few_bytes_expected": "unfinished copy",
    "too_many_bytes_expected": "deadlock",
    "wrong_parity": "unfinished copy",
    "misaligned_tile": "misaligned",
    "tile_behind_the_end": "out-of-bounds",
    "not_a_map": "tensor map",
    "tile_stored_without_a_fence": "proxy",
    "tile_written_during_a_copy": "unfinished copy",
    "one_lane_copies_twice": "unfinished copy",
    "products_without_a_proxy_fence": "proxy",
    "products_of_copies_without_a_proxy_fence": "proxy",
    "products_without_a_fence": "wgmma",
    "products_without_a_barrier": "race",
    "matrix_reused_too_early": "race",
    "one_warp_of_four": "deadlock",
    "warps_disagree": "wgmma",
    "sums_changed_without_a_fence": "wgmma",
    "sums_read_before_the_wait": "wgmma",
    "sums_changed_before_the_wait": "wgmma",
    "operand_changed_before_the_wait": "wgmma",
    "matrix_changed_by_who_waits": "wgmma",
}
NOTED_AS = {"operand_made_without_a_fence": "unfenced register"}


def launch(kernel: str, seed: int) -> None:
    binary = compile_source(HERE / "hopper_bugs.cu", (*FOUND_AS, *NOTED_AS), "sm_90a", "ptx")
    matrix = cases.whole_numbers(64, 64)
    given, out = torch.ones(4096, dtype=torch.int32), torch.zeros(128, dtype=torch.int32)
    arguments = [
        Argument("out", struct.pack("<Q", out.data_ptr()), (out,)),
        Argument("in", struct.pack("<Q", given.data_ptr()), (given,), const=True),
        tensor_map(matrix, (16, 64), const=False),
    ]
    shared = 2 * 2048 if "tile" in kernel else 8192
    run_ptx(binary.code.decode(), kernel, (1, 1, 1), (128, 1, 1), shared, arguments, seed=seed)


def reports(kernel: str, seed: int) -> SimulationError:
    with pytest.raises(SimulationError) as caught:
        launch(kernel, seed)
    return caught.value


def test_every_planted_bug_has_its_report():
    assert {*FOUND_AS, *NOTED_AS} == {*names("hopper_bugs.cu")}


@pytest.mark.parametrize("kernel", FOUND_AS)
def test_bug_is_found(kernel):
    error = reports(kernel, seed=0)
    wanted = [r for r in error.reports if r.kind == FOUND_AS[kernel]]
    assert wanted, f"found as {[r.kind for r in error.reports]}: {error}"
    lines = marked_lines("hopper_bugs.cu", kernel)
    assert lines
    assert any(all(re.search(rf"{re.escape(line)}\b", r.message) for line in lines) for r in wanted), (
        f"{lines}: {error}"
    )


@pytest.mark.parametrize("seed", (1, 2, 3))
@pytest.mark.parametrize("kernel", FOUND_AS)
def test_bug_is_found_in_other_orders(kernel, seed):
    assert reports(kernel, seed).reports


@pytest.mark.parametrize("kernel", NOTED_AS)
def test_what_ptxas_waits_for_is_a_note(kernel):
    simulate.take_notes()
    launch(kernel, seed=0)
    (line,) = marked_lines("hopper_bugs.cu", kernel)
    notes = [n.message for n in simulate.take_notes() if n.kind == NOTED_AS[kernel]]
    assert notes and all(line in message for message in notes)


def barrier_notes(fence: str) -> list[str]:
    simulate.take_notes()
    given, out = torch.arange(500, dtype=torch.int32), torch.zeros(500, dtype=torch.int32)
    cases.run(f"bulk_round{fence}", [out, given, 496 * 4])
    return [note.message for note in simulate.take_notes() if note.kind == "unfenced barrier"]


def test_a_barrier_that_the_async_proxy_was_not_shown_is_a_note():
    (note,) = barrier_notes("_unfenced")
    assert re.search(r"hopper\.cu(h)?:\d+", note) and "fence.mbarrier_init or fence.proxy.async" in note
    assert not barrier_notes("")


# --- on a card -------------------------------------------------------------------------------------------------------


@on_a_card
def test_phases_conform():
    assert phases("cuda") == phases("cpu")


@on_a_card
@pytest.mark.parametrize("kernel", EXCHANGES)
def test_exchanges_conform(kernel):
    assert torch.equal(exchange(kernel, "cuda"), exchange(kernel, "cpu"))


@on_a_card
def test_bulk_copies_conform():
    assert bulk_round("cuda")


@on_a_card
@pytest.mark.parametrize("case", cases.TILE_CASES, ids=str)
def test_tiles_conform(case):
    assert torch.equal(cases.load_tile(case, "cuda"), cases.load_tile(case))
    assert torch.equal(cases.store_tile(case, "cuda"), cases.store_tile(case))


@on_a_card
@pytest.mark.parametrize("case", cases.PRODUCT_CASES, ids=str)
def test_products_conform(case):
    assert torch.equal(cases.multiply(case, "cuda"), cases.multiply(case))


@on_a_card
@pytest.mark.parametrize(
    ("kernel", "dtype", "n"), [("products_in_f16", torch.float16, 16), ("narrow_products", torch.bfloat16, 8)]
)
def test_small_products_conform(kernel, dtype, n):
    assert torch.equal(cases.small_products(kernel, dtype, n, "cuda"), cases.small_products(kernel, dtype, n))
