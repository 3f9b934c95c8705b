"""The processes that work together: who they are, how they meet, and the few words that they tell each other.

Whoever starts them says in the environment which they are: torchrun (RANK, WORLD_SIZE, …) or Slurm's srun
(SLURM_PROCID, …). The engine is torch.distributed: gloo between CPUs, NCCL between GPUs, and gloo for the words.
"""

import contextlib
import datetime
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from bench.cli import ENDING, FAILED, INTERRUPTED, CannotGoOn
from bench.core.evidence import one_line
from bench.machine.facts import usable_cpus

FAREWELL_S = 3.0  # at most, for the others to hear that rank 0 cannot go on
PATIENCE_S = 1800  # for a rank that does not answer, as torch has it; one that has died is noticed at once
FIRST_PORT, PORTS = 20_000, 20_000  # Slurm gives no port: one of these by the job's number

T = TypeVar("T")
P = TypeVar("P", bound="Peers")


class RankLost(CannotGoOn):
    """A rank has died, or does not answer."""


@dataclass(frozen=True)
class Place:
    """Which process this is: number `rank` of `ranks`, number `local` of those on this machine. address: where rank 0
    waits for the others, host:port; "" where torchrun has arranged that."""

    rank: int = 0
    ranks: int = 1
    local: int = 0
    address: str = ""


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """As torchrun, or else a step of Slurm's srun, says. A batch script is no step: it is one process.

    Raises CannotGoOn where what it says makes no sense.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names, address = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), ""
    elif "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        host = environment.get("MASTER_ADDR") or _first_host(environment.get("SLURM_STEP_NODELIST", "localhost"))
        port = environment.get("MASTER_PORT") or str(FIRST_PORT + _job(environment) % PORTS)
        address = f"{host}:{port}"
    else:
        return Place()
    told = {name: environment.get(name, "0") for name in names}
    if not all(text.isdecimal() for text in told.values()) or not int(told[names[0]]) < int(told[names[1]]):
        raise CannotGoOn(f"no place among ranks: {', '.join(f'{name}={text}' for name, text in told.items())}")
    rank, ranks, local = (int(text) for text in told.values())
    return Place(rank, ranks, local, address)


def _said(error: Exception) -> str:
    """The engine's words, up to the advice in them, without the place in its source."""
    return re.sub(r"^\[\S*\] ", "", one_line(error)).partition(". ")[0]


def _first_host(nodes: str) -> str:
    """Of Slurm's way to write a list: "gpu[03-07,12],cpu1" begins with gpu03."""
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])+", nodes)  # a comma inside brackets is not the list's
    if not first:
        raise CannotGoOn(f"SLURM_STEP_NODELIST={nodes!r} names no host")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def _job(environment: Mapping[str, str]) -> int:
    """A number that the ranks of one step share and other jobs do not."""
    job, step = environment.get("SLURM_JOB_ID", "0"), environment.get("SLURM_STEP_ID", "0")
    return int(job) * 31 + int(step) if job.isdecimal() and step.isdecimal() else 0


class Peers:
    """This process among those that work together; `Peers()` is one that is alone, and waits for nobody.

    rank, ranks, local: see Place. threads: its share of the cores that it may use. machines: of all ranks.

    Its methods are called by all ranks in the same order, and answer all alike. Each raises RankLost where one has
    died.
    """

    def __init__(self, place: Place | None = None):
        place = place or Place()
        self.rank, self.ranks, self.local = place.rank, place.ranks, place.local
        self.threads, self.machines = len(usable_cpus()), 1
        self.attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT") or os.environ.get("SLURM_RESTART_COUNT") or "0"
        self.store: dist.Store | None = None  # where there are others

    @classmethod
    def join(cls: type[P], environment: Mapping[str, str] = os.environ) -> P:
        """Meet the others, if there are any. Raises CannotGoOn where they do not come."""
        here = place(environment)
        if here.ranks == 1:
            return cls(here)
        ranks = cls(here)
        try:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            patience = datetime.timedelta(seconds=PATIENCE_S)
            ranks.store = ranks._meet(f"tcp://{here.address}" if here.address else "env://", patience)
            dist.init_process_group(backend, store=ranks.store, rank=here.rank, world_size=here.ranks, timeout=patience)
            ranks._look_around()
        except (RuntimeError, ValueError, OSError) as error:
            at = here.address or f"{environment.get('MASTER_ADDR')}:{environment.get('MASTER_PORT')}"
            raise CannotGoOn(
                f"rank {here.rank} of {here.ranks} did not meet the others at {at}: {_said(error)} "
                f"(to train alone, unset {'SLURM_PROCID' if here.address else 'RANK'})"
            ) from error
        return ranks

    def _meet(self, where: str, patience: datetime.timedelta) -> dist.Store:
        """What all ranks can read and write. After a restart torchrun's may still hold what the lost ranks wrote of
        themselves (torch 2.13), so each attempt has names of its own."""
        store, _, _ = next(rendezvous(where, self.rank, self.ranks, timeout=patience))
        return dist.PrefixStore(f"attempt {self.attempt}", store)

    def on(self, device: str) -> str:
        """This rank's own device, where all were told "cuda" (or another rank's)."""
        if self.ranks == 1 or device.partition(":")[0] != "cuda":
            return device
        torch.cuda.set_device(self.local % torch.cuda.device_count())  # Slurm may show each rank its own alone
        return f"cuda:{torch.cuda.current_device()}"

    @property
    def restarted(self) -> bool:
        """Whether torchrun has started the ranks again after one was lost, or Slurm a job that it had put back into its
        queue: the run is to go on, not to start."""
        return self.attempt != "0"

    @property
    def main(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    def leave(self) -> None:
        """At the end, when nothing is left to be said: wait for the others and let go of them."""
        if self.ranks > 1:
            self.barrier()
            dist.destroy_process_group()

    # --- a few words ---

    def all(self, number: float) -> list[float]:
        """Every rank's number, by rank."""
        if self.ranks == 1:
            return [number]
        found = torch.zeros(self.ranks, 1, dtype=torch.float64)
        with self.losing("waiting for the others"):
            dist.all_gather(list(found.unbind()), torch.tensor([number], dtype=torch.float64))
        return found.flatten().tolist()

    def any(self, flag: bool) -> bool:
        return any(self.all(float(flag)))

    def mean(self, number: float) -> float:
        """Summed by rank, so that it is the same number everywhere."""
        return sum(self.all(number)) / self.ranks

    def barrier(self) -> None:
        """Wait for all."""
        self.all(0.0)

    def first(self, what: T) -> T:
        """Rank 0's `what`, on all ranks; the others' is not looked at."""
        if self.ranks == 1:
            return what
        box = [what]
        with self.losing("waiting for rank 0"):
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def everyones(self, what: T) -> list[T]:
        """What every rank has to say, by rank."""
        found = [what] * self.ranks
        if self.ranks > 1:
            with self.losing("waiting for the others"):
                dist.all_gather_object(found, what)
        return found

    def agree(self, flat: torch.Tensor, what: str) -> None:
        """Raises CannotGoOn, with `what` in its words, where ranks hold different bits in a contiguous tensor, of whole
        groups of 4 bytes. By a sum of them: it finds ranks that have drifted apart, not what somebody hides."""
        if self.ranks == 1:
            return
        digest = int(flat.view(-1).view(torch.int32).sum(dtype=torch.int64))
        for half in (digest >> 32, digest & 0xFFFFFFFF):  # each fits fp64
            self.same(half, what)

    def same(self, number: float, what: str) -> None:
        """Raises CannotGoOn, with `what` in its words, where it is not the same number on all ranks."""
        numbers = self.all(float(number))
        if other := [rank for rank, found in enumerate(numbers) if found != numbers[0]]:
            raise CannotGoOn(f"rank 0 and rank {other[0]} differ in {what}")

    @contextlib.contextmanager
    def losing(self, doing: str) -> Iterator[None]:
        """What the engine raises inside because a rank is not there any more becomes RankLost."""
        try:
            yield
        except RuntimeError as error:
            message = (
                f"a rank was lost while rank {self.rank} of {self.ranks} was {doing}; "
                f"go on with --resume ({_said(error)})"
            )
            raise RankLost(message, FAILED) from error

    @contextlib.contextmanager
    def one_voice(self) -> Iterator[None]:
        """Where several ranks cannot go on, the first of them is heard; the others leave with the same exit code, and
        say nothing: it is one job, and one cause."""
        try:
            yield
        except (CannotGoOn, KeyboardInterrupt) as error:
            if self.ranks > 1:  # a launcher that misses a rank ends the others, and they have a cause to tell
                for number in ENDING:
                    signal.signal(number, signal.SIG_IGN)
            speaks = self._speaks()
            self._wait_until_all_know()
            if speaks:
                raise
            raise SystemExit(error.code if isinstance(error, CannotGoOn) else INTERRUPTED) from error
        except Exception:
            self._speaks()
            self._wait_until_all_know()
            raise

    def _wait_until_all_know(self) -> None:
        """Rank 0 may keep what all others ask whether they are to speak: it stays until they have. One that is lost
        never asks: then it stays for as long as they may take."""
        if self.store and self.main:
            until = time.monotonic() + FAREWELL_S
            with contextlib.suppress(RuntimeError):  # whoever keeps it may be gone
                dist.destroy_process_group()  # what the others notice
                while self.store.add("voice", 0) < self.ranks and time.monotonic() < until:
                    time.sleep(0.02)

    def _speaks(self) -> bool:
        """Whether no other rank has asked before. Where nobody can be asked, rank 0 is gone, and rank 1 speaks."""
        if not self.store:
            return True
        try:
            return self.store.add("voice", 1) == 1
        except Exception:
            return self.rank <= 1

    def _look_around(self) -> None:
        """Who shares which machine, and which cores: Slurm may bind each rank to its own."""
        host, mine = socket.gethostname(), usable_cpus()
        told = self.everyones((host, mine))
        sharing = sum(other == host and not set(cpus).isdisjoint(mine) for other, cpus in told)
        self.threads = max(1, len(mine) // sharing)
        self.machines = len({other for other, _ in told})
