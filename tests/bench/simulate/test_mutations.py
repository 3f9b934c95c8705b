"""Two tensor-core matmuls are right and silent; one edit breaks them, and a report or a wrong result tells."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench.simulate.matmuls import MMA, WGMMA, Matmul, Shape, is_right, multiply, verdict

SEEDS = tuple(range(8))
MUTANT_SEEDS = (0, 1, 2)
KILLED = 0.9  # of the mutants, at least
SHAPES: dict[Matmul, tuple[Shape, ...]] = {
    MMA: (*MMA.shapes, (1, 8, 8), (129, 128, 40)),
    WGMMA: (*WGMMA.shapes, (1, 8, 8), (130, 264, 200)),
}


@dataclass(frozen=True)
class Mutant:
    """One edit: `old`, which the source has once, becomes `new`. A survivor says why it is not found."""

    matmul: Matmul
    name: str
    old: str = ""
    new: str = ""
    less_shared: int = 0
    survives: str = ""

    def write(self, folder: Path) -> Path:
        source = self.matmul.source.read_text()
        assert not self.old or source.count(self.old) == 1, (
            f"{self.name}: {self.old!r} is there {source.count(self.old)} times"
        )
        path = folder / self.matmul.source.name
        path.write_text(source.replace(self.old, self.new) if self.old else source)
        return path


MMA_MUTANTS = [
    Mutant(MMA, "missing_wait", "        wait_copies<STAGES - 2>();\n"),
    Mutant(MMA, "waits_for_one_group_less", "wait_copies<STAGES - 2>", "wait_copies<STAGES - 1>"),
    Mutant(MMA, "missing_barrier", "        __syncthreads();\n"),
    Mutant(
        MMA,
        "copies_before_the_barrier",
        "        __syncthreads();\n        copy(step + STAGES - 1);\n",
        "        copy(step + STAGES - 1);\n        __syncthreads();\n",
    ),
    Mutant(MMA, "copies_into_the_stage_in_use", "copy(step + STAGES - 1);", "copy(step + STAGES);"),
    Mutant(MMA, "groups_never_closed", "        close_copies();\n"),
    Mutant(MMA, "one_copy_ahead_is_missing", "step < STAGES - 1; step++", "step < STAGES - 2; step++"),
    Mutant(
        MMA,
        "unswizzled_read",
        "a_tile + place(row + i * 16 + lane % 16, k * 2 + lane / 16)",
        "a_tile + (row + i * 16 + lane % 16) * DEPTH + (k * 2 + lane / 16) * PIECE",
    ),
    Mutant(
        MMA,
        "unswizzled_write",
        "copy_async_or_zero<16>(to + place(row, piece)",
        "copy_async_or_zero<16>(to + row * DEPTH + piece * PIECE",
    ),
    Mutant(MMA, "wrong_fragment_row_of_a", "lane % 16, k * 2", "lane % 8, k * 2"),
    Mutant(
        MMA,
        "wrong_fragment_row_of_b",
        "lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2",
        "lane / 8 % 2 * 8 + lane % 8, k * 2 + lane / 16",
    ),
    Mutant(MMA, "wrong_half_of_b", "[j % 2 * 2 + 1]}", "[j % 2 * 2]}"),
    Mutant(MMA, "missing_row_bound_of_a_load", "r < rows && c < columns", "c < columns"),
    Mutant(MMA, "missing_depth_bound_of_a_load", "r < rows && c < columns", "r < rows"),
    Mutant(MMA, "missing_row_bound_of_the_store", "if (r < M && c < N)", "if (c < N)"),
    Mutant(MMA, "missing_column_bound_of_the_store", "if (r < M && c < N)", "if (r < M)"),
    Mutant(MMA, "halves_of_the_result_exchanged", "half * 8 + lane / 4", "(1 - half) * 8 + lane / 4"),
    Mutant(MMA, "rows_of_another_width", "(long long)r * N + c)", "(long long)r * COLUMNS + c)"),
    Mutant(
        MMA,
        "mma_without_a_lane",
        "multiply_add<bf16>(sums[i][j], a_part[i], pair);",
        "if (lane != 31) multiply_add<bf16>(sums[i][j], a_part[i], pair);",
    ),
    Mutant(MMA, "half_of_the_depth", "k < DEPTH / 16", "k < DEPTH / 32"),
    Mutant(MMA, "b_of_another_stage", "b_tiles + step % STAGES * B_TILE;", "b_tiles + (step + 1) % STAGES * B_TILE;"),
    Mutant(MMA, "misaligned_source", "(long long)r * columns + c : 0)", "(long long)r * columns + c + 1 : 0)"),
    Mutant(
        MMA,
        "grid_axes_exchanged",
        "first_row = blockIdx.y * ROWS, first_column = blockIdx.x * COLUMNS",
        "first_row = blockIdx.x * ROWS, first_column = blockIdx.y * COLUMNS",
    ),
    Mutant(MMA, "too_little_shared_memory", less_shared=4096),
]

WGMMA_MUTANTS = [
    Mutant(WGMMA, "missing_wait_for_full", "            wait_phase(&full[s], step / STAGES % 2);\n"),
    Mutant(WGMMA, "missing_wait_for_empty", "if (round > 0) wait_phase(&empty[s], (round - 1) % 2);"),
    Mutant(WGMMA, "wrong_parity_of_full", "step / STAGES % 2", "(step / STAGES + 1) % 2"),
    Mutant(WGMMA, "wrong_parity_of_empty", "(round - 1) % 2", "round % 2"),
    Mutant(WGMMA, "parity_never_changes", "step / STAGES % 2", "0"),
    Mutant(WGMMA, "missing_wait_for_products", "            wait_products<0>();\n"),
    Mutant(WGMMA, "waits_for_one_group_less", "wait_products<0>", "wait_products<1>"),
    Mutant(
        WGMMA,
        "stage_released_early",
        "            wait_products<0>();\n            if (t == 0) arrive(&empty[s]);\n",
        "            if (t == 0) arrive(&empty[s]);\n            wait_products<0>();\n",
    ),
    Mutant(WGMMA, "stage_never_released", "            if (t == 0) arrive(&empty[s]);\n"),
    Mutant(WGMMA, "released_by_all_threads", "if (t == 0) arrive(&empty[s]);", "arrive(&empty[s]);"),
    Mutant(WGMMA, "released_by_one_group_of_two", "make_barrier(&empty[s], CONSUMERS);", "make_barrier(&empty[s], 1);"),
    Mutant(WGMMA, "too_small_expectation", "2 * TILE_BYTES)", "TILE_BYTES)"),
    Mutant(WGMMA, "too_large_expectation", "2 * TILE_BYTES)", "2 * TILE_BYTES + 16)"),
    Mutant(WGMMA, "missing_barrier_after_the_barriers_are_made", "    __syncthreads();\n"),
    Mutant(WGMMA, "wrong_swizzle", "k * 16, 16, ATOM));", "k * 16, 16, ATOM, Swizzle::LINES_OF_64));"),
    Mutant(WGMMA, "wrong_stride", "row * DEPTH + k * 16, 16, ATOM)", "row * DEPTH + k * 16, 16, ATOM / 2)"),
    Mutant(WGMMA, "wrong_step_of_k", "b_tiles + s * TILE + k * 16", "b_tiles + s * TILE + k * 32"),
    Mutant(WGMMA, "both_groups_multiply_the_same_rows", "s * TILE + row * DEPTH", "s * TILE"),
    Mutant(WGMMA, "one_stage_for_all_tiles_of_b", "load_tile(b_tiles + s * TILE", "load_tile(b_tiles"),
    Mutant(WGMMA, "coordinates_exchanged", "&a, step * DEPTH, first_row,", "&a, first_row, step * DEPTH,"),
    Mutant(WGMMA, "products_never_closed", "            close_products();\n"),
    Mutant(WGMMA, "missing_fence_of_products", "            begin_products();\n"),
    Mutant(WGMMA, "missing_fence_between_proxies", "        fence_shared();\n"),
    Mutant(WGMMA, "missing_barrier_before_the_store", 'asm volatile("bar.sync %0, 128;" ::"r"(1 + part) : "memory");'),
    Mutant(WGMMA, "store_not_waited_for", "            wait_stores_read<0>();\n"),
    Mutant(WGMMA, "stores_never_closed", "            close_stores();\n"),
    Mutant(WGMMA, "wrong_fragment_row", "warp * 16 + half * 8 + lane / 4", "warp * 16 + half + lane / 4 * 2"),
    Mutant(WGMMA, "barriers_overlap_the_result", "(out_tiles + ROWS * COLUMNS)", "(out_tiles)"),
    Mutant(WGMMA, "too_little_shared_memory", less_shared=4096),
    Mutant(
        WGMMA,
        "new_barriers_not_fenced",
        "        fence_barriers();\n",
        survives="barriers are known to the TMA at once here",
    ),
    Mutant(
        WGMMA,
        "registers_not_given_back",
        "        give_registers_back<40>();\n",
        survives="registers are not counted",
    ),
]
# `make test` tries every fourth one: each is compiled for itself alone.
MUTANTS = [
    pytest.param(m, id=f"{m.matmul.name}-{m.name}", marks=[pytest.mark.slow] if i % 4 else [])
    for i, m in enumerate([*MMA_MUTANTS, *WGMMA_MUTANTS])
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("matmul", (MMA, WGMMA), ids=lambda m: m.name)
def test_the_whole_kernel_is_right_and_silent(matmul, seed):
    for shape in SHAPES[matmul]:
        assert is_right(multiply(matmul, shape, seed), shape), shape


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_found(mutant, tmp_path):
    """By any report, or by a wrong result; those that say that they survive must do so, or the list is wrong."""
    found = verdict(mutant.matmul, MUTANT_SEEDS, mutant.write(tmp_path), mutant.matmul.shared - mutant.less_shared)
    assert bool(found) != bool(mutant.survives), found


@pytest.mark.parametrize("mutants", (MMA_MUTANTS, WGMMA_MUTANTS), ids=("mma", "wgmma"))
def test_enough_mutants_are_found(mutants, tmp_path):
    """`survives` is held true by test_mutant_is_found, so that counting it is counting the survivors."""
    assert len({mutant.write(tmp_path).read_text() for mutant in mutants if mutant.old}) >= 12
    assert sum(not m.survives for m in mutants) >= KILLED * len(mutants)
