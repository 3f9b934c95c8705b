"""Clusters of several blocks: what kernels answer, what launches are refused, and planted bugs by their reports."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch

from bench import simulate
from bench.simulate import SimulationError, count, instructions_cluster, run_ptx, tensor_map
from bench.simulate.ptx import parse
from bench.simulate.translate import find_line
from kernels import cuda
from kernels.cuda import Build, Kernel, Launch
from kernels.cuda.compiler import Binary, compile_source
from tests.bench.simulate.devices import Map, arguments_of, on_a_card
from tests.bench.simulate.kernels import HERE, marked_lines
from tests.bench.simulate.matmuls import CLUSTER, is_right, multiply, verdict

SEEDS = range(9)  # 7 lands every copy at once, 6 half of them
TILE = 8


KERNEL = re.compile(r'^(?:KERNEL |extern "C" __global__ void )(?:__cluster_dims__\([^)]*\) )?(\w+)\(', re.MULTILINE)


@cache
def names(source: str) -> tuple[str, ...]:
    return tuple(KERNEL.findall((HERE / source).read_text()))


@cache
def compiled(source: str) -> Binary:
    return compile_source(HERE / source, names(source), "sm_90a", "ptx")


def numbers(count: int, most: int = 1000) -> torch.Tensor:
    return torch.randint(0, most, (count,), generator=torch.Generator().manual_seed(3)).int()


def run(
    kernel: str,
    *,
    cluster=None,
    blocks=8,
    threads=64,
    words=1,
    n=0,
    seed=0,
    source="clusters.cu",
    device="cpu",
    **options,
):
    """Run a kernel; returns `words` numbers for each of its threads, and what it was given as [block][thread]."""
    grid = blocks if isinstance(blocks, tuple) else (blocks, 1, 1)
    all_threads = grid[0] * grid[1] * grid[2] * threads
    given, counters = numbers(all_threads).to(device), torch.zeros(256, dtype=torch.int32, device=device)
    out = torch.zeros(words * all_threads, dtype=torch.int32, device=device)
    matrix = torch.arange(16 * TILE * 4 * TILE, dtype=torch.int32, device=device).view(16 * TILE, 4 * TILE)
    arguments = arguments_of([out, given, counters, Map(matrix, (TILE, TILE)), n])
    arguments[1] = replace(arguments[1], const=True)
    block = (threads, 1, 1)
    if device != "cpu":
        from kernels.cuda import gpu

        defines = (f"CLUSTER={cluster}",) if cluster else ()
        gpu.launch(Launch(Build(HERE / source, kernel, defines), grid, block, 0, tuple(arguments)))
        return out.cpu(), given.cpu().view(-1, threads)
    sizes = (cluster, 1, 1) if isinstance(cluster, int) else cluster
    options = {"seed": seed, "name": kernel, "cluster": sizes, **options}
    binary = compiled(source)
    run_ptx(binary.code.decode(), binary.names[kernel], grid, block, 0, arguments, **options)
    return out, given.view(-1, threads)


def by_cluster(given: torch.Tensor, size: int) -> torch.Tensor:
    """[cluster][rank][thread]"""
    return given.view(-1, size, given.shape[-1])


def rolled(given: torch.Tensor, size: int, by: int = 1) -> torch.Tensor:
    """What the block so many ranks before was given."""
    return by_cluster(given, size).roll(by, 1).reshape(given.shape)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", (1, 2, 4, 8))
def test_sums_over_the_cluster(size, seed):
    out, given = run("summed", cluster=size, seed=seed)
    wanted = by_cluster(given, size).sum(1, keepdim=True).expand(-1, size, -1)
    assert torch.equal(out, wanted.reshape(-1).int())


def test_every_kernel_is_run_and_every_line_of_the_table_is_used():
    used = set()
    for kernel in parse(compiled("clusters.cu").code.decode()).kernels:
        used |= {find_line(s)[0].syntax for s in kernel.body.statements()}
    assert not {line.syntax for line in instructions_cluster.INSTRUCTIONS} - used
    text = (HERE / "test_clusters.py").read_text()
    assert not [name for name in names("clusters.cu") if f'"{name}"' not in text]


def test_a_block_knows_its_place():
    out, _ = run("registers", cluster=(2, 3, 1), blocks=(4, 6, 2), threads=32)
    found = out.view(-1)[: 48 * 16].view(2, 6, 4, 16)
    for z, y, x in ((0, 0, 0), (1, 4, 3), (0, 5, 2)):
        own, sizes = [x % 2, y % 3, 0], [2, 3, 1]
        cluster, clusters = [x // 2, y // 3, z], [2, 2, 2]
        assert found[z, y, x].tolist() == [*own, *sizes, *cluster, *clusters, x % 2 + y % 3 * 2, 6, 1, 1024]
    single, _ = run("registers", blocks=3, threads=32)
    assert single.view(-1)[32:48].tolist() == [0, 0, 0, 1, 1, 1, 2, 0, 0, 3, 1, 1, 0, 1, 0, 1024]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kernel_may_say_its_clusters_size(seed):
    out, given = run("swapped", seed=seed)
    assert torch.equal(out, rolled(given, 2).flatten())


@pytest.mark.parametrize("seed", SEEDS)
def test_atomics_in_each_others_memory(seed):
    out, given = run("histogram", cluster=4, seed=seed)
    wanted = torch.stack([torch.bincount(c.flatten() % 256, minlength=256) for c in by_cluster(given, 4)])
    assert torch.equal(out, wanted.flatten().int())


@pytest.mark.parametrize("seed", SEEDS)
def test_vectors_go_around(seed):
    out, given = run("vectors", cluster=4, words=4, seed=seed)
    wanted = rolled(given, 4, 2)[..., None] + torch.arange(4)
    assert torch.equal(out, wanted.flatten().int())


@pytest.mark.parametrize("seed", SEEDS)
def test_asynchronous_stores(seed):
    out, given = run("stored_async", cluster=4, words=8, seed=seed)
    wanted = rolled(given, 4)[..., None] + torch.arange(8)
    assert torch.equal(out, wanted.flatten().int())


@pytest.mark.parametrize("seed", SEEDS)
def test_asynchronous_reductions(seed):
    out, given = run("reduced_async", cluster=4, seed=seed)
    for i, values in enumerate(by_cluster(given, 4).reshape(2, -1).tolist()):
        wanted = [sum(values), max(values), min(values), 0, 2**32 - 1, 0, 0]
        for v in values:
            wanted[3:6] = [wanted[3] | v, wanted[4] & v, wanted[5] ^ v]
        got = out[10 * i : 10 * i + 10].tolist()
        assert got[:6] == wanted[:6]
        assert got[8] + (got[9] << 32) == sum(values) << 20


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", (1, 2, 4))
def test_tiles_that_all_blocks_get(size, seed):
    out, _ = run("multicast", cluster=size, blocks=4, n=4, seed=seed)
    matrix = torch.arange(16 * TILE * 4 * TILE).view(16 * TILE, 4 * TILE)
    seen = matrix[: size * TILE].view(size, TILE, 4, TILE).sum((0, 2)).flatten()
    assert torch.equal(out.view(4, -1), seen.int().expand(4, -1))


@pytest.mark.parametrize("seed", (0, 1, 7))
def test_what_is_said_to_the_cache_changes_nothing(seed):
    out, given = run("hinted", cluster=4, seed=seed)
    tile = torch.arange(16 * TILE * 4 * TILE).view(16 * TILE, 4 * TILE)[:TILE, :TILE].flatten()
    assert torch.equal(out.view(8, -1), (2 * given + tile).int())


@pytest.mark.parametrize("mask", (0b11, 0b1010, 0b0001))
def test_bytes_that_some_blocks_get(mask):
    for seed in (0, 1, 7):
        out, given = run("bytes_multicast", cluster=4, n=mask, seed=seed)
        takes = torch.tensor([mask >> rank % 4 & 1 for rank in range(8)]).bool()[:, None]
        assert torch.equal(out.view(8, -1), torch.where(takes, given[:1], 7))


@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_sent_to_another_block(seed):
    out, given = run("sent", cluster=4, words=2, seed=seed)
    before = rolled(given, 4).flatten()
    assert torch.equal(out.view(-1, 2), torch.stack([before, before + 5], 1))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_load_into_another_blocks_memory(seed):
    out, given = run("loaded_for_another", cluster=4, seed=seed)
    assert torch.equal(out, rolled(given, 4).flatten())


def test_addresses_there_and_back():
    out, _ = run("addresses", cluster=4)
    for block, found in enumerate(out.view(-1)[:64].view(8, 8).tolist()):
        other = 3 - block % 4
        assert found == [other, other, 1, 0, 100 * other + 2, 1, 0, 100 * other + 3]


@pytest.mark.parametrize("seed", SEEDS)
def test_cooperative_groups(seed):
    out, given = run("by_groups", cluster=4, seed=seed)
    wanted = by_cluster(given, 4).sum(1, keepdim=True) + torch.arange(4)[None, :, None]
    assert torch.equal(out, wanted.flatten().int())


@pytest.mark.parametrize("seed", SEEDS)
def test_global_memory_is_handed_over(seed):
    out, given = run("through_global", cluster=4, words=2, seed=seed)
    wanted = by_cluster(given, 4).sum(1, keepdim=True) + torch.arange(4)[None, :, None]
    assert torch.equal(out[: given.numel()], wanted.flatten().int())


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_cluster_knows_is_told_to_others(seed):
    out, given = run("last_adds", cluster=4, blocks=16, words=2, seed=seed)
    assert torch.equal(out[:64], given.sum(0).int())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_number_goes_around(seed):
    out, given = run("ring", cluster=8, blocks=16, seed=seed)
    assert torch.equal(out[:16], by_cluster(given, 8)[..., 0].cumsum(1).flatten().int())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", ("flags_set_from_outside", "flags_seen_from_outside"))
def test_flags_of_the_clusters_scope(kernel, seed):
    out, given = run(kernel, cluster=2, seed=seed)
    assert torch.equal(out, rolled(given, 2).flatten())


def test_threads_that_returned_are_not_waited_for():
    out, given = run("some_return", cluster=2, threads=64, n=40)
    assert torch.equal(out.view(8, 64)[:, :40], given.view(4, 2, 64)[:, :1, :40].expand(-1, 2, -1).reshape(8, 40))


def test_sixteen_blocks_where_they_are_allowed():
    out, given = run("summed", cluster=16, blocks=16, any_cluster=True)
    assert torch.equal(out, given.sum(0).int().expand(16, -1).flatten())


@pytest.mark.parametrize(
    ("kernel", "options", "problem"),
    [
        (
            "summed",
            {"cluster": 2, "blocks": 7},
            r"a grid of \(7,1,1\) blocks is no multiple of the cluster's \(2,1,1\)",
        ),
        ("swapped", {"blocks": 7}, r"no multiple of the cluster's \(2,1,1\)"),
        ("swapped", {"cluster": 4}, r"__cluster_dims__ are \(2,1,1\)"),
        ("summed", {"cluster": 16, "blocks": 16}, "a cluster has 1 to 8, and up to 16 where"),
        ("summed", {"cluster": 32, "blocks": 32, "any_cluster": True}, "a cluster has 1 to 16"),
        ("summed", {"cluster": (2, 0, 1)}, "a cluster has 1 to 8"),
        ("summed", {"cluster": -2}, "-2 is no size"),
    ],
)
def test_clusters_that_a_card_refuses(kernel, options, problem):
    with pytest.raises(SimulationError, match=problem) as caught:
        run(kernel, **options)
    assert [r.kind for r in caught.value.reports] == ["launch"]


@pytest.mark.parametrize(
    ("directive", "cluster", "problem"),
    [
        (".explicitcluster", None, "a size that the launch says, and this one says none"),
        (".explicitcluster", (2, 1, 1), None),
        (".maxclusterrank 4", (8, 1, 1), r"\.maxclusterrank is 4"),
        (".maxclusterrank 4", (4, 1, 1), None),
        (".explicitcluster .reqnctapercluster 2", None, None),
    ],
)
def test_what_ptx_says_of_a_kernels_clusters(directive, cluster, problem):
    text = f".version 8.5\n.target sm_90a\n.address_size 64\n.visible .entry k() {directive} {{ ret; }}\n"
    if problem is None:
        run_ptx(text, "k", (8, 1, 1), (1, 1, 1), 0, [], cluster=cluster)
    else:
        with pytest.raises(SimulationError, match=problem):
            run_ptx(text, "k", (8, 1, 1), (1, 1, 1), 0, [], cluster=cluster)


def test_the_launcher_takes_kernels_for_clusters():
    given, out = numbers(512), torch.zeros(512, dtype=torch.int32)
    matrix = tensor_map(torch.zeros(TILE, TILE, dtype=torch.int32), (TILE, TILE))
    simulate.install("cuda")
    try:
        kernel = Kernel("clusters.cu", "swapped")
        kernel(grid=8, block=64)(out, given, None, matrix, 0)
        with pytest.raises(SimulationError, match="no multiple of the cluster's"):
            kernel(grid=7, block=64)(out, given, None, matrix, 0)
    finally:
        cuda.simulate_with(None)
    assert torch.equal(out, rolled(given.view(8, 64), 2).flatten())


def test_a_multicast_reads_global_memory_once():
    sectors = []
    for size in (1, 2):
        with count() as counts:
            run("multicast", cluster=size, blocks=2, n=1)
        sectors.append(sum(line.load_sectors for line in counts[0].lines.values()))
    assert sectors == [2 * TILE, 2 * TILE]


def test_without_the_race_checker(monkeypatch):
    monkeypatch.setenv("LAYERBENCH_SIMULATE_RACES", "0")
    for seed in (0, 3):
        out, given = run("ring", cluster=8, blocks=16, seed=seed)
        assert torch.equal(out[:16], by_cluster(given, 8)[..., 0].cumsum(1).flatten().int())


# --- planted bugs ----------------------------------------------------------------------------------------------------

FOUND_AS = {
    "read_without_a_barrier": "race",
    "barrier_of_the_block_alone": "race",
    "relaxed_arrival": "race",
    "reached_before_it_began": "cluster",
    "block_ends_too_early": "cluster",
    "block_has_ended": "cluster",
    "rank_that_is_not_there": "cluster",
    "one_block_skips_the_barrier": "deadlock",
    "arrives_twice": "barrier",
    "waits_without_an_arrival": "barrier",
    "barrier_for_half_a_warp": "deadlock",
    "mask_without_the_other": "deadlock",
    "mask_of_too_many": "cluster",
    "bytes_not_expected": "unfinished copy",
    "half_of_the_bytes_expected": "unfinished copy",
    "memory_not_known_to_be_free": "unfinished copy",
    "freed_before_it_is_read": "race",
    "free_in_the_wrong_block": "deadlock",
    "behind_the_others_memory": "out-of-bounds",
    "others_memory_in_the_own_window": "out-of-bounds",
    "others_memory_is_not_written": "uninitialised",
    "waits_for_the_others_barrier": "cluster",
    "others_barrier_is_not_made": "mbarrier",
    "barrier_made_too_late": "race",
    "barrier_beside_the_wrong_memory": "cluster",
    "store_not_waited_for": "unfinished copy",
    "sum_without_an_atomic": "race",
    "sent_without_a_proxy_fence": "proxy",
    "flag_of_the_block_alone": "race",
    "copied_to_a_block_that_may_have_ended": "cluster",
}


def bug(kernel: str, seed: int) -> SimulationError:
    with pytest.raises(SimulationError) as caught:
        run(kernel, blocks=2, source="cluster_bugs.cu", seed=seed)
    return caught.value


def test_every_planted_bug_has_its_report():
    assert tuple(FOUND_AS) == names("cluster_bugs.cu")


@pytest.mark.parametrize("kernel", FOUND_AS)
def test_bug_is_found(kernel):
    error = bug(kernel, seed=0)
    wanted = [r for r in error.reports if r.kind == FOUND_AS[kernel]]
    assert wanted, f"found as {[r.kind for r in error.reports]}: {error}"
    lines = marked_lines("cluster_bugs.cu", rf"__cluster_dims__\(2, 1, 1\) {kernel}")
    assert lines
    assert any(all(re.search(rf"{re.escape(line)}\b", r.message) for line in lines) for r in wanted), (
        f"{lines}: {error}"
    )


@pytest.mark.parametrize("seed", (1, 2, 3, 4, 5, 6))
@pytest.mark.parametrize("kernel", FOUND_AS)
def test_bug_is_found_in_other_orders(kernel, seed):
    assert bug(kernel, seed).reports


# --- a product whose blocks share operands ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_blocks_that_share_tiles_multiply(seed):
    shape = CLUSTER.shapes[0]
    assert is_right(multiply(CLUSTER, shape, seed), shape)


BROKEN = {
    "the own block's stage alone is freed": ("arrive_in_block(&empty[s], t)", "arrive(&empty[s])"),
    "only one block frees the stage": ("t < 2) arrive_in_block(&empty[s], t)", "t == 0) arrive_in_block(&empty[s], 0)"),
    "nobody waits for the other's reads": ("if (round > 0) wait_phase(&empty[s], (round - 1) % 2);", ""),
    "the tile is not given": ("load_tile_in_blocks(0b11,", "load_tile_in_blocks(1 << block_rank(),"),
    "the other half is loaded": ("first_column + half_rows", "first_column + COLUMNS / 2 - half_rows"),
    "the other begins when it likes": ("    sync_cluster();\n    const", "    __syncthreads();\n    const"),
    "the other ends when it likes": ("    sync_cluster();  //", "    //"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_between_blocks_is_found(name, tmp_path):
    text, (line, instead) = CLUSTER.source.read_text(), BROKEN[name]
    assert text.count(line) == 1
    source = tmp_path / "broken.cu"
    source.write_text(text.replace(line, instead))
    assert verdict(replace(CLUSTER, shapes=CLUSTER.shapes[:1]), (0,), source)


# --- on a card -------------------------------------------------------------------------------------------------------

# What each kernel is run with, and the numbers of its answer that count.
ANSWERS = {
    "swapped": ({}, 512),
    "summed": ({"cluster": 4}, 512),
    "histogram": ({"cluster": 4}, 512),
    "vectors": ({"cluster": 4, "words": 4}, 2048),
    "stored_async": ({"cluster": 4, "words": 8}, 4096),
    "reduced_async": ({"cluster": 4}, 6),
    "multicast": ({"cluster": 4, "n": 4}, 512),
    "bytes_multicast": ({"cluster": 4, "n": 0b1010}, 512),
    "hinted": ({"cluster": 4}, 512),
    "sent": ({"cluster": 4, "words": 2}, 1024),
    "loaded_for_another": ({"cluster": 4}, 512),
    "addresses": ({"cluster": 4}, 64),
    "by_groups": ({"cluster": 4}, 512),
    "through_global": ({"cluster": 4, "words": 2}, 512),
    "last_adds": ({"cluster": 4, "words": 2}, 64),
    "flags_set_from_outside": ({"cluster": 2}, 512),
    "flags_seen_from_outside": ({"cluster": 2}, 512),
    "ring": ({"cluster": 8, "blocks": 16}, 16),
}


@on_a_card
@pytest.mark.parametrize("kernel", ANSWERS)
def test_kernels_conform(kernel):
    options, count = ANSWERS[kernel]
    assert torch.equal(run(kernel, **options, device="cuda")[0][:count], run(kernel, **options)[0][:count])
