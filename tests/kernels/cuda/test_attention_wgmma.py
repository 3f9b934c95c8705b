"""Attention by TMA and wgmma where no ragged shape leads: items after items, several tiles of keys, sections of heads.
One edit breaks the kernel, and a report or a wrong result tells."""

import pytest
import torch

from bench import simulate
from bench.simulate import limit_time
from kernels import cuda
from kernels.cuda import persistent
from kernels.cuda.attention import wgmma
from reference import attention
from tests.kernels.cuda import tensor_core_attention
from tests.kernels.cuda.tensor_core_attention import Mutant, prepared

pytestmark = pytest.mark.skipif(
    bool(reason := simulate.unavailable("cuda", wgmma.REQUIRES)), reason=reason or "the simulator runs here"
)
MOST_WAVEFRONTS, MOST_SECTORS = 1.05, 1.1  # of the least that is possible
KILLED = 0.9  # of the mutants, at least
SECONDS = 20  # of a launch: one that never ends is found to be that

BASE = dict(B=1, T=300, NH=2, NKV=1, HS=64, causal=True, dtype="bf16")  # 6 items of up to 3 tiles by 2 blocks
WIDE = dict(BASE, HS=128)
FULL = dict(BASE, causal=False, T=200)
SECTIONS = dict(BASE, B=11, T=130, NH=6, NKV=6)  # 66 heads of two tiles each
WHOLE = dict(BASE, T=256)


@pytest.fixture(autouse=True)
def _put_back():
    limit_time(SECONDS)
    yield
    limit_time(0)
    cuda.simulate_with(None)


def verdict(shape, edit=None, seed=0, phase="forward"):
    return tensor_core_attention.verdict(wgmma, phase, shape, edit, seed)


@pytest.mark.parametrize("shape", [BASE, dict(WIDE, NH=4, NKV=2), FULL], ids=["narrow", "wide", "not causal"])
def test_items_after_items(shape):
    assert verdict(shape, seed=1) == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", wgmma.DTYPES)
@pytest.mark.parametrize("T", [1, 63, 64, 65, 127, 128, 129, 192, 193, 385])
def test_tokens_that_fill_no_tile(T, dtype):
    for seed, (HS, causal) in enumerate((HS, causal) for HS in wgmma.HEADS for causal in (True, False)):
        assert verdict(dict(BASE, T=T, HS=HS, causal=causal, dtype=dtype), seed=seed) == "ok"


def test_sections_of_heads(monkeypatch):
    """Each block has many items, and every item is somebody's."""
    monkeypatch.setattr(persistent, "SIMULATED", 5)
    assert verdict(SECTIONS) == "ok"


@pytest.mark.parametrize("edit", ["far_above", "rising"])
def test_scores_that_are_far_or_grow(edit):
    assert verdict(BASE, edit) == "ok"


def test_rows_of_very_unlike_scores():
    """Up to 1e4 on both sides of 0 beside some near 0, in one warp, whose rows are told what to subtract together; and
    the largest grows in some rows, in others not."""
    generator = torch.Generator().manual_seed(3)
    T, HS = 300, 64
    q, k, v = torch.randn(1, T, 3, HS, generator=generator).bfloat16().split(1, dim=2)
    q *= 2.0 ** (torch.arange(T) % 13).view(1, T, 1, 1).bfloat16()
    out, lse = torch.empty(1, T, 1, HS, dtype=torch.bfloat16), torch.empty(1, 1, T)
    cuda.simulate_with(tensor_core_attention.launch(1))
    wgmma.forward(q, k, v, False, out=out, lse=lse)
    want = attention.forward(q.double(), k.double(), v.double(), False)
    assert want["lse"].max() > 1e4
    torch.testing.assert_close(out.double(), want["out"], rtol=2**-7, atol=2**-6)
    torch.testing.assert_close(lse.double(), want["lse"], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("HS", wgmma.HEADS)
def test_lanes_meet_in_no_bank_and_sectors_are_whole(HS):
    arena, _ = prepared(wgmma, "forward", dict(WHOLE, HS=HS))
    with simulate.count() as counts:
        arena.call(wgmma.forward)
    (total,) = (count.total for count in counts)
    assert total.shared_wavefronts <= MOST_WAVEFRONTS * total.ideal_shared_wavefronts
    sectors = total.load_sectors + total.store_sectors
    assert sectors <= MOST_SECTORS * (total.ideal_load_sectors + total.ideal_store_sectors)


def test_heads_of_other_sizes_are_refused():
    assert wgmma.supports(BASE) is True and wgmma.supports(WIDE) is True
    for HS in (32, 80, 96, 256):
        assert wgmma.supports(dict(BASE, HS=HS)) == "head sizes other than 64 and 128"


# --- mutants -----------------------------------------------------------------------------------------------------

USUAL = ((WIDE, None), (FULL, None))  # two stages of keys, and four
RISING = ((BASE, "rising"),)
FAR = ((BASE, "far_above"),)
WIDE_TOO = ((WIDE, None),)

MUTANTS = [
    Mutant("queries_not_waited_for", "        shared.queries.wait(turn);\n"),
    Mutant("first_keys_not_waited_for", "wait(turn);\n        shared.keys.wait(n);\n", "wait(turn);\n"),
    Mutant("keys_not_waited_for", "            shared.keys.wait(n);\n            shared", "            shared"),
    Mutant("values_not_waited_for", "            shared.values.wait(n - 1);\n"),
    Mutant("last_values_not_waited_for", "        shared.values.wait(n);\n"),
    Mutant("first_keys_never_given_back", "        hold(scores);\n        give_back(shared.keys, n);\n"),
    Mutant(
        "keys_never_given_back", "            give_back(shared.keys, n);\n            softmax", "            softmax"
    ),
    Mutant("values_never_given_back", "            give_back(shared.values, n - 1);\n"),
    Mutant("queries_never_given_back", "        give_back(shared.queries, turn);\n"),
    Mutant(
        "queries_given_back_too_soon",
        "        give_back(shared.queries, turn);\n\n",
        "        give_back(shared.queries, turn + 1);\n\n",
    ),
    Mutant(
        "keys_given_back_before_the_products",
        "            wait_products<1>();\n            hold(scores);\n            give_back(shared.keys, n);\n",
        "            give_back(shared.keys, n);\n            wait_products<1>();\n            hold(scores);\n",
    ),
    Mutant(
        "values_given_back_before_the_products",
        "            wait_products<0>();\n            hold(sums);\n            hold(scores);  //",
        "            hold(sums);\n            hold(scores);  //",
    ),
    Mutant("scores_not_waited_for", "            wait_products<1>();\n", "            wait_products<2>();\n"),
    Mutant(
        "first_scores_not_waited_for",
        "        wait_products<0>();\n        hold(scores);",
        "        wait_products<1>();\n        hold(scores);",
    ),
    Mutant(
        "last_sums_not_waited_for",
        "        wait_products<0>();\n        hold(sums);\n        give_back",
        "        wait_products<1>();\n        hold(sums);\n        give_back",
    ),
    Mutant(
        "products_without_a_fence",
        "        in_turn(group, [&] {\n            begin_products();\n",
        "        in_turn(group, [&] {\n",
    ),
    Mutant("loops_products_without_a_fence", "                begin_products();\n"),
    Mutant("last_products_without_a_fence", "        begin_products();\n        add_values"),
    Mutant(
        "scores_never_closed",
        "n)]);\n                close_products();\n                add",
        "n)]);\n                add",
    ),
    Mutant("another_stage_of_values", "values.stage(n - 1)];", "values.stage(n)];"),
    Mutant(
        "another_stage_of_queries", "shared.q[shared.queries.stage(turn)]", "shared.q[shared.queries.stage(turn + 1)]"
    ),
    Mutant("half_the_users", "shared.keys.make(CONSUMERS * GROUP / WARP)", "shared.keys.make(GROUP / WARP)"),
    Mutant("half_the_users_of_q", "queries.make(CONSUMERS * GROUP / WARP)", "queries.make(GROUP / WARP)"),
    Mutant("barriers_not_fenced", "        fence_barriers();\n"),
    Mutant("fewer_bytes", "ring.fill(n, BOXES<HS> * BOX_BYTES)", "ring.fill(n, BOXES<HS> * BOX_BYTES / 2)"),
    Mutant("another_heads_keys", "row % NH / (NH / NKV)", "row % NH"),
    Mutant("keys_from_the_first_on", "(steps - 1 - step) * KEYS", "step * KEYS"),
    Mutant("too_few_tiles", "causal ? tile + 1 : tiles()", "causal ? tile + 1 : tile + 1"),
    Mutant("one_tile_too_few", "causal ? tile + 1 : tiles()", "causal ? max(tile, 1) : tiles()"),
    Mutant("sections_too_long", "size = min(heads - first, SECTION)", "size = SECTION", tried=((SECTIONS, None),)),
    Mutant("sections_forgotten", "row = first + rest % size", "row = rest % size", tried=((SECTIONS, None),)),
    Mutant(
        "shortest_tiles_first",
        "tile = tiles() - 1 - rest / size",
        "tile = rest / size",
        survives="only the order is another",
    ),
    Mutant("second_box_is_the_first", "map, box * LINE, head", "map, 0, head", tried=WIDE_TOO),
    Mutant("keys_of_the_first_box", "matrix_descriptor(k[d / LINE] + d", "matrix_descriptor(k[0] + d", tried=WIDE_TOO),
    Mutant("values_of_the_first_box", "BOX_BYTES, EIGHT_LINES)", "EIGHT_LINES, EIGHT_LINES)", tried=WIDE_TOO),
    Mutant("queries_of_the_other", "q[d / LINE] + first * LINE", "q[d / LINE]"),
    Mutant("strips_of_keys_stand_still", "matrix_descriptor(k[d / LINE] + d % LINE", "matrix_descriptor(k[d / LINE]"),
    Mutant("scores_are_added_to", "16, EIGHT_LINES), d > 0)", "16, EIGHT_LINES), true)"),
    Mutant("strips_of_values_stand_still", "v[0] + i * STRIP * LINE", "v[0]"),
    Mutant("values_not_transposed", "warpgroup_multiply_add<T, HS, true>", "warpgroup_multiply_add<T, HS, false>"),
    Mutant("rows_of_another_warp", "warp_id() % 4 * STRIP + lane_id() / 4; }", "lane_id() / 4; }"),
    Mutant("mask_off_by_one", "own_row() + 1 : work.tokens", "own_row() + 2 : work.tokens"),
    Mutant("mask_off_by_one_at_the_end", "+ 1 : work.tokens;", "+ 1 : work.tokens + 1;"),
    Mutant("no_mask_at_the_end", "if (work.causal || work.tokens % KEYS)", "if (work.causal)"),
    Mutant("mask_of_another_column", " - own_column(), work.causal", ", work.causal"),
    Mutant("lower_rows_see_too_little", "visible + (causal ? e / 2 % 2 * 8 : 0)", "visible"),
    Mutant("lower_rows_see_too_much", "(causal ? e / 2 % 2 * 8 : 0)", "(e / 2 % 2 * 8)"),
    Mutant("a_largest_for_each_lane", "            most[half] = row_reduce(most[half], Max{});\n"),
    Mutant(
        "halves_share_the_largest", "most[e / 2 % 2] = fmaxf(most[e / 2 % 2]", "most[0] = fmaxf(most[0]", tried=RISING
    ),
    Mutant("never_grown", "grown = __any_sync(ALL_LANES, more)", "grown = false", tried=RISING),
    Mutant("grown_by_lane", "__any_sync(ALL_LANES, more)", "more", survives="rows whose lanes agree need no others"),
    Mutant("sums_are_not_scaled", "            softmax.rescale(sums);\n", "", tried=RISING),
    Mutant("denominator_is_not_scaled", "                denominator[half] *= correction[half];\n", "", tried=RISING),
    Mutant("correction_of_the_other_half", "sums[e] *= correction[e / 2 % 2]", "sums[e] *= correction[1 - e / 2 % 2]"),
    Mutant("slack_too_large", "SLACK / scale2;", "40 * SLACK / scale2;", tried=RISING),
    Mutant("never_far", "far |= fabsf", "far &= fabsf", tried=FAR),
    Mutant("far_and_offset", "            offset[0] = offset[1] = 0;\n", "", tried=FAR),
    Mutant("denominator_is_not_added_up", "row_reduce(softmax.denominator[half], Sum{})", "softmax.denominator[half]"),
    Mutant("lse_without_scale", "softmax.largest[half] * softmax.scale +", "softmax.largest[half] +"),
    Mutant("lse_in_base_2", "logf(sum)", "log2f(sum)"),
    Mutant("lse_past_the_end", "query < tokens && lane_id()", "lane_id()"),
    Mutant(
        "lse_of_another_row",
        "first_query + own_row() + half * 8;\n        const float sum",
        "first_query + own_row() + half * 4;\n        const float sum",
    ),
    Mutant("outbox_not_waited_for", "    if (leads) wait_stores_read<0>();\n"),
    Mutant("outbox_not_waited_for_by_others", "    named_barrier(barrier, GROUP);  // what was sent last is read\n"),
    Mutant(
        "outbox_sent_too_soon", "    fence_shared();\n    named_barrier(barrier, GROUP);\n", "    fence_shared();\n"
    ),
    Mutant("outbox_without_a_fence", "    fence_shared();\n"),
    Mutant("outbox_of_both", "<T, HS>(shared.out[group]", "<T, HS>(shared.out[0]"),
    Mutant("one_barrier_for_both", "OUTBOXES + group, out", "OUTBOXES, out"),
    Mutant("another_swizzle_of_the_way_out", "swizzled<8>(line, piece)", "(line * 8 + piece)"),
    Mutant("reciprocal_of_the_other_half", "of[p * 2] * reciprocal[p % 2]", "of[p * 2] * reciprocal[0]"),
    Mutant("stores_never_end", "    if (threadIdx.x % GROUP == 0) wait_stores<0>();\n"),
    Mutant("stores_never_closed", "        close_stores();\n"),
    Mutant("out_of_another_head", "box * LINE, item.head, first", "box * LINE, 0, first"),
    Mutant("second_box_of_out_is_the_first", "store_tile(out, box * LINE,", "store_tile(out, 0,", tried=WIDE_TOO),
    Mutant("nobody_has_the_first_turn", "    if (group == 1) arrive_at_named_barrier(TURNS, THREADS - GROUP);", ""),
    Mutant("turn_is_not_handed_on", "(group + 1) % CONSUMERS, THREADS", "group, THREADS"),
    Mutant(
        "pairs_exchanged",
        "scores[i * 8 + r * 2], scores[i * 8 + r * 2 + 1]",
        "scores[i * 8 + r * 2 + 1], scores[i * 8 + r * 2]",
    ),
]
FEW = ("keys_given_back_before_the_products", "mask_off_by_one", "outbox_without_a_fence", "sums_are_not_scaled")


def marked(mutant: Mutant):
    return pytest.param(mutant, id=mutant.name, marks=[] if mutant.name in FEW else [pytest.mark.slow])


@pytest.mark.parametrize("mutant", [marked(m) for m in MUTANTS])
def test_mutant_is_found(mutant, tmp_path, monkeypatch):
    """By any report, or by a wrong result; those that say that they survive must do so, or the list is wrong."""
    monkeypatch.setattr(wgmma.forward_kernel, "source", mutant.write(wgmma.forward_kernel.source, tmp_path))
    tries = ((shape, edit, seed) for shape, edit in mutant.tried or USUAL for seed in range(3))
    found = next((f for t in tries if (f := verdict(*t)) != "ok"), "")
    assert bool(found) != bool(mutant.survives), found


def test_enough_mutants_are_found():
    """`survives` is held true by test_mutant_is_found, so that counting it is counting the survivors."""
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 40 and set(FEW) <= {m.name for m in MUTANTS}
    assert sum(not m.survives for m in MUTANTS) >= KILLED * len(MUTANTS)
