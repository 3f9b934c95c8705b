"""Attention by TMA and wgmma where no ragged shape leads: items after items, several tiles of keys, sections of heads.
One edit breaks the kernels, and a report or a wrong result tells."""

from dataclasses import replace

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


def falling(tensors, shape):
    """Every key's score is below all before it, and the kernel comes to the last keys first: its running maximum moves
    with each tile, in every other 8 rows half as far."""
    for name in ("q", "k"):
        tensors[name].zero_()
    rows = torch.arange(shape["T"]).view(-1, 1)
    tensors["q"][..., 0] = 32.0 + rows // 8 % 2 * 32.0
    tensors["k"][..., 0] = -rows / 8


@pytest.fixture(autouse=True)
def _put_back(monkeypatch):
    monkeypatch.setitem(attention.CASES, "falling", falling)
    limit_time(SECONDS)
    yield
    limit_time(0)
    cuda.simulate_with(None)


def verdict(shape, edit=None, seed=0, phase="forward"):
    return tensor_core_attention.verdict(wgmma, phase, shape, edit, seed)


@pytest.mark.parametrize("shape", [BASE, dict(WIDE, NH=4, NKV=2), FULL], ids=["narrow", "wide", "not causal"])
def test_items_after_items(shape):
    assert verdict(shape, seed=1) == "ok"


def test_backwards_items_after_items():
    assert verdict(BASE, seed=1, phase="backward") == "ok"


def test_a_head_that_fills_no_line():
    assert verdict(dict(BASE, T=130, NH=1, HS=80)) == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("HS", [48, 64, 96, 128])
@pytest.mark.parametrize("dtype", wgmma.DTYPES)
def test_tokens_that_fill_no_tile(HS, dtype, phase):
    for seed, T in enumerate((1, 63, 64, 65, 127, 128, 129, 192, 193, 385)):
        for causal in (True, False):
            shape = dict(BASE, T=T, HS=HS, NH=3, causal=causal, dtype=dtype)
            assert verdict(shape, seed=seed, phase=phase) == "ok", shape


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_sections_of_heads(phase, monkeypatch):
    """Each block has many items, and every item is somebody's."""
    monkeypatch.setattr(persistent, "SIMULATED", 5)
    assert verdict(SECTIONS, phase=phase) == "ok"


@pytest.mark.parametrize("edit", ["far_above", "falling"])
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


@pytest.mark.parametrize(
    ("phase", "HS"),
    [
        ("forward", 64),
        ("backward", 64),
        *(pytest.param(phase, 128, marks=pytest.mark.slow) for phase in ("forward", "backward")),
    ],
)
def test_lanes_meet_in_no_bank_and_sectors_are_whole(phase, HS):
    arena, _ = prepared(wgmma, phase, dict(WHOLE, HS=HS))
    with simulate.count() as counts:
        arena.call(getattr(wgmma, phase))
    totals = [count.total for count in counts]
    assert len(totals) == (1 if phase == "forward" else 3)
    for total in totals:
        assert total.shared_wavefronts <= MOST_WAVEFRONTS * total.ideal_shared_wavefronts
        sectors = total.load_sectors + total.store_sectors
        assert sectors <= MOST_SECTORS * (total.ideal_load_sectors + total.ideal_store_sectors)


def test_heads_of_other_sizes_are_refused():
    for HS in (16, 48, 64, 80, 96, 128):
        assert wgmma.supports(dict(BASE, HS=HS)) is True
    for HS in (8, 40, 100, 144, 256):
        assert wgmma.supports(dict(BASE, HS=HS)) == "head sizes that are no multiple of 16 up to 128"


# --- mutants -----------------------------------------------------------------------------------------------------

USUAL = ((WIDE, None), (FULL, None))  # two stages of keys, and four
FALLING = ((BASE, "falling"),)
FAR = ((BASE, "far_above"),)
WIDE_TOO = ((WIDE, None),)
PART_OF_A_LINE = ((dict(BASE, HS=80), None),)
MANY = ((dict(WIDE, T=128, NH=12, NKV=12), None),)  # items, of which the first consumer leaves out one of two tiles
PARTS = {  # of the source
    "common": ("", "// ---- forward"),
    "forward": ("// ---- forward", "// ---- backward"),
    "walk": ("// ---- backward", "// dk = scale ds^T q"),
    "dkdv": ("// dk = scale ds^T q", "// dq = scale ds k"),
    "dq": ("// dq = scale ds k", "// The block's shared memory"),
    "end": ("// The block's shared memory", ""),
}
KERNELS = {"forward": wgmma.forward_kernel, "dkdv": wgmma.dkdv_kernel, "dq": wgmma.dq_kernel}


def mutants(kernel, *edits, part=""):
    made = [Mutant(kernel, *edit[:3], **(edit[3] if len(edit) > 3 else {})) for edit in edits]
    return [replace(mutant, part=part) for mutant in made]


FORWARD = [
    *mutants(
        "forward",
        ("rest_of_lines_not_cleared", "    clear_rest<HS>(shared.out[group]);\n", "", dict(tried=PART_OF_A_LINE)),
        ("queries_not_waited_for", "        shared.queries.wait(turn);\n"),
        ("first_keys_not_waited_for", "wait(turn);\n        shared.keys.wait(n);\n", "wait(turn);\n"),
        ("keys_not_waited_for", "            shared.keys.wait(n);\n            shared", "            shared"),
        ("values_not_waited_for", "            shared.values.wait(n - 1);\n"),
        ("last_values_not_waited_for", "        shared.values.wait(n);\n"),
        ("first_keys_never_given_back", "            hold(some);\n            give_back(shared.keys, n);\n"),
        ("keys_never_given_back", "            give_back(shared.keys, n);\n            softmax", "            softmax"),
        ("values_never_given_back", "            give_back(shared.values, n - 1);\n"),
        ("queries_never_given_back", "        give_back(shared.queries, turn);\n"),
        ("scores_not_waited_for", "            wait_products<1>();\n", "            wait_products<2>();\n"),
        (
            "first_scores_not_waited_for",
            "            wait_products<0>();\n            hold(some);",
            "            wait_products<1>();\n            hold(some);",
        ),
        (
            "sums_not_waited_for",
            "            wait_products<0>();\n            hold(sums);",
            "            wait_products<1>();\n            hold(sums);",
        ),
        (
            "last_sums_not_waited_for",
            "        wait_products<0>();\n        hold(sums);\n        give_back",
            "        wait_products<1>();\n        hold(sums);\n        give_back",
        ),
        (
            "products_without_a_fence",
            "begin_products();\n                multiply_rows<HS>(some",
            "multiply_rows<HS>(some",
        ),
        (
            "scores_never_closed",
            "n)]);\n                close_products();\n                add",
            "n)]);\n                add",
        ),
        (
            "another_stage_of_values",
            "const auto& v = shared.v[shared.values.stage(n - 1)];",
            "const auto& v = shared.v[shared.values.stage(n)];",
        ),
        (
            "another_stage_of_queries",
            "shared.q[shared.queries.stage(turn)];",
            "shared.q[0];",
            dict(tried=((BASE, None),)),
        ),
        ("half_the_users", "shared.keys.make(CONSUMERS * GROUP / WARP)", "shared.keys.make(GROUP / WARP)"),
        ("half_the_users_of_q", "queries.make(CONSUMERS * GROUP / WARP)", "queries.make(GROUP / WARP)"),
        (
            "new_barriers_not_fenced",
            "        fence_barriers();\n",
            "",
            dict(survives="barriers are known to the TMA at once here"),
        ),
        ("fewer_bytes", "constexpr int BYTES = sizeof(shared.k[0]);", "constexpr int BYTES = sizeof(shared.k[0]) / 2;"),
        ("mask_off_by_one", "own_row() + 1 : work.tokens", "own_row() + 2 : work.tokens"),
        ("mask_off_by_one_at_the_end", "+ 1 : work.tokens;", "+ 1 : work.tokens + 1;"),
        ("no_mask_at_the_end", "if (work.causal || work.tokens % KEYS)", "if (work.causal)"),
        ("mask_of_another_column", " - own_column(), work.causal", ", work.causal"),
        ("half_a_tile_for_all", "work.causal && group == 0", "work.causal"),
        ("half_a_tile_where_all_is_seen", "work.causal && group == 0", "group == 0"),
        ("sums_are_not_scaled", "            softmax.rescale(sums);\n", "", dict(tried=FALLING)),
        ("denominator_is_not_added_up", "row_reduce(softmax.denominator[half], Sum{})", "softmax.denominator[half]"),
        ("lse_without_scale", "softmax.largest[half] * scale +", "softmax.largest[half] +"),
        ("lse_in_base_2", "logf(sum)", "log2f(sum)"),
        ("lse_past_the_end", "query < work.tokens && lane_id()", "lane_id()"),
        (
            "lse_of_another_row",
            "first_query + own_row() + half * 8;\n            const float sum",
            "first_query + own_row() + half * 4;\n            const float sum",
        ),
        ("outbox_not_claimed", "        claim(OUTBOXES + group);\n"),
        ("outbox_of_both", "send_rows(shared.out[group]", "send_rows(shared.out[0]"),
        ("stores_never_end", "    if (threadIdx.x % GROUP == 0) wait_stores<0>();\n"),
        (
            "out_of_another_head",
            "item.batch, item.head, first_query,\n                  work",
            "item.batch, 0, first_query,\n                  work",
        ),
        ("nobody_has_the_first_turn", "    if (group == 1) arrive_at_named_barrier(TURNS, THREADS - GROUP);"),
        ("turn_is_not_handed_on", "(group + 1) % CONSUMERS, THREADS", "group, THREADS"),
        ("q_of_another_head", "item.batch, item.head, item.first_query", "item.batch, item.kv_head, item.first_query"),
    ),
    *mutants(
        "forward",
        ("another_heads_keys", "head / (NH / NKV)", "head"),
        ("keys_from_the_first_on", "(steps - 1 - step) * KEYS", "step * KEYS"),
        ("too_few_tiles", "steps = causal ? tile + 1 : tiles()", "steps = tile + 1"),
        ("one_tile_too_few", "steps = causal ? tile + 1 : tiles()", "steps = causal ? max(tile, 1) : tiles()"),
        ("sections_too_long", "size = min(heads - first, SECTION)", "size = SECTION", dict(tried=((SECTIONS, None),))),
        ("sections_forgotten", "row = first + rest % size", "row = rest % size", dict(tried=((SECTIONS, None),))),
        (
            "shortest_tiles_first",
            "tile = tiles() - 1 - turn.tile",
            "tile = turn.tile",
            dict(survives="only the order is another"),
        ),
        (
            "second_box_is_the_first",
            "map, box * LINE, head, row, batch, full",
            "map, 0, head, row, batch, full",
            dict(tried=WIDE_TOO),
        ),
        ("boxes_of_others_stand_still", "(d / LINE * OTHERS_BOX + d % LINE)", "(d % LINE)", dict(tried=WIDE_TOO)),
        ("strips_of_others_stand_still", "(d / LINE * OTHERS_BOX + d % LINE)", "(d / LINE * OTHERS_BOX)"),
        ("strips_of_own_stand_still", "(d / LINE * OWN_BOX + d % LINE)", "(d / LINE * OWN_BOX)"),
        ("queries_of_the_other", "own[0] + first * LINE", "own[0]"),
        ("products_are_added_to", "* sizeof(T)), d > 0);", "* sizeof(T)), true);"),
        (
            "another_distance_of_boxes",
            "rows[0], BOX * sizeof(T), EIGHT",
            "rows[0], EIGHT_LINES, EIGHT",
            dict(tried=WIDE_TOO),
        ),
        ("strips_of_rows_stand_still", "further(b, i * STRIP * LINE * sizeof(T))", "b"),
        (
            "rows_not_transposed",
            "warpgroup_multiply_add<T, 2 * COUNT, true>",
            "warpgroup_multiply_add<T, 2 * COUNT, false>",
        ),
        (
            "pairs_exchanged",
            "products[i * 8 + r * 2], products[i * 8 + r * 2 + 1]",
            "products[i * 8 + r * 2 + 1], products[i * 8 + r * 2]",
        ),
        ("rows_of_another_warp", "warp_id() % 4 * STRIP + lane_id() / 4; }", "lane_id() / 4; }"),
        ("lower_rows_see_too_little", "visible + (causal ? e / 2 % 2 * 8 : 0)", "visible"),
        ("lower_rows_see_too_much", "(causal ? e / 2 % 2 * 8 : 0)", "(e / 2 % 2 * 8)"),
        ("a_largest_for_each_lane", "            most[half] = row_reduce(most[half], Max{});\n"),
        (
            "halves_share_the_largest",
            "most[e / 2 % 2] = fmaxf(most[e / 2 % 2]",
            "most[0] = fmaxf(most[0]",
            dict(tried=FALLING),
        ),
        ("never_grown", "grown = __any_sync(ALL_LANES, more)", "grown = false", dict(tried=FALLING)),
        (
            "grown_by_lane",
            "__any_sync(ALL_LANES, more)",
            "more",
            dict(survives="a row that has not grown need not be scaled"),
        ),
        (
            "denominator_is_not_scaled",
            "                denominator[half] *= correction[half];\n",
            "",
            dict(tried=FALLING),
        ),
        (
            "correction_of_the_other_half",
            "sums[e] *= correction[e / 2 % 2]",
            "sums[e] *= correction[1 - e / 2 % 2]",
            dict(tried=FALLING),
        ),
        ("slack_too_large", "SLACK / scale2;", "40 * SLACK / scale2;", dict(tried=FALLING)),
        ("never_far", "far |= fabsf", "far &= fabsf", dict(tried=FAR)),
        ("far_and_offset", "            offset[0] = offset[1] = 0;\n", "", dict(tried=FAR)),
        ("outbox_not_waited_for", "    if (threadIdx.x % GROUP == 0) wait_stores_read<0>();\n"),
        (
            "outbox_claimed_by_one",
            "wait_stores_read<0>();\n    named_barrier(barrier, GROUP);\n",
            "wait_stores_read<0>();\n",
        ),
        ("outbox_sent_too_soon", "    fence_shared();\n    named_barrier(barrier, GROUP);\n", "    fence_shared();\n"),
        ("outbox_without_a_fence", "    fence_shared();\n"),
        ("another_swizzle_of_the_way_out", "swizzled<8>(line, piece)", "(line * 8 + piece)"),
        ("factor_of_the_other_half", "of[p * 2] * factors[p % 2]", "of[p * 2] * factors[0]"),
        ("stores_never_closed", "        close_stores();\n"),
        ("second_box_of_out_is_the_first", "store_tile(map, box * LINE,", "store_tile(map, 0,", dict(tried=WIDE_TOO)),
        (
            "given_back_before_all_have_read",
            "    __syncwarp();\n    if (lane_id() == 0) ring",
            "    if (lane_id() == 0) ring",
            dict(survives="products are waited for by all lanes at once"),
        ),
        part="common",
    ),
]

SUMMED = """                if (EARLY) {
                    hold(dk_sums);
                    hold(dv_sums);
                    if (last >= 0) give_back(shared.passed, n + last);
"""
BACKWARD = [
    *mutants(
        "dkdv",
        (
            "nothing_left_out",
            "if (!blind || first_ahead > ahead) break;",
            "break;",
            dict(survives="what is hidden is masked"),
        ),
        (
            "all_left_out_in_the_second_head",
            "first_ahead = ahead;  // the next",
            "first_ahead = ahead - 1;  // the next",
        ),
        (
            "left_out_and_not_waited_for",
            "                shared.passed.wait(n + step);\n                if (!blind",
            "                if (!blind",
        ),
        (
            "left_out_and_not_given_back",
            "                give_back(shared.passed, n + step);\n            }\n            return",
            "            }\n            return",
        ),
        ("ahead_never_begins_anew", "first_ahead == ahead + item.tiles * PASSING", "false"),
        ("ahead_stands_still", "                first_ahead += PASSING;\n"),
        ("own_not_waited_for", "        shared.owned.wait(turn);\n"),
        ("own_never_given_back", "        give_back(shared.owned, turn);\n"),
        (
            "last_never_given_back",
            "            give_back(shared.passed, n + last);\n        }",
            "        }",
            dict(tried=MANY),
        ),
        (
            "never_given_back",
            SUMMED,
            SUMMED.replace("if (last >= 0) give_back(shared.passed, n + last);", ""),
            dict(tried=((BASE, None),)),
        ),
        (
            "never_given_back_late",
            "if (last >= 0) give_back(shared.passed, n + last);\n                    begin",
            "begin",
            dict(tried=WIDE_TOO),
        ),
        ("scores_not_waited_for", "wait_products<EARLY>();", "wait_products<2>();"),
        (
            "gradients_not_waited_for",
            "                wait_products<0>();\n                hold(ds);",
            "                wait_products<1>();\n                hold(ds);",
        ),
        (
            "last_sums_not_waited_for",
            "            wait_products<0>();\n            hold(dk_sums);\n            hold(dv_sums);\n            give",
            "            wait_products<1>();\n            hold(dk_sums);\n            hold(dv_sums);\n            give",
        ),
        ("mask_off_by_one", "if (e / 4 * 8 < hidden)", "if (e / 4 * 8 <= hidden)"),
        ("no_mask", "work.causal && first_ahead < OWN - 1", "work.causal && first_ahead < 0"),
        ("lse_of_the_neighbour", "scale2, -lse2[e % 2]", "scale2, -lse2[0]"),
        ("delta_of_the_neighbour", "- delta[e % 2]", "- delta[0]"),
        ("delta_is_lse", "load<2>(statistics[1]", "load<2>(statistics[0]"),
        ("lse_of_another_query", "load<2>(statistics[0] + j * 8 + own_column())", "load<2>(statistics[0] + j * 8)"),
        ("dk_is_not_scaled", "dk_sums, scales, dk", "dk_sums, ones, dk"),
        ("dv_is_scaled", "dv_sums, ones, dv", "dv_sums, scales, dv"),
        (
            "dv_from_q",
            "                add_rows(dv_sums, p_weights, dout_of(last));\n                add",
            "                add_rows(dv_sums, p_weights, q_of(last));\n                add",
        ),
        (
            "dk_of_the_next_tile",
            "                add_rows(dk_sums, ds_weights, q_of(last));\n                if",
            "                add_rows(dk_sums, ds_weights, q_of(step));\n                if",
        ),
        ("one_outbox_for_both_sums", "send_rows(shared.out[group][1]", "send_rows(shared.out[group][0]"),
        ("keys_of_the_other", "stage(turn)][0][group];", "stage(turn)][0][0];"),
        ("values_for_keys", "stage(turn)][0][group];", "stage(turn)][1][group];"),
        ("stages_counted_by_tiles", "        n += steps;\n", "        n += item.tiles;\n"),
    ),
    *mutants(
        "dkdv",
        ("only_the_first_head", "head < item.passing_head + item.heads", "head < item.passing_head + 1"),
        ("statistics_not_expected", "(OF_KEYS ? sizeof(shared.statistics[0]) : 0)", "0"),
        ("statistics_of_another_head", "* work.NH + head;", "* work.NH;"),
        (
            "delta_of_another_batch",
            "(which * work.batches + item.batch)",
            "(which + item.batch)",
            dict(tried=((dict(BASE, B=2, T=130), None),)),
        ),
        ("begins_too_late", "begin = causal ? first : 0;", "begin = causal ? first + PASSING : 0;"),
        ("begins_too_early", "begin = causal ? first : 0;", "begin = 0;", dict(survives="what is hidden is masked")),
        (
            "of_another_group",
            "head, first, head * group, group",
            "head, first, head, group",
            dict(tried=((dict(BASE, NH=4, NKV=2), None),)),
        ),
        part="walk",
    ),
    *mutants(
        "dkdv", ("half_the_users", "passed.make(CONSUMERS * GROUP / WARP)", "passed.make(GROUP / WARP)"), part="end"
    ),
    *mutants(
        "dq",
        ("seen_too_few", "own_query / PASSING + 1)", "own_query / PASSING)"),
        (
            "seen_too_many",
            "own_query / PASSING + 1)",
            "own_query / PASSING + 2)",
            dict(survives="what is hidden is masked"),
        ),
        ("lse_is_delta", "delta[half] = of[work.heads() * (long long)padded];", "delta[half] = of[0];"),
        ("lse_of_another_row", "own_query + own_row() + half * 8;", "own_query + own_row();"),
        ("next_not_waited_for", "            shared.passed.wait(n + step + 1);\n"),
        ("first_not_waited_for", "        shared.passed.wait(n);\n"),
        ("own_not_waited_for", "        shared.owned.wait(turn);\n"),
        ("never_given_back", "            if (step > 0) give_back(shared.passed, n + step - 1);\n"),
        ("rest_never_given_back", "            give_back(shared.passed, n + step);\n", "", dict(tried=MANY)),
        ("scores_not_waited_for", "            wait_products<1>();\n", "            wait_products<2>();\n"),
        (
            "gradients_not_waited_for",
            "            wait_products<0>();\n            hold(ds);",
            "            wait_products<1>();\n            hold(ds);",
        ),
        ("mask_off_by_one", "% 2 >= visible", "% 2 > visible"),
        ("no_mask_at_the_end", "(step + 1) * PASSING > work.tokens", "false", dict(tried=((FULL, "far_below"),))),
        ("dq_is_not_scaled", "{scale, scale}", "{1, 1}"),
        (
            "dq_from_v",
            "            add_rows(sums, weights, k_of(step));",
            "            add_rows(sums, weights, v_of(step));",
        ),
        (
            "dq_of_the_next_tile",
            "            add_rows(sums, weights, k_of(step));",
            "            add_rows(sums, weights, k_of(step + 1));",
        ),
        ("delta_of_the_other_half", "- delta[e / 2 % 2]", "- delta[0]"),
    ),
    *mutants(
        "dq",
        ("another_heads_keys", "first, head / group, 1", "first, head, 1"),
        ("last_keys_left_out", "(first + OWNED) / PASSING)", "first / PASSING + 1)"),
        part="walk",
    ),
]
MUTANTS = [*FORWARD, *BACKWARD]
FEW = ("forward-never_grown",)  # each is compiled for itself alone, for seconds


def named(mutant: Mutant) -> str:
    return f"{mutant.kernel}-{mutant.name}"


def marked(mutant: Mutant):
    return pytest.param(mutant, id=named(mutant), marks=[] if named(mutant) in FEW else [pytest.mark.slow])


@pytest.mark.parametrize("mutant", [marked(m) for m in MUTANTS])
def test_mutant_is_found(mutant, tmp_path, monkeypatch):
    """By any report, or by a wrong result; those that say that they survive must do so, or the list is wrong."""
    kernel = KERNELS[mutant.kernel]
    monkeypatch.setattr(kernel, "source", mutant.write(kernel.source, PARTS, tmp_path))
    phase = "forward" if mutant.kernel == "forward" else "backward"
    tries = ((shape, edit, seed) for shape, edit in mutant.tried or USUAL for seed in range(3))
    found = next((f for t in tries if (f := verdict(*t, phase=phase)) != "ok"), "")
    assert bool(found) != bool(mutant.survives), found


def test_every_mutant_is_another_source(tmp_path):
    sources = {mutant.write(wgmma.forward_kernel.source, PARTS, tmp_path).read_text() for mutant in MUTANTS}
    assert len(sources) == len(MUTANTS) and wgmma.forward_kernel.source.read_text() not in sources


def test_enough_mutants_are_found():
    """`survives` is held true by test_mutant_is_found, so that counting it is counting the survivors."""
    assert len(set(map(named, MUTANTS))) == len(MUTANTS) >= 80 and set(FEW) <= set(map(named, MUTANTS))
    assert sum(not m.survives for m in MUTANTS) >= KILLED * len(MUTANTS)
