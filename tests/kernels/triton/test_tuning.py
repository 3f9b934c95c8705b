"""Tables of tile sizes: the right one for a GPU without measuring, and the fastest one after it."""

import json

import pytest
import torch

from kernels import cache_dir

pytest.importorskip("triton", reason="Triton is not installed (pip install 'layerbench[simulate]')")
from triton.compiler.errors import CompilationError
from triton.runtime import driver
from triton.runtime.errors import OutOfResources, PTXASError

from kernels.triton import tuning
from kernels.triton.tuning import Tiles, measure_and_keep
from reference import contract, decode_attention

SMALL, LARGE, HUGE = dict(BLOCK=1), dict(BLOCK=2), dict(BLOCK=3)
SHAPE = dict(N=16, dtype="bf16")
PASSES = RuntimeError("PassManager::run failed")
BLOCKS = ("BM", "BN", "BK")
calls: list[int] = []
TILES: Tiles


def forward(x, *, out):
    """Stands for a variant's; writes down with which block it was called."""
    calls.append(TILES.at(x.dtype, x.numel())["BLOCK"])


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "capability", lambda: 90)
    global TILES
    TILES = Tiles(half={80: [HUGE], 90: [SMALL, LARGE]}, fp32={80: [LARGE]})
    calls.clear()


def milliseconds(times: dict[int, float], fails: int = 0):
    """A clock that knows how long each block takes; `fails` does not fit the GPU."""

    def measure(call) -> float:
        call()
        if calls[-1] == fails:
            raise OutOfResources(2, 1, "shared memory")
        return times[calls[-1]]

    return measure


def tuned(clock, gpu: str = "a GPU") -> None:
    measure_and_keep("gelu", SHAPE, "forward", forward, (TILES,), gpu, "cpu", clock)


@pytest.mark.parametrize(("capability", "block"), [(80, 3), (86, 3), (90, 1), (100, 1), (75, 3)])
def test_the_default_is_of_the_newest_known_gpu_that_is_not_newer(monkeypatch, capability, block):
    monkeypatch.setattr(tuning, "capability", lambda: capability)
    assert TILES.at(torch.bfloat16, 5)["BLOCK"] == block
    assert TILES.at(torch.float16, 5)["BLOCK"] == block
    assert TILES.at(torch.float32, 5) == LARGE


def test_the_fastest_is_kept_for_its_key_alone():
    tuned(milliseconds({1: 5.0, 2: 4.0}))
    assert set(calls) == {1, 2}
    assert TILES.at(torch.bfloat16, 16) == LARGE
    assert TILES.at(torch.bfloat16, 17) == SMALL, "another size was not measured"
    assert TILES.text("TILES") == "TILES BLOCK=2 (tuned); TILES BLOCK=1 (default)"


def test_what_was_measured_is_not_measured_again():
    tuned(milliseconds({1: 5.0, 2: 4.0}))
    global TILES
    TILES = Tiles(TILES.half, TILES.fp32)
    calls.clear()
    tuned(milliseconds({}))
    assert not calls and TILES.at(torch.bfloat16, 16) == LARGE


def test_another_gpu_is_measured_afresh():
    tuned(milliseconds({1: 5.0, 2: 4.0}))
    tuned(milliseconds({1: 1.0, 2: 4.0}), gpu="another")
    assert TILES.at(torch.bfloat16, 16) == SMALL
    assert len(json.loads((cache_dir() / "triton-tuned.json").read_text())) == 2


def test_what_does_not_fit_is_no_candidate():
    tuned(milliseconds({1: 5.0}, fails=2))
    assert TILES.at(torch.bfloat16, 16) == SMALL


@pytest.mark.parametrize("refusal", [CompilationError("src", None, "K >= 16"), PTXASError("ptxas"), PASSES])
def test_what_does_not_compile_is_left_out_and_named(refusal):
    global TILES

    def clock(call) -> float:
        call()
        if calls[-1] == 1:
            raise refusal
        return 1.0

    tuned(clock)
    name = type(refusal).__name__
    assert TILES.at(torch.bfloat16, 16) == LARGE
    assert TILES.text("TILES") == f"TILES BLOCK=2 (tuned, without BLOCK=1: {name})"
    assert TILES.at(torch.bfloat16, 17) == LARGE, "nor is it the default of another shape"
    TILES = Tiles(TILES.half, TILES.fp32)
    tuned(clock)
    assert TILES.at(torch.bfloat16, 17) == LARGE and TILES.refused == {" BLOCK=1": name}, "another process knows it too"


def test_where_nothing_is_left_the_refusal_is_told():
    TILES.half = {90: [LARGE]}
    with pytest.raises(OutOfResources, match="shared memory"):
        tuned(milliseconds({}, fails=2))


def test_a_table_that_the_call_does_not_ask_is_not_measured():
    other = Tiles(half={80: [SMALL, LARGE]}, fp32={80: [LARGE]})
    measured = []

    def clock(call) -> float:
        measured.append(other.trying)
        call()
        return 1.0

    measure_and_keep("gelu", SHAPE, "forward", forward, (other, TILES), "a GPU", "cpu", clock)
    assert measured == [None, None] and not other.tuned and TILES.tuned


def test_nothing_is_measured_for_a_proof(monkeypatch):
    class Driver:
        def get_active_torch_device(self):
            raise AssertionError("asked")

    monkeypatch.setattr(driver, "_active", Driver())
    with tuning.untuned():
        tuning.tune("gelu", SHAPE, "forward", forward, TILES)
    with pytest.raises(AssertionError, match="asked"):
        tuning.tune("gelu", SHAPE, "forward", forward, TILES)


def test_one_process_measures_at_a_time_and_the_other_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(tuning, "PATIENCE_SECONDS", 0.1)
    with tuning._alone_on("cpu") as alone:
        assert alone
        tuned(milliseconds({1: 5.0, 2: 4.0}))
        assert not calls and TILES.at(torch.bfloat16, 16) == SMALL, "the default"
        with tuning._alone_on("cuda:1") as other:
            assert other
    tuned(milliseconds({1: 5.0, 2: 4.0}))
    assert TILES.at(torch.bfloat16, 16) == LARGE


def test_no_product_is_of_fewer_terms_than_triton_takes():
    """3.6 refuses tl.dot with an inner size below 16, whatever the dtype."""
    from bench.core.variants import discover

    few = []
    for variant in discover():
        if variant.backend == "triton" and variant.layer in ("matmul", "attention"):
            for name, table in tuning.tables_of(variant.load()).items():
                few += [text for text, c in table.listed(name).items() if min(c[k] for k in c if k in BLOCKS) < 16]
    assert not few


def test_an_error_of_the_kernel_is_not_hidden():
    def broken(call) -> float:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        tuned(broken)
    assert TILES.trying is None


def test_a_damaged_file_is_measured_over():
    (cache_dir() / "triton-tuned.json").write_text("{")
    tuned(milliseconds({1: 5.0, 2: 4.0}))
    assert TILES.at(torch.bfloat16, 16) == LARGE
    assert json.loads((cache_dir() / "triton-tuned.json").read_text())


@pytest.mark.parametrize("phase", ("forward", "backward"))
@pytest.mark.parametrize("layer", contract.layer_names())
def test_random_arguments_are_those_of_the_contract(layer, phase):
    module = contract.load(layer)
    if phase not in contract.phases_of(module):
        return
    shape = {**module.RAGGED[0], "dtype": "bf16"}
    positional, keyword = tuning.random_call(layer, shape, phase, "cpu", _with_workspace(phase))
    spec = contract.pass_of(module, phase)
    assert len(positional) == len(spec.positional())
    assert list(keyword) == [*spec.keyword(), "workspace"] and keyword["workspace"].numel() == 48
    for spec_of, value in zip(spec.inputs, positional, strict=False):
        assert (value is None) == (not spec_of.when(shape))
        if value is not None and not spec_of.many:
            assert tuple(value.shape) == spec_of.sizes(shape)


def test_random_lengths_leave_room_for_the_new_tokens():
    """Which numbers below S may not."""
    shape = {**decode_attention.sizes(8, 8, 2, 1, 16, 9), "spread": True, "dtype": "bf16"}
    _, lengths, _ = tuning.random_call("decode_attention", shape, "forward", "cpu", _with_workspace("forward"))[0]
    assert int(lengths.min()) >= 0 and int(lengths.max()) + shape["T"] <= shape["S"]


def _with_workspace(phase: str):
    class Module:
        @staticmethod
        def workspace(shape, phase):
            return 48

    setattr(Module, phase, staticmethod(lambda *, workspace: None))
    return Module
