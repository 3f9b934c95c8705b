"""Matmul on tensor cores: cut otherwise than the contract's shapes are, counted, and broken by one edit at a time."""

import pytest
import torch

from bench import simulate
from kernels import cuda
from tests.kernels.cuda.tensor_core_matmuls import Tried, is_right, outputs, verdict, wrong
from tests.kernels.cuda.tensor_core_mutants import MMA, WGMMA

MOST_WAVEFRONTS, MOST_SECTORS = 1.05, 1.1  # of the least that is possible
KILLED = 0.9  # of the mutants, at least
TIMES = 3

# The first of each product is what mutants are tried on first.
TRIED = {
    ("mma", "forward"): (
        Tried(150, 136, 200, "bias_gelu"),
        Tried(70, 65, 33),
    ),
    ("mma", "dx"): (Tried(150, 136, 200, dgelu=True), Tried(70, 65, 33)),
    ("mma", "dweight"): (
        Tried(300, 136, 72, part=128),
        Tried(150, 136, 200, accumulate=True),
        Tried(70, 65, 33, part=64, accumulate=True),
    ),
    ("wgmma", "forward"): (
        Tried(300, 264, 392, "bias_gelu", blocks=1),  # 9 tiles of 7 stages by one block, 5 stages at a time
        Tried(600, 136, 72, "none", blocks=3),
    ),
    ("wgmma", "dx"): (
        Tried(300, 200, 264, dgelu=True, blocks=1),
        Tried(600, 72, 136, blocks=3),
    ),
    ("wgmma", "dweight"): (
        Tried(600, 264, 136, part=384, blocks=1),
        Tried(200, 264, 264, accumulate=True, blocks=1),
        Tried(600, 136, 72, part=64, accumulate=True, blocks=3),
    ),
}


MORE = {  # of instances that are compiled for this alone
    ("mma", "forward"): (Tried(40, 20, 132, "none"), Tried(40, 34, 70, "none")),  # 8 and 4 bytes an access
    ("mma", "dx"): (Tried(40, 20, 132), Tried(40, 34, 70, dtype="fp16")),
    ("mma", "dweight"): (Tried(40, 20, 132), Tried(40, 34, 70, dtype="fp16")),
    ("wgmma", "forward"): (Tried(600, 136, 72, "bias_gelu", blocks=3, dtype="fp16"),),
    ("wgmma", "dx"): (Tried(300, 200, 264, dgelu=True, blocks=1, dtype="fp16"),),
    ("wgmma", "dweight"): (Tried(600, 136, 72, part=64, accumulate=True, blocks=3, dtype="fp16"),),
}
FEW = ("missing_barrier", "turn_not_waited_for")  # one of each variant, cheap and telling


@pytest.mark.parametrize(("variant", "product"), list(TRIED))
def test_each_way_to_cut_the_work_is_right(simulated, variant, product):
    module = simulated("matmul", variant_name(variant))
    for tried in TRIED[variant, product]:
        assert not wrong(module, product, tried), tried


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "product"), list(MORE))
def test_other_widths_and_fp16_are_right(simulated, variant, product):
    module = simulated("matmul", variant_name(variant))
    for tried in MORE[variant, product]:
        assert not wrong(module, product, tried), tried


def variant_name(variant):
    return f"cuda.{variant}"


@pytest.mark.parametrize(("variant", "product"), list(TRIED))
def test_whole_tiles_move_without_waste(simulated, variant, product):
    module = simulated("matmul", variant_name(variant))
    with simulate.count() as launches:
        list(outputs(module, product, Tried(256, 128, 128, "bias_gelu", dgelu=True, accumulate=True, part=128)))
    for launch in launches:
        t = launch.total
        moved, least = t.load_sectors + t.store_sectors, t.ideal_load_sectors + t.ideal_store_sectors
        assert moved <= MOST_SECTORS * least, launch.kernel
        assert t.shared_wavefronts <= MOST_WAVEFRONTS * t.ideal_shared_wavefronts, launch.kernel


@pytest.mark.slow
def test_two_stages_where_three_would_not_fit_twice(simulated):
    module = simulated("matmul", "cuda.mma")
    with cuda.targeting("sm_80"):
        assert not wrong(module, "forward", Tried(150, 136, 200, "bias_gelu"))


def test_a_tensor_that_begins_anywhere_is_taken_by_mma_and_refused_by_tma(simulated):
    def shifted(rows, columns):
        values = torch.randn(rows * columns + 1, generator=torch.Generator().manual_seed(rows)).bfloat16()
        return values[1:].view(rows, columns)

    x, weight, out = shifted(70, 72), shifted(65, 72), torch.empty(70, 65, dtype=torch.bfloat16)
    simulated("matmul", "cuda.mma").forward(x, weight, None, "none", out=out, pre_gelu=None)
    assert is_right(out, x.double() @ weight.double().T)
    with pytest.raises(ValueError, match="does not begin at a multiple of 16 bytes"):
        simulated("matmul", "cuda.wgmma").forward(
            x, weight[:64], None, "none", out=torch.empty_like(x[:, :64]), pre_gelu=None
        )


def parameters():
    for mutant in (*MMA, *WGMMA):
        marks = [] if mutant.name in FEW else [pytest.mark.slow]
        yield pytest.param(mutant, id=f"{mutant.variant}-{mutant.product}-{mutant.name}", marks=marks)


@pytest.mark.parametrize("mutant", list(parameters()))
def test_mutant_is_found(simulated, mutant, tmp_path):
    """By any report, or by a wrong result; those that say that they survive must do so, or the list is wrong."""
    module = simulated("matmul", variant_name(mutant.variant))
    found = verdict(mutant, module, TRIED[mutant.variant, mutant.product], TIMES, tmp_path)
    assert bool(found) != bool(mutant.survives), found


@pytest.mark.parametrize("mutants", (MMA, WGMMA), ids=("mma", "wgmma"))
def test_enough_mutants_are_found(mutants):
    """`survives` is held true by test_mutant_is_found, so that counting it is counting the survivors."""
    assert len({(m.product, m.name) for m in mutants}) == len(mutants) >= 24
    assert sum(not m.survives for m in mutants) >= KILLED * len(mutants)


@pytest.mark.parametrize("mutants", (MMA, WGMMA), ids=("mma", "wgmma"))
def test_what_mutants_edit_is_there(mutants, simulated, tmp_path):
    """Most of them are tried by the slow tests alone, long after a source has changed."""
    module = simulated("matmul", variant_name(mutants[0].variant))
    for i, mutant in enumerate(mutants):
        (folder := tmp_path / str(i)).mkdir()
        mutant.write(module, folder)
