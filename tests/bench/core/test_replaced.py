"""Whose functions they are: what is put in the place of one of the harness's, or of Python's, is told."""

import builtins
import contextlib
import os
import random
import secrets
import sys
import threading
import time
import zlib
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from bench.core import arena, deeds, process, replaced, world
from bench.core.arena import Arena
from bench.core.world import difference, take

pytestmark = pytest.mark.usefixtures("guarded")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (time, "perf_counter_ns"),
        (time, "time"),
        (time, "monotonic"),
        (os, "write"),
        (torch, "allclose"),
        (torch.Tensor, "copy_"),
        (torch.Tensor, "__eq__"),
        (torch.Tensor, "__rsub__"),
        (arena, "len"),
        (arena, "checksum"),
        (Arena, "reset"),
        (world, "take"),
        (threading, "active_count"),
        (builtins, "iter"),
        (secrets, "randbits"),
        (random.Random, "getrandbits"),
        (contextlib.nullcontext, "__exit__"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_function_of_the_harness_that_is_replaced_is_told(owner, name, monkeypatch):
    before = take()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lambda *_, **__: 0, raising=False)
        after = _state_of_functions()
    assert name in difference({"replaced functions": before["replaced functions"]}, after)


def _state_of_functions() -> world.State:
    return {"replaced functions": replaced.REPLACED()}


class OtherModule(ModuleType):
    pass


class OtherDict(dict):
    pass


class Equal:
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


def closed_over(patch):
    cell = next(c for c in (process.with_variables.__closure__ or ()) if callable(c.cell_contents))
    was = cell.cell_contents
    cell.cell_contents = len
    return lambda: setattr(cell, "cell_contents", was)


def class_of_a_module(patch):
    zlib.__class__ = OtherModule
    return lambda: setattr(zlib, "__class__", ModuleType)


OTHERWISE: dict[str, Callable] = {
    "the class of zlib": class_of_a_module,
    "what bench.core.process.with_variables closes over": closed_over,
    "sys.modules[zlib]": lambda patch: patch.setitem(sys.modules, "zlib", OtherModule("zlib")),
    "threading._active": lambda patch: patch.setattr(threading, "_active", OtherDict(vars(threading)["_active"])),
    "bench.core.deeds.EVENTS": lambda patch: patch.setattr(deeds, "EVENTS", []),
    "bench.core.arena.Fenced.view": lambda patch: patch.setattr(arena.Fenced, "view", property(id), raising=False),
    "bench.core.arena.Probe.__del__": lambda patch: patch.setattr(arena.Probe, "__del__", id, raising=False),
    "bench.core.arena.Arena.probe": lambda patch: patch.setattr(Arena, "probe", Equal()),
    "bench.core.world.take": lambda patch: patch.setattr(world, "take", lambda deep=False: {}),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_works_when_the_harness_looks_at_it_is_told(what, monkeypatch):
    """By the function that is held elsewhere, too: others could be replaced by ones that tell nothing."""
    told = replaced.sealed()
    assert told() == ()
    with monkeypatch.context() as patch:
        back = OTHERWISE[what](patch)
        found = told()
        if what.startswith(("the class", "what")):
            back()
    assert what in found and told() == ()


def test_a_field_that_is_none_of_pythons_business_hides_nothing(monkeypatch):
    """What Python itself keeps at a class, and a name that no object of it has."""
    monkeypatch.setattr(arena.Probe, "__slotnames__", [], raising=False)
    monkeypatch.setattr(arena.Probe, "a_name_of_its_own", 1, raising=False)
    assert replaced.sealed()() == ()
