"""Functions run by several processes that meet as torchrun's would, without its start-up: forked from a server that has
loaded torch."""

import contextlib
import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from bench.core.process import SERVER
from bench.trainer.ranks import Ranks
from bench.trial import worker  # it has the server load what all tests need

assert worker.ROOMS
PATIENCE_S = 60


def together(ranks: int, function: Callable[..., Any], *args: Any, lost: tuple[int, ...] = ()) -> list[Any]:
    """[function(ranks, *args) of each rank]; an exception is returned as it was raised, None of a rank in `lost`, which
    is expected to die."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ends, processes = [], []
    for rank in range(ranks):
        mine, theirs = SERVER.Pipe()
        process = SERVER.Process(target=_one, args=(theirs, rank, ranks, port, function, args), daemon=True)
        process.start()
        theirs.close()
        ends.append(mine)
        processes.append(process)
    try:
        return [_told(end, rank in lost) for rank, end in enumerate(ends)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _told(end: Connection, lost: bool) -> Any:
    if not end.poll(PATIENCE_S):
        raise TimeoutError("a rank has said nothing")
    with contextlib.suppress(EOFError):
        return pickle.loads(end.recv_bytes())
    assert lost, "a rank died"
    return None


def _one(end: Connection, rank: int, ranks: int, port: int, function: Callable[..., Any], args: tuple) -> None:
    os.environ |= dict(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    import torch

    torch.set_num_threads(1)
    try:
        here = Ranks.join()
        found = function(here, *args)
        here.leave()
    except Exception as error:
        found = error
    end.send_bytes(pickle.dumps(found))  # not `send`, which would leave a tensor's contents with this process
