"""Clusters: addresses of other blocks' shared memory, their barrier, what is copied to them, and words for the cache.

Part of the instruction table, with the sections of the PTX ISA manual. cluster.hpp has the functions that the C++
calls. Loads, stores and atomics with .shared::cluster stand with the others, in instructions.py.
"""

from __future__ import annotations

from bench.simulate.instructions_tensor import AXES, CACHE_HINT, SCOPE, SPACE, split_tile
from bench.simulate.ptx import BYTES_OF
from bench.simulate.table import Instruction, instruction, with_header
from bench.simulate.use import Use

# --- 9.7.9 addresses -------------------------------------------------------------------------------------------------

WIDTHS = ("u32", "u64")
ADDRESSES = [
    instruction("9.7.9 mapa", "mapa.shared::cluster.T d, a, b:u32", "map_to_rank(self, {a}, {b}, {site})", T=WIDTHS),
    instruction("9.7.9 mapa", "mapa.u64 d, a, b:u32", "map_generic_to_rank(self, {a}, {b}, {site})"),
    instruction(
        "9.7.9 getctarank", "getctarank.shared::cluster.T d:u32, a", "rank_of_address(self, {a}, {site})", T=WIDTHS
    ),
    instruction("9.7.9 getctarank", "getctarank.u64 d:u32, a", "rank_of_generic(self, {a}, {site})"),
    instruction("9.7.9 isspacep", "isspacep.shared::cluster p:pred, a:u64", "is_in_cluster(self, {a})"),
    instruction("9.7.9 cvta", "cvta.shared::cluster.u64 d, a", "cluster_to_generic(self, {a})"),
    instruction("9.7.9 cvta", "cvta.to.shared::cluster.u64 d, a", "generic_to_cluster(self, {a})"),
]

# --- 9.7.13 the cluster's barrier, and counting by hand --------------------------------------------------------------

ALIGNED = {"": "false", "aligned": "true"}
BARRIERS = [
    instruction(
        "9.7.13 barrier.cluster",
        "barrier.cluster.arrive.ORDER.ALIGNED",
        "cluster_arrive(self, {ORDER}, {ALIGNED}, {site});",
        ORDER={"": "true", "release": "true", "relaxed": "false"},
        ALIGNED=ALIGNED,
    ),
    instruction(
        "9.7.13 barrier.cluster",
        "barrier.cluster.wait{.acquire}.ALIGNED",
        "cluster_wait(self, {ALIGNED}, {site});",
        ALIGNED=ALIGNED,
    ),
    instruction(
        "9.7.13 mbarrier.complete_tx",
        "mbarrier.complete_tx{.relaxed}.SCOPE.SPACE.b64 [a], b:u32",
        "mbarrier_complete(self, {SPACE}(self, {a:address}), {b}, {site});",
        SCOPE=SCOPE,
        SPACE=SPACE,
    ),
]

# --- 9.7.9 asynchronous stores and 9.7.13 reductions -----------------------------------------------------------------


def _store_async(use: Use) -> str:
    values, element = use.values("b"), use.ctype(use.type_of("T"))
    if len(values) != int(use.modifiers["VEC"].lstrip("v") or 1):
        raise ValueError(f"a vector of {len(values)} registers")
    size = BYTES_OF[use.type_of("T")] * len(values)
    call = f"store_async(self, {use.address('a')}, x_, {size}, {use.address('c')}, {use.site});"
    return f"{element} x_[] = {{{', '.join(values)}}}; {call}"


COMPLETES = "mbarrier::complete_tx::bytes"
STORED = ("b32", "b64", "u32", "u64", "s32", "s64", "f32", "f64")
COMBINED = {
    **{"inc.u32": "inc_to<u32>, 4", "dec.u32": "dec_to<u32>, 4"},
    **{f"{name}.{t}": f"{name}_to<{t}>, 4" for name in ("min", "max") for t in ("u32", "s32")},
    **{f"{name}.b32": f"{name}_to<u32>, 4" for name in ("and", "or", "xor")},
    **{f"add.{t}": "add_to<u32>, 4" for t in ("u32", "s32")},
    **{f"add.{t}": "add_to<u64>, 8" for t in ("u64", "s64")},
}


def _reduce_async(use: Use) -> str:
    combine, size = use.fill("{KIND}").split(", ")
    value = f"(u{8 * int(size)})({use.operand(use.text('b'), f'u{8 * int(size)}')})"
    return f"reduce_async(self, {use.address('a')}, {value}, {size}, {combine}, {use.address('c')}, {use.site});"


REMOTE = [
    instruction(
        "9.7.9 st.async",
        f"st.async{{.weak}}{{.shared::cluster}}.{COMPLETES}{{.shared::cluster}}.VEC.T [a], <b>, [c]",
        _store_async,
        VEC=dict.fromkeys(("", "v2", "v4"), ""),
        T=STORED,
    ),
    instruction(
        "9.7.13 red.async",
        f"red.async{{.relaxed}}{{.cluster}}{{.shared::cluster}}.{COMPLETES}{{.shared::cluster}}.KIND [a], b, [c]",
        _reduce_async,
        KIND=COMBINED,
    ),
]

# --- 9.7.9.25 bulk copies to other blocks, and to several ------------------------------------------------------------


def _tile_multicast(use: Use) -> str:
    tensor_map, coordinates = split_tile(use, "a")
    places = f"{use.address('d')}, {tensor_map}, at_, {use.modifiers['AXES'][0]}, {use.address('b')}"
    return f"{coordinates} tile_multicast(self, {places}, {use.value('c')}, {use.site});"


COPIES = [
    instruction(
        "9.7.9 cp.async.bulk.tensor",
        f"cp.async.bulk.tensor.AXES.shared::cluster.global{{.tile}}.{COMPLETES}.multicast::cluster.HINT "
        "[d], [a], [b], c:u16, e:u64=0",
        _tile_multicast,
        AXES=AXES,
        HINT=CACHE_HINT,
    ),
    instruction(
        "9.7.9 cp.async.bulk",
        f"cp.async.bulk.shared::cluster.global.{COMPLETES}.multicast::cluster.HINT "
        "[d], [a], b:u32, [c], e:u16, f:u64=0",
        "bulk_multicast(self, {d:address}, {a:address}, {b}, {c:address}, {e}, {site});",
        HINT=CACHE_HINT,
    ),
    instruction(
        "9.7.9 cp.async.bulk",
        f"cp.async.bulk.shared::cluster.shared::cta.{COMPLETES} [d], [a], b:u32, [c]",
        "bulk_send(self, {d:address}, {a:address}, {b}, {c:address}, {site});",
    ),
    instruction(
        "9.7.9 cp.reduce.async.bulk",
        f"cp.reduce.async.bulk.shared::cluster.shared::cta.{COMPLETES}.KIND [d], [a], b:u32, [c]",
        "bulk_send_reduced(self, {d:address}, {a:address}, {b}, {KIND}, {c:address}, {site});",
        KIND=COMBINED,
    ),
]

# --- 9.7.9 what such kernels tell the cache: it says nothing about values ---------------------------------------------

PRIORITIES = dict.fromkeys((f"L2::evict_{x}" for x in ("first", "last", "normal", "unchanged")), "")
HINTS = [
    instruction(
        "9.7.9 createpolicy",
        "createpolicy.fractional.FIRST.SECOND.b64 d, a:f32=1.0f",
        "0ull",
        FIRST=PRIORITIES,
        SECOND={"": "", **PRIORITIES},
    ),
    instruction(
        "9.7.9 cp.async.bulk.prefetch",
        "cp.async.bulk.prefetch.L2.global.HINT [a], b:u32, c:u64=0",
        ";",
        HINT=CACHE_HINT,
    ),
    instruction(
        "9.7.9 cp.async.bulk.prefetch.tensor",
        "cp.async.bulk.prefetch.tensor.AXES.L2.global{.tile}.HINT [a], b:u64=0",
        ";",
        AXES=AXES,
        HINT=CACHE_HINT,
    ),
]

INSTRUCTIONS: list[Instruction] = with_header("cluster.hpp", [*ADDRESSES, *BARRIERS, *REMOTE, *COPIES, *HINTS])
