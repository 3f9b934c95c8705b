"""Who the processes are, as those who start them say; what they tell each other is the same everywhere."""

import os
import signal

import pytest
import torch

from bench.cli import ENDING, CannotGoOn
from bench.trainer.peers import Peers, Place, place
from tests.bench.trainer.rank_cases import by_srun, share_of_cores, words
from tests.bench.trainer.together import apart, together

STEP = dict(SLURM_JOB_ID="77", SLURM_STEP_ID="2", SLURM_STEP_NUM_TASKS="16", SLURM_PROCID="9", SLURM_LOCALID="1")


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, Place()),
        (dict(RANK="3", WORLD_SIZE="8", LOCAL_RANK="1"), Place(3, 8, 1)),
        (dict(RANK="0", WORLD_SIZE="1"), Place()),
        ({**STEP, "RANK": "0", "WORLD_SIZE": "2"}, Place(0, 2)),  # torchrun under srun
        (dict(SLURM_JOB_ID="77", SLURM_NTASKS="16", SLURM_PROCID="0"), Place()),  # a batch script
        (STEP, Place(9, 16, 1, "localhost:22389")),
        ({**STEP, "SLURM_STEP_NODELIST": "gpu[03-07,12],cpu1"}, Place(9, 16, 1, "gpu03:22389")),
        ({**STEP, "SLURM_STEP_NODELIST": "cpu1,gpu[03-07]"}, Place(9, 16, 1, "cpu1:22389")),
        ({**STEP, "SLURM_STEP_NODELIST": "r[1-2]n[05-06]-ib"}, Place(9, 16, 1, "r1n05-ib:22389")),
        ({**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7"}, Place(9, 16, 1, "10.0.0.1:7")),
    ],
)
def test_place(environment, found):
    assert place(environment) == found


@pytest.mark.parametrize(
    "environment",
    [
        dict(RANK="2", WORLD_SIZE="2"),
        dict(RANK="-1", WORLD_SIZE="2"),
        dict(RANK="one", WORLD_SIZE="2"),
        dict(RANK="0", WORLD_SIZE="0"),
        dict(RANK="0", WORLD_SIZE=""),
        {**STEP, "SLURM_PROCID": "16"},
    ],
)
def test_no_place(environment):
    with pytest.raises(CannotGoOn, match=r"no place among ranks: .*(RANK|SLURM_PROCID)="):
        place(environment)


def test_other_jobs_and_steps_meet_elsewhere():
    ports = {place({**STEP, "SLURM_JOB_ID": str(j), "SLURM_STEP_ID": str(s)}).address for j in (77, 78) for s in (0, 1)}
    assert len(ports) == 4


def test_what_is_said_is_the_same_everywhere():
    found = together(3, words)
    for rank, said in enumerate(found):
        assert said["all"] == [0, 1 / 3, 2 / 3]
        assert said["mean"] == found[0]["mean"] == pytest.approx(0.1)
        assert said["any"] == (True, False)
        assert said["first"] == {"of": 0}
        assert said["main"] == (rank == 0)
        assert said["drifted"] == "rank 0 and rank 2 differ in the parameters"


def test_alone_there_is_nobody_to_wait_for():
    alone = Peers()
    assert (alone.all(2.0), alone.mean(2.0), alone.any(False), alone.first("x")) == ([2], 2, False, "x")
    assert alone.main
    alone.barrier()
    alone.leave()
    with pytest.raises(CannotGoOn, match="my own"), alone.one_voice():
        raise CannotGoOn("my own")


def test_a_signal_takes_no_causes_place():
    """A launcher that misses a rank ends the others while these ask each other who is to say so."""

    class Store:
        def add(self, key: str, number: int) -> int:
            os.kill(os.getpid(), signal.SIGTERM)
            return 1

    before = {number: signal.getsignal(number) for number in ENDING}
    others = Peers(Place(rank=1, ranks=2, local=1))
    others.store = Store()  # type: ignore[assignment]
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with pytest.raises(CannotGoOn, match="was lost"), others.one_voice():
            raise CannotGoOn("a rank was lost")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_ranks_of_slurm_meet_at_rank_0():
    assert apart(2, by_srun) == [[0, 1], [0, 1]]


def test_threads_are_a_share_of_the_cores():
    """Where they may use the same cores they share them; where each is bound to its own it has all of those."""
    assert apart(2, share_of_cores, {0: [0, 1, 2, 3, 4], 1: [0, 1, 2, 3, 4]}) == [2, 2]
    assert apart(2, share_of_cores, {0: [0, 1, 2], 1: [3]}) == [3, 1]


@pytest.mark.parametrize(("seen", "mine"), [(8, "cuda:1"), (1, "cuda:0")])
def test_a_gpu_each(monkeypatch, seen, mine):
    """Of those that are seen: Slurm may show each rank one only."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
    peers = Peers(Place(5, 8, 1))
    assert peers.on("cuda") == peers.on("cuda:0") == mine


def test_other_devices_are_everybodys():
    assert Peers().on("cuda") == "cuda" and Peers(Place(1, 2, 1)).on("cpu") == "cpu"
    assert Peers(Place(1, 2, 1)).on("tests.fake_gpu:FakeGpu") == "tests.fake_gpu:FakeGpu"
