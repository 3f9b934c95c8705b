"""Edits that break matmul's tensor-core kernels, each in one place."""

from tests.kernels.cuda.tensor_core_matmuls import Mutant


def mutants(variant, product, *edits):
    return [Mutant(variant, product, *edit[:3], **(edit[3] if len(edit) > 3 else {})) for edit in edits]


LOOP_WAIT = "                wait_copies<STAGES - 2>();\n"
LOOP_BARRIER = "                __syncthreads();  // and all have read this step's tiles\n"
MMA = [
    *mutants(
        *("mma", "forward"),
        ("missing_wait", LOOP_WAIT, ""),
        ("waits_for_one_group_less", LOOP_WAIT, LOOP_WAIT.replace("- 2", "- 1")),
        ("missing_barrier", LOOP_BARRIER, ""),
        ("first_stage_not_waited_for", "    }\n    wait_copies<STAGES - 2>();\n", "    }\n"),
        ("groups_never_closed", "        close_copies();\n", ""),
        ("one_copy_ahead_is_missing", "step < STAGES - 1; step++", "step < STAGES - 2; step++"),
        (
            "copies_a_into_the_stage_in_use",
            "if (k == 0) copy_a(step + STAGES - 1)",
            "if (k == 0) copy_a(step + STAGES)",
        ),
        (
            "copies_b_into_another_stage",
            "if (k == 1) copy_b(step + STAGES - 1)",
            "if (k == 1) copy_b(step + STAGES - 2)",
        ),
        (
            "unswizzled_read",
            "tile + swizzled<PIECES>(o + lane_id() % 8, i / PIECE) * PIECE",
            "tile + ((o + lane_id() % 8) * PIECES + i / PIECE) * PIECE",
        ),
        (
            "another_swizzle_of_both",
            "PIECES % 8 == 0 ? 8",
            "PIECES % 8 == 0 ? 4",
            dict(file="swizzle.cuh", survives="conflicts"),
        ),
        ("halves_exchanged", "inner_half = INNER_FIRST ? quarter : half", "inner_half = INNER_FIRST ? half : quarter"),
        ("missing_row_bound_of_a_load", "row + l < rows && column < columns", "column < columns"),
        ("missing_column_bound_of_a_load", "row + l < rows && column < columns", "row + l < rows"),
        ("missing_row_bound_of_the_store", "if (row < rows && column < columns) f", "if (column < columns) f"),
        ("missing_column_bound_of_the_store", "if (row < rows && column < columns) f", "if (row < rows) f"),
        ("result_before_all_have_read", "    __syncthreads();  // the result may take the tiles' place\n", ""),
        ("warps_part_not_waited_for", "    __syncwarp();\n", ""),
        (
            "fragments_in_use_are_loaded",
            "load(fragments[(k + 1) % 2], step, k + 1)",
            "load(fragments[k % 2], step, k + 1)",
        ),
        ("first_fragments_of_the_same_stage", "step + 1, 0);", "step, 0);"),
        ("wrong_half_of_b", "f.b[j / 2][j % 2 * 2 + 1]}", "f.b[j / 2][j % 2 * 2]}"),
        ("parts_of_warps_exchanged", "return warp_id() / 2 * PART;", "return warp_id() % 2 * PART;"),
        ("operand_stands_still", "        (ALONG_INNER ? column : row) += DEPTH;\n", ""),
        (
            "rows_of_another_width",
            "at = row * (long long)columns + column;\n        if (bias)",
            "at = row * (long long)inners + column;\n        if (bias)",
        ),
        ("bias_of_the_row", "load_floats<N>(bias + column)", "load_floats<N>(bias + column / 16 * 8)"),
        ("gelu_of_pre_gelu_is_missing", "v[k] = gelu(v[k]);", ";"),
        ("staged_without_its_order", "&at[row][place(column + k)]", "&at[row][column + k]", dict(file="staged.cuh")),
        ("staged_rows_exchanged", "&at[r + 8][c]", "&at[r + 4][c]", dict(file="staged.cuh")),
        ("strips_of_full_height", "within % height", "within % STRIP", dict(file="tile_order.cuh")),
        ("too_little_shared_memory", "", "", dict(constants=(("STAGE_BYTES", 30000), ("RESULT_BYTES", 0)))),
        ("single_elements_without_bounds", "*to = inside ? *from : from_float<T>(0)", "*to = *from"),
    ),
    *mutants(
        *("mma", "dx"),
        ("b_not_transposed", "load_matrices_transposed(to,", "load_matrices(to,"),
        ("gelu_for_its_gradient", "v[k] *= gelu_grad(x[k]);", "v[k] *= gelu(x[k]);"),
        ("pre_gelu_of_another_place", "load_floats<N>(x_pre_gelu + at)", "load_floats<N>(x_pre_gelu + column)"),
        ("next_tile_of_b", "DEPTH : DEPTH * (long long)columns", "DEPTH : DEPTH / 2 * (long long)columns"),
    ),
    *mutants(
        *("mma", "dweight"),
        ("every_part_begins_at_0", "begin = blockIdx.y * part_inners", "begin = 0"),
        ("every_part_goes_to_the_end", "(end - begin + DEPTH - 1)", "(inners - begin + DEPTH - 1)"),
        ("all_parts_in_one_place", "        partials += blockIdx.y * (long long)rows * columns;\n", ""),
        ("nothing_is_added_to", "accumulate ? v + load_floats<N>(dweight + at) : v", "v"),
        ("half_of_the_rows_summed", "first() ? f.a[EACH + i][r] : f.a[i][r]", "f.a[i][r]"),
        ("wrong_row_of_the_sums", "to[row] = at[i][half * 2]", "to[row] = at[i][half]"),
        ("dbias_of_all_parts_in_one_place", "bias_partials + blockIdx.y * (long long)rows", "bias_partials"),
        ("row_sums_unbounded", "if (row < rows) to[row]", "to[row]"),
    ),
]

TURN = "            if (turn > 0) wait_phase(&shared.started[(turn - 1) % CONSUMERS], (turn - 1) / CONSUMERS % 2);\n"
GIVE_BACK = "if (step > 0 && lane_id() == 0) ring.give_back(n - 1);"
LAST_BACK = "            if (lane_id() == 0) ring.give_back(n - 1);\n"
BACK_WAIT = "if (round(n) > 0) wait_phase(&empty[stage(n)], (round(n) - 1) % 2);"
SEND = "        fence_shared();\n        named_barrier(barrier, GROUP);\n"
BESIDE_WAIT = """                wait_phase(beside, turn % 2);
                with_beside(outbox, sums, [](float sum, float x)"""
OUTBOX_PLACE = "swizzled<8>(line + lane_id() % 16, piece + lane_id() / 16) * 8"
BIAS_PLACE = "item.tile.column + sums_column(j);\n                    Packed"
WGMMA = [
    *mutants(
        *("wgmma", "forward"),
        ("missing_wait_for_full", "                ring.wait(n);\n", ""),
        (
            "wrong_parity_of_full",
            "wait_phase(full(n), round(n) % 2)",
            "wait_phase(full(n), (round(n) + 1) % 2)",
            dict(file="ring.cuh"),
        ),
        ("missing_wait_for_empty", BACK_WAIT, "", dict(file="ring.cuh")),
        ("wrong_parity_of_empty", BACK_WAIT, BACK_WAIT.replace("(round(n) - 1)", "round(n)"), dict(file="ring.cuh")),
        ("products_not_waited_for", "                wait_products<1>();\n", ""),
        ("last_products_not_waited_for", "            wait_products<0>();\n", ""),
        ("stage_given_back_early", GIVE_BACK, "if (lane_id() == 0 && step + 1 < item.steps) ring.give_back(n);"),
        ("last_stage_never_given_back", LAST_BACK, ""),
        ("given_back_by_three_warps", "ring.make(GROUP / WARP);", "ring.make(GROUP / WARP - 1);"),
        ("given_back_by_all_lanes", LAST_BACK, "            ring.give_back(n - 1);\n"),
        ("too_small_expectation", "ring.fill(n, 2 * OPERAND_BYTES)", "ring.fill(n, OPERAND_BYTES)"),
        ("too_large_expectation", "ring.fill(n, 2 * OPERAND_BYTES)", "ring.fill(n, 2 * OPERAND_BYTES + 16)"),
        (
            "barriers_used_before_they_are_made",
            "        fence_barriers();\n    }\n    __syncthreads();\n",
            "        fence_barriers();\n    }\n",
        ),
        ("wrong_stride", "EIGHT_LINES);\n        else", "EIGHT_LINES / 2);\n        else"),
        ("wrong_step_of_k", "tile + outer * DEPTH + k * 16, 16", "tile + outer * DEPTH + k * 32, 16"),
        ("both_halves_are_the_same_rows", "(stage[0], half * HALF, k)", "(stage[0], 0, k)"),
        ("coordinates_exchanged", "load_tile(to, map, inner, outer, full);", "load_tile(to, map, outer, inner, full);"),
        ("products_never_closed", "                close_products();\n", ""),
        ("missing_fence_of_products", "                begin_products();\n", ""),
        ("turn_not_waited_for", TURN, ""),
        ("turn_of_the_wrong_parity", TURN, TURN.replace("(turn - 1) / CONSUMERS % 2", "turn / CONSUMERS % 2")),
        ("turn_never_given", "if (step + 1 == item.steps && lane_id() == 0) arrive(", "if (false) arrive("),
        (
            "turn_given_by_one_warp",
            "arrive(&shared.started[group])",
            "if (warp_id() % 4 == 0) arrive(&shared.started[group])",
        ),
        ("stages_of_the_others_items_not_skipped", "                n += item.steps;\n", ""),
        (
            "missing_fence_before_the_store",
            SEND,
            SEND.replace("        fence_shared();\n", ""),
            dict(file="outbox.cuh"),
        ),
        ("missing_barrier_before_the_store", SEND, "        fence_shared();\n", dict(file="outbox.cuh")),
        (
            "tile_claimed_while_it_is_stored",
            "        if (leads()) wait_stores_read<TILES - 1>();\n",
            "",
            dict(file="outbox.cuh"),
        ),
        (
            "claimed_without_a_barrier",
            "        named_barrier(barrier, GROUP);\n        return tile();",
            "        return tile();",
            dict(file="outbox.cuh"),
        ),
        ("stores_never_closed", "            close_stores();\n", "", dict(file="outbox.cuh")),
        ("always_the_same_tile", "        used++;\n", "", dict(file="outbox.cuh")),
        ("one_named_barrier_for_both", "shared.outboxes[group][0], 1 + group}", "shared.outboxes[group][0], 1}"),
        ("one_outbox_for_both", "shared.outboxes[group][0]", "shared.outboxes[0][0]"),
        ("end_before_the_stores", "        if (outbox.leads()) wait_stores<0>();\n", ""),
        ("bias_of_other_columns", BIAS_PLACE, BIAS_PLACE.replace("(j)", "(j ^ 1)")),
        ("gelu_of_the_wrong_side", "side * (TILE / 4) + e]", "(1 - side) * (TILE / 4) + e]"),
        ("halves_stored_in_one_place", "place.column + side * HALF, place.row);\n}", "place.column, place.row);\n}"),
        (
            "unswizzled_outbox",
            OUTBOX_PLACE,
            "((line + lane_id() % 16) * 8 + piece + lane_id() / 16) * 8",
            dict(file="outbox.cuh"),
        ),
        ("too_little_shared_memory", "", "", dict(constants=(("SHARED", 225000),))),
        (
            "new_barriers_not_fenced",
            "        fence_barriers();\n",
            "",
            dict(survives="barriers are known to the TMA at once here"),
        ),
    ),
    *mutants(
        *("wgmma", "dx"),
        ("wrong_distance_of_boxes", "k * 16 * HALF, BOX_BYTES", "k * 16 * HALF, BOX_BYTES / 2"),
        ("second_box_missing", "        load_tile(to + OPERAND / 2, map, outer + HALF, inner, full);\n", ""),
        ("second_box_is_the_first", "map, outer + HALF, inner, full", "map, outer, inner, full"),
        ("beside_not_waited_for", BESIDE_WAIT, BESIDE_WAIT.replace("wait_phase(beside, turn % 2);", "")),
        ("beside_of_the_first_item", BESIDE_WAIT, BESIDE_WAIT.replace("turn % 2", "0")),
        ("beside_brought_over_a_store", "    wait_stores_read<0>();\n", ""),
        (
            "beside_expects_one_tile",
            "arrive_expecting(beside, 2 * outbox.TILE_BYTES)",
            "arrive_expecting(beside, outbox.TILE_BYTES)",
        ),
        (
            "sides_of_beside_exchanged",
            "outbox.matrices(outbox.tile(side), half",
            "outbox.matrices(outbox.tile(1 - side), half",
        ),
        ("gelu_for_its_gradient", "sum * gelu_grad(x)", "sum * gelu(x)"),
    ),
    *mutants(
        *("wgmma", "dweight"),
        ("every_part_begins_at_0", "begin = part * part_inners, end", "begin = 0, end"),
        ("all_parts_in_one_place", "partials + item.part * (long long)rows * columns", "partials"),
        ("rows_of_partials_exchanged", "e % 4 / 2 * 8;", "e % 4 / 2 * 4;"),
        ("partials_unbounded", "if (row < rows && column < columns)\n", "if (column < columns)\n"),
        ("nothing_is_added_to", "return sum + before;", "return sum;"),
        ("sums_of_the_first_box", "const T* box = tile + piece() / 8 * (OPERAND / 2);", "const T* box = tile;"),
        ("half_of_the_lines_summed", "l < DEPTH; l += 8", "l < DEPTH; l += 16"),
        ("lanes_not_added", "distance = 4; distance < WARP", "distance = 8; distance < WARP"),
        ("sums_not_begun_anew", "        sums = filled<8>(0);\n    }\n};", "    }\n};"),
        ("dout_is_never_summed", "                also(item, stage[0]);\n", ""),
    ),
]
