"""Attention on tensor cores where no ragged shape leads: narrow copies, several sections of heads, rows of very unlike
scores, bank conflicts. One edit breaks the kernels, and a report or a wrong result tells."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bench import simulate
from kernels import cuda
from kernels.cuda.attention import mma
from reference import attention
from tests.kernels.cuda import tensor_core_attention
from tests.kernels.cuda.tensor_core_attention import launch, prepared

pytestmark = pytest.mark.skipif(
    bool(reason := simulate.unavailable("cuda", mma.REQUIRES)), reason=reason or "the simulator runs here"
)
KERNELS = {
    "forward": (mma.forward_kernel,),
    "backward": (mma.statistics_kernel, mma.dkdv_kernel, mma.dq_kernel),
}
BASE = dict(B=1, T=150, NH=2, NKV=1, HS=32, causal=True, dtype="bf16")
SECTIONS = dict(BASE, B=11, T=130, NH=6, NKV=6, HS=16)  # 66 heads of two blocks each
WINDOW = dict(BASE, window=20)
KILLED = 0.9  # of the mutants, at least


@pytest.fixture(autouse=True)
def _put_back():
    yield
    cuda.simulate_with(None)


def verdict(phase: str, shape: dict, edit: str | None = None, seed: int = 0) -> str:
    return tensor_core_attention.verdict(mma, phase, shape, edit, seed)


def test_rows_that_begin_at_8_bytes():
    """… take copies of four elements, and are filled up with zeros."""
    assert verdict("forward", dict(BASE, HS=20)) == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("phase", KERNELS)
# elements of a copy: 8, but for 17 (1), 18 and 98 (2), 20 (4)
@pytest.mark.parametrize("HS", [8, 16, 17, 18, 20, 40, 72, 98, 112, 128])
def test_head_sizes(phase, HS):
    for seed, causal in enumerate((True, False)):
        assert verdict(phase, dict(BASE, HS=HS, T=133, causal=causal), seed=seed) == "ok"


def test_a_window():
    """… less wide than a tile, and than a block: some are left out, some are masked on both sides."""
    assert verdict("forward", WINDOW) == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("edit", [None, "rising", "far_below", "far_above"])
@pytest.mark.parametrize("phase", KERNELS)
def test_windows(phase, edit):
    for seed, window in enumerate((1, 31, 64, 65, 128, 260, 261)):
        assert verdict(phase, dict(BASE, T=261, window=window), edit, seed) == "ok"
        assert verdict(phase, dict(BASE, T=261, HS=80, window=window), edit, seed) == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("phase", KERNELS)
def test_sections_of_heads(phase):
    assert verdict(phase, SECTIONS) == "ok"


def test_scores_that_are_odd_and_far():
    assert verdict("forward", BASE, "far_above") == "ok"


def test_rows_of_very_unlike_scores():
    """Up to 1e4 on both sides of 0 beside some near 0, in one warp, whose rows are told what to subtract together."""
    cuda.simulate_with(launch(1))
    generator = torch.Generator().manual_seed(3)
    T, HS = 150, 32
    q, k, v = torch.randn(1, T, 3, HS, generator=generator).bfloat16().split(1, dim=2)
    q *= 2.0 ** (torch.arange(T) % 13).view(1, T, 1, 1).bfloat16()
    out, lse = torch.empty(1, T, 1, HS, dtype=torch.bfloat16), torch.empty(1, 1, T)
    mma.forward(q, k, v, False, out=out, lse=lse)
    want = attention.forward(q.double(), k.double(), v.double(), False)
    assert want["lse"].max() > 1e4
    torch.testing.assert_close(out.double(), want["out"], rtol=2**-7, atol=2**-6)
    torch.testing.assert_close(lse.double(), want["lse"], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("phase", KERNELS)
def test_lanes_meet_in_no_bank_and_sectors_are_whole(phase):
    arena, _ = prepared(mma, phase, dict(BASE, T=128))
    with simulate.count() as counts:
        arena.call(getattr(mma, phase))
    for total in (count.total for count in counts):
        assert total.shared_wavefronts <= 1.05 * total.ideal_shared_wavefronts
        sectors = total.load_sectors + total.store_sectors
        assert sectors <= 1.1 * (total.ideal_load_sectors + total.ideal_store_sectors)


# --- mutants -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One edit: `old`, which is there once from `kernel` on to the next one's end, becomes `new`.

    A survivor says why it is not found. tried: shapes and edits of the case beside the usual ones.
    """

    kernel: str  # or "": in what all of them use, and then forward is tried
    name: str
    old: str
    new: str = ""
    survives: str = ""
    tried: tuple[tuple[dict, str | None], ...] = ()

    @property
    def phase(self) -> str:
        return "forward" if self.kernel in ("", "forward") else "backward"

    def write(self, folder: Path) -> Path:
        source = mma.forward_kernel.source.read_text()
        names = ["attention_forward", "attention_statistics", "attention_dkdv", "attention_dq"]
        begins = [0, *(source.index(f"    {name}(") for name in names), len(source)]
        which = 1 + names.index(f"attention_{self.kernel}") if self.kernel else 0
        begin, end = begins[which : which + 2]
        part = source[begin:end]
        assert part.count(self.old) == 1, f"{self.name}: {self.old!r} is there {part.count(self.old)} times"
        path = folder / "mma.cu"
        path.write_text(source[:begin] + part.replace(self.old, self.new) + source[end:])
        return path


USUAL = ((BASE, None), (dict(BASE, causal=False, T=100), None))
STAGE = "        wait_copies<0>();\n        __syncthreads();  // this stage is there, and the other one done with\n"
NEXT = "        copy_stage(first_key + KEYS);\n"
WAIT, BARRIER = (
    "        wait_copies<0>();\n",
    "        __syncthreads();  // this stage is there, and the other one done with\n",
)
NARROW = ((dict(BASE, HS=20), None),)
RISING = ((BASE, "rising"),)
FAR = ((BASE, "far_above"),)
WINDOWS = ((WINDOW, None), (dict(WINDOW, T=261), "rising"))


def of_the_loop(kernel: str, following: str = NEXT) -> list[Mutant]:
    return [
        Mutant(kernel, "missing_wait", STAGE, BARRIER),
        Mutant(kernel, "missing_barrier", STAGE, WAIT),
        Mutant(kernel, "copies_before_the_barrier", STAGE + following, following + STAGE),
        Mutant(kernel, "groups_never_closed", "        close_copies();\n    };", "    };"),
    ]


def of_the_window(kernel: str, old: str, new: str, name: str) -> Mutant:
    return Mutant(kernel, f"window_{name}", old, new, tried=WINDOWS)


MUTANTS = [
    *of_the_loop("forward"),
    Mutant("forward", "missing_wait_for_q", "    wait_copies<1>();\n"),
    Mutant("forward", "missing_barrier_for_q", "    wait_copies<1>();\n    __syncthreads();", "    wait_copies<1>();"),
    Mutant(
        "forward", "another_stage", "k_tile = stages + first_key / KEYS % 2", "k_tile = stages + first_key / KEYS % 3"
    ),
    Mutant("forward", "mask_off_by_one", "% 2 >= visible", "% 2 > visible"),
    Mutant(
        "forward", "mask_too_late", "(causal ? own_query + 1 : tokens)) {", "(causal ? own_query + KEYS : tokens)) {"
    ),
    Mutant(
        "forward",
        "no_mask_at_the_end",
        "(causal ? own_query + 1 : tokens)) {",
        "(causal ? own_query + 1 : keys + KEYS)) {",
    ),
    Mutant("forward", "leaves_out_too_much", "first_key >= own_query + OWN<HS>", "first_key >= own_query"),
    Mutant(
        "forward", "too_few_keys", "min(tokens, first_query + QUERIES)", "min(tokens, first_query + QUERIES - KEYS)"
    ),
    Mutant("forward", "a_largest_for_each_lane", "most[i][half] = row_reduce(most[i][half], Max{});", ""),
    Mutant("forward", "sums_are_not_scaled", "sums[i][j][half * 2] *= correction, ", "", tried=RISING),
    Mutant("forward", "denominator_is_not_scaled", "denominator[i][half] *= correction;", "", tried=RISING),
    Mutant("forward", "never_grown", "grown |= most", "grown &= most", tried=RISING),
    Mutant("forward", "never_far", "far |= fabsf", "far &= fabsf", tried=FAR),
    Mutant("forward", "far_and_offset", "offset[i][e / 2] = 0;", "", tried=FAR),
    Mutant("forward", "denominator_is_not_added_up", "row_reduce(denominator[i][half], Sum{})", "denominator[i][half]"),
    Mutant("forward", "lse_without_scale", "largest[i][half] * scale + logf", "largest[i][half] + logf"),
    Mutant("forward", "lse_in_base_2", "logf(sum)", "log2f(sum)"),
    Mutant("forward", "lse_past_the_end", "query < tokens && lane_id()", "lane_id()"),
    Mutant("forward", "every_head_its_own_keys", "kv_head = head / (NH / NKV)", "kv_head = head"),
    Mutant("forward", "p_times_k", "scores, k_tile + TILE_BYTES);", "scores, k_tile);"),
    Mutant("forward", "slack_too_large", "slack = SLACK / scale2", "slack = 40 * SLACK / scale2", tried=RISING),
    Mutant(
        "forward",
        "shortest_tiles_first",
        "(tiles - 1 - turn.tile) * QUERIES",
        "turn.tile * QUERIES",
        survives="only the order is another",
    ),
    Mutant("", "rows_past_the_end_are_read", "first + row + r < tokens", "first + row + r <= tokens"),
    Mutant("", "columns_past_the_end_are_read", "(HS == WIDTH<HS> || column < HS)", "true", tried=NARROW),
    Mutant(
        "", "another_swizzle_of_copies", "swizzled<PIECES<HS>>(line, column / 8)", "(line * PIECES<HS> + column / 8)"
    ),
    Mutant("", "halves_of_an_operand_exchanged", "right[2] = {both[2], both[3]};", "right[2] = {both[3], both[2]};"),
    Mutant("", "left_twice", "parts[i], right);", "parts[i], left);"),
    Mutant("", "another_order_of_matrices", "rows + upper_first<HS>()", "rows + left_first<HS>()"),
    Mutant(
        "", "another_piece", "piece_further<PIECES<HS>>(at, 2 * k) + j * 8", "piece_further<PIECES<HS>>(at, k) + j * 8"
    ),
    Mutant(
        "",
        "another_column_of_v",
        "piece_further<PIECES<HS>>(at, j) + k * STRIP",
        "piece_further<PIECES<HS>>(at, j ^ 2) + k * STRIP",
    ),
    Mutant(
        "",
        "weights_of_other_rows",
        "weights[i][2 * k], weights[i][2 * k + 1]",
        "weights[i][2 * k + 1], weights[i][2 * k]",
    ),
    Mutant("", "stores_past_the_end", "        if (row >= rows) break;\n"),
    Mutant("", "missing_syncwarp_before_the_store", "            }\n    __syncwarp();\n", "            }\n"),
    Mutant("", "another_half_is_stored", "sums[i][j][half * 2 + 1] * scale", "sums[i][j][half * 2] * scale"),
    Mutant("", "sections_forgotten", "head = first + rest % size", "head = rest % size", tried=((SECTIONS, None),)),
    Mutant("", "sections_too_long", "size = min(heads - first, SECTION)", "size = SECTION", tried=((SECTIONS, None),)),
    Mutant("statistics", "lse_in_base_e", "* LOG2_E : 0", ": 0"),
    Mutant("statistics", "another_lanes_delta", "lane_id() % AT_ONCE * LANES", "lane_id() % AT_ONCE"),
    Mutant("statistics", "rows_past_the_end", "if (first + query < tokens)", "if (first + query <= tokens)"),
    Mutant(
        "statistics",
        "no_delta_where_no_query_is",
        "if (row >= heads) return;",
        "if (row >= heads || first >= tokens) return;",
    ),
    *of_the_loop("dkdv", "        copy_stage(step + 1);\n"),
    Mutant("dkdv", "another_stage", "q_tile = stages + step % 2", "q_tile = stages + (step + 1) % 2"),
    Mutant("dkdv", "mask_off_by_one", "if (j * 8 < hidden)", "if (j * 8 <= hidden)"),
    Mutant("dkdv", "no_mask", "if (causal && ahead < OWN<HS> - 1)", "if (causal && ahead < 0)"),
    Mutant("dkdv", "leaves_out_too_much", "ahead + DKDV_SLICE <= 0", "ahead <= 0"),
    Mutant("dkdv", "statistics_of_another_head", "                statistics += padded;\n"),
    Mutant("dkdv", "q_of_another_head", "                from_q.from += q_strides[2];\n"),
    Mutant("dkdv", "dout_of_another_head", "                from_dout.from += HS;\n"),
    Mutant("dkdv", "only_the_first_head", "QUERIES * group;", "QUERIES;"),
    Mutant("dkdv", "masks_of_the_first_head_alone", "        if (first_query >= end) first_query = begin;\n"),
    Mutant(
        "dkdv",
        "lse_of_the_neighbour",
        "scale2, -(e % 2 ? offset.y : offset.x)",
        "scale2, -(e % 2 ? offset.x : offset.y)",
    ),
    Mutant(
        "dkdv",
        "delta_of_the_neighbour",
        "- (e % 2 ? offset.y : offset.x));\n            }\n            add",
        "- offset.x);\n            }\n            add",
    ),
    Mutant("dkdv", "delta_is_lse", "TILE_BYTES + STATISTICS + lane_id()", "TILE_BYTES + lane_id()"),
    Mutant(
        "dkdv",
        "begins_too_late",
        "causal ? first_key / QUERIES * QUERIES : 0",
        "causal ? first_key / QUERIES * QUERIES + QUERIES : 0",
    ),
    Mutant("dkdv", "dv_is_scaled", "dv_sums, ones, tokens", "dv_sums, scales, tokens"),
    Mutant("dkdv", "dk_is_not_scaled", "dk_sums, scales, tokens", "dk_sums, ones, tokens"),
    Mutant("dkdv", "dv_from_q", "(dv_sums, p, dout_tile +", "(dv_sums, p, q_tile +"),
    *of_the_loop("dq"),
    Mutant("dq", "mask_off_by_one", "% 2 >= visible", "% 2 > visible"),
    Mutant("dq", "no_mask", "(causal ? ahead + DQ_SLICE > 1 :", "(causal ? ahead > 0 :"),
    Mutant("dq", "leaves_out_too_much", "ahead >= OWN<HS>) break;", "ahead >= 0) break;"),
    Mutant("dq", "delta_is_lse", "statistics[heads * (long long)padded + i", "statistics[i"),
    Mutant("dq", "dq_is_not_scaled", "scales[i][1] = scale;", "scales[i][1] = 1;"),
    Mutant("dq", "dq_from_v", "(sums, ds, k_tile +", "(sums, ds, k_tile + TILE_BYTES +"),
    of_the_window("forward", "window) / KEYS * KEYS : 0", "window) / KEYS * KEYS + KEYS : 0", "begins_too_late"),
    of_the_window("forward", "e % 2 <= behind)", "e % 2 < behind)", "mask_off_by_one"),
    of_the_window("forward", "first_key < first_seen(own", "first_key + KEYS < first_seen(own", "no_mask"),
    of_the_window("forward", "first_key + KEYS <= first_seen(", "first_key <= first_seen(", "leaves_out_too_much"),
    of_the_window("forward", "blind ? 0 :", "false ? 0 :", "infinity_less_infinity"),
    of_the_window("forward", "!WINDOW || largest", "true || largest", "far_and_nothing_seen"),
    of_the_window("dkdv", "KEYS - 1 + window) : tokens", "window) : tokens", "ends_too_early"),
    of_the_window("dkdv", "if (j * 8 >= seen)", "if (j * 8 > seen)", "mask_off_by_one"),
    of_the_window("dkdv", "ahead + DKDV_SLICE - 1 >= window", "ahead >= window", "mask_too_late"),
    of_the_window("dkdv", "ahead - (OWN<HS> - 1) >= window", "ahead >= window", "leaves_out_too_much"),
    of_the_window("dkdv", "if (coming >= end)", "if (coming >= tokens)", "q_of_more_tiles"),
    of_the_window("dq", "window) / KEYS * KEYS : 0", "window) / KEYS * KEYS + KEYS : 0", "begins_too_late"),
    of_the_window("dq", "e % 2 <= behind)", "e % 2 < behind)", "mask_off_by_one"),
    of_the_window("dq", "ahead + window < OWN<HS>", "ahead + window < 0", "mask_too_late"),
    of_the_window("dq", "ahead + DQ_SLICE <= 1 - window", "ahead <= 1 - window", "leaves_out_too_much"),
]
FEW = ("forward-missing_barrier", "-another_swizzle_of_copies")


def named(mutant: Mutant) -> str:
    return f"{mutant.kernel}-{mutant.name}"


def marked(mutant: Mutant):
    return pytest.param(mutant, id=named(mutant), marks=[] if named(mutant) in FEW else [pytest.mark.slow])


def test_what_mutants_edit_is_there(tmp_path):
    """Most of them are tried by the slow tests alone, long after a source has changed."""
    assert len({mutant.write(tmp_path).read_text() for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", [marked(m) for m in MUTANTS])
def test_mutant_is_found(mutant, tmp_path, monkeypatch):
    """By any report, or by a wrong result; those that say that they survive must do so, or the list is wrong."""
    source = mutant.write(tmp_path)
    for kernel in KERNELS[mutant.phase]:
        monkeypatch.setattr(kernel, "source", source)
    tries = ((shape, edit, seed) for shape, edit in mutant.tried or USUAL for seed in range(3))
    found = next((f for t in tries if (f := verdict(mutant.phase, *t)) != "ok"), "")
    assert bool(found) != bool(mutant.survives), found


def test_enough_mutants_are_found():
    """`survives` is held true by test_mutant_is_found, so that counting it is counting the survivors."""
    assert len({named(m) for m in MUTANTS}) == len(MUTANTS) >= 40 and set(FEW) <= set(map(named, MUTANTS))
    assert sum(not m.survives for m in MUTANTS) >= KILLED * len(MUTANTS)
