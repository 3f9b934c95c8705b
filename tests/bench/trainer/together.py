"""Functions run by several processes that find themselves in torchrun's environment, without its start-up: they are
forked from a server that has loaded torch, and those of `together` live on for the next function."""

import atexit
import contextlib
import os
import pickle
import socket
from collections.abc import Callable
from typing import Any

import torch

from bench.core.process import SERVER
from bench.trainer.ranks import Ranks
from bench.trial import worker  # it has the server load what all tests need

assert worker.ROOMS
PATIENCE_S = 90
DIED, SILENT = "died", "silent"
Function = Callable[..., Any]


def together(ranks: int, function: Function, *args: Any) -> list[Any]:
    """[function(ranks, *args) of each rank]."""
    try:
        return _team(ranks).run(function, *args)
    except BaseException:
        _end_teams()  # who knows what state they are in
        raise


def apart(ranks: int, function: Function, *args: Any, last: bool = True) -> list[Any]:
    """[function(*args) of each rank], processes of their own that meet by themselves, if at all; an exception is
    returned as it was raised, DIED for a rank that died. last: False does not wait for the last rank: SILENT."""
    team = Team(ranks, False)
    try:
        return team.run(function, *args, whatever=True, last=last)
    finally:
        team.end()


class Team:
    """Processes, one for each rank. joined: they have met, and functions get their `Ranks` first."""

    def __init__(self, ranks: int, joined: bool):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        shared = dict(WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        self.ends, self.processes = [], []
        for rank in range(ranks):
            mine, theirs = SERVER.Pipe()
            own = dict(RANK=str(rank), LOCAL_RANK=str(rank), **shared)
            process = SERVER.Process(
                target=_serve, args=(theirs, own, joined), daemon=joined
            )  # else it may have a judge
            process.start()
            theirs.close()
            self.ends.append(mine)
            self.processes.append(process)

    def run(self, function: Function, *args: Any, whatever: bool = False, last: bool = True) -> list[Any]:
        """Of each rank; the first exception is raised, unless any outcome is welcome."""
        for end in self.ends:
            end.send_bytes(pickle.dumps((function, args)))
        found = [_told(end) for end in (self.ends if last else self.ends[:-1])] + [SILENT] * (not last)
        for outcome in () if whatever else found:
            if isinstance(outcome, BaseException):
                raise outcome
            assert outcome is not DIED
        return found

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _told(end: Any) -> Any:
    if not end.poll(PATIENCE_S):
        raise TimeoutError("a rank has said nothing")
    with contextlib.suppress(EOFError, ConnectionResetError):
        return pickle.loads(end.recv_bytes())
    return DIED


_teams: dict[int, Team] = {}


def _team(ranks: int) -> Team:
    if ranks not in _teams:
        _teams[ranks] = Team(ranks, True)
    return _teams[ranks]


def _end_teams() -> None:
    while _teams:
        _teams.popitem()[1].end()


atexit.register(_end_teams)


def _serve(end: Any, own: dict[str, str], joined: bool) -> None:
    os.environ |= own
    torch.set_num_threads(1)
    ranks = (Ranks.join(),) if joined else ()
    while True:
        function, args = pickle.loads(end.recv_bytes())
        try:
            found = function(*ranks, *args)
        except BaseException as error:
            found = error
        end.send_bytes(pickle.dumps(found))  # not `send`, which would leave a tensor's contents with this process
        if not joined:
            return
