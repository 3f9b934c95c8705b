"""A message is read without running what is in it, in memory of its own size, and held to the annotated type."""

import collections
import contextlib
import pickle
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import pytest

from bench.core.replies import ANY, Rubbish, Seconds, check, packed, schema_of, schemas_of, unpacked
from bench.models import CallId


class Kind(Enum):
    ONE = 1


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.5


@dataclass
class Inner:
    points: list[Point] = field(default_factory=list)

    def sum(self) -> int:
        return len(self.points)


class Named(NamedTuple):
    name: str


class Fields(TypedDict, total=False):
    a: int


class Strict(TypedDict):
    a: int
    b: int


class Harmful:
    """An object of this file that is no record."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path, ("/",)


HERE = (__name__,)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1 << 40, -(1 << 200), 0.5, float("inf"), "", "é" * 1000, "half \udc80", b"bytes", ()),
    *((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], {}, {"a": [1, {"b": (None,)}]}, {1, 2}, frozenset({"a"})),
    *(Path("/a/b"), collections.OrderedDict(a=1), collections.Counter("aab"), collections.deque([1], 3)),
    *(Point(1), Inner([Point(2)]), Named("n"), Kind.ONE, CallId("gelu", "", "forward"), list(range(5000))),
)


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_plain_data_and_records_come_back_as_they_were(value):
    again = unpacked(packed(value), HERE)
    assert again == value and type(again) is type(value)


class Calls:
    def __init__(self, function: Any, *arguments: object):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


REACHED: list[str] = []


def reached(what: str) -> str:
    REACHED.append(what)
    return what


@pytest.mark.parametrize(
    "message",
    [
        Calls(reached, "a function of a module whose records are known"),
        Calls(eval, "__import__('os').getpid()"),
        Calls(getattr, REACHED, "append"),
        Calls(exec, "raise SystemExit"),
        Calls(collections.deque.append, collections.deque(), 1),
        Calls(ValueError, "an exception is no answer"),
        Harmful,
        Path.home,
        Point.__init__,
        type,
    ],
    ids=["function", "eval", "getattr", "exec", "method", "exception", "class", "path", "init", "type"],
)
def test_nothing_is_called_but_what_makes_records(message):
    REACHED.clear()
    with pytest.raises(Rubbish, match="asks for"):
        unpacked(pickle.dumps(message, 4), HERE)
    assert not REACHED


def test_a_record_of_a_module_that_is_not_the_rooms_does_not_come():
    with pytest.raises(Rubbish, match="asks for"):
        unpacked(packed(Point(1)))


def test_a_message_changes_no_class():
    """The instruction that fills an object's fields is given the class itself."""
    state = b"\x80\x04" + pickle.dumps((None, {"sum": "mine"}), 4)[2:-1]
    program = b"\x80\x04" + _pushed(__name__) + _pushed("Inner") + pickle.STACK_GLOBAL + state[2:] + b"b."
    with pytest.raises(Rubbish, match="a change of a class"):
        unpacked(program, HERE)
    assert Inner().sum() == 0
    pickle.loads(program)  # which is what pickle itself does with it, …
    assert Inner.sum == "mine"  # … so that the test can fail
    Inner.sum = lambda self: len(self.points)  # type: ignore[method-assign]


def _pushed(text: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()


BOMBS = {
    "a table as large as the message says": b"\x80\x04Nr\xff\xff\xff\x7f.",
    "an array of announced size": b"\x80\x05" + pickle.BYTEARRAY8 + (1 << 40).to_bytes(8, "little") + b".",
    "a text of announced size": b"\x80\x04" + pickle.BINUNICODE + b"\xff\xff\xff\x7fab.",
    "a number of a gigabyte": b"\x80\x04" + pickle.LONG4 + b"\xff\xff\xff\x3f1.",
    "an object kept elsewhere": b"\x80\x04Nq\x00Q.",
    "a class by text": b"cos\nsystem\n(S'true'\ntR.",
    "an extension": b"\x80\x04\x82\x01.",
    "nothing": b"",
    "no end": b"\x80\x04N",
    "nothing on the stack": b"\x80\x04b.",
    "a mark alone": b"\x80\x04(.",
    "noise": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_what_is_no_message_costs_nothing(data):
    start = time.process_time()
    with pytest.raises(Rubbish):
        unpacked(data)
    assert time.process_time() - start < 0.5


def test_a_path_comes_whatever_module_python_has_it_in():
    assert unpacked(packed([Path("a/b"), PurePath("c")])) == [Path("a/b"), PurePath("c")]


def test_every_cut_and_every_wrong_byte_of_a_message_is_rubbish_or_data():
    data = packed((1, "done", {"a": [1.0, Path("x")], "b": CallId("gelu", "", "forward")}))
    for i in range(len(data)):
        for spoiled in (data[:i], data[:i] + bytes([data[i] ^ 0x5A]) + data[i + 1 :]):
            with contextlib.suppress(Rubbish):
                unpacked(spoiled)


def test_a_deep_message_ends():
    data = b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b"."
    found = unpacked(data)
    check([found], schema_of(list[list[list[Any]]]))


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [0, True, 1 << 64], ["1", 1.0, None, 1 << 1024, -(1 << 1024)]),
        (float, [0.5, 1, float("nan")], ["1", None, True, 10**400]),
        (bool, [True], [1, None]),
        (str, ["a"], [b"a", None]),
        (None, [None], [0, ""]),
        (Seconds, [0.0, 5], [-1e-9, float("inf"), None, 10**400]),
        (Seconds | None, [0.0, None], [-1.0, "x"]),
        (list[Seconds], [[], [0.5]], [[-1.0], (0.5,), [None]]),
        (Annotated[int, "described"], [1], ["1"]),
        (list[int], [[], [1, 2]], [[1, "2"], (1,), {1}]),
        (tuple[int, str], [(1, "a")], [(1,), ("a", 1), [1, "a"]]),
        (tuple[int, ...], [(), (1, 2)], [(1, "a"), [1]]),
        (set[str], [set(), {"a"}], [{1}, ["a"]]),
        (dict[str, float], [{}, {"a": 1.0}], [{1: 1.0}, {"a": "b"}, [("a", 1.0)]]),
        (dict[CallId, int], [{CallId("a", "", "b"): 1}], [{("a", "", "b"): 1}]),
        (Literal["a", 1], ["a", 1], ["b", True, 1.0]),
        (Fields, [{}, {"a": 1}], [{"a": "b"}, {"b": 1}, None]),
        (Point, [Point(1)], [Point("1"), (1, 0.5), Named("x")]),  # type: ignore[arg-type]
        (Inner, [Inner([Point(1)])], [Inner([1]), Inner(None)]),  # type: ignore[list-item, arg-type]
        (Named, [Named("a")], [Named(1), ("a",)]),  # type: ignore[arg-type]
        (Kind, [Kind.ONE], [1]),
        (Path, [Path("a")], ["a"]),
        (list, [[], ["anything"]], [()]),
        (int | list[str], [1, ["a"]], [[1], "a"]),
        (Any, [object()], []),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value),
)
def test_a_value_is_held_to_its_annotation(hint, right, wrong):
    schema = schema_of(hint)
    assert unpacked(packed(schema)) == schema, "a schema travels"
    for value in right:
        check(value, schema)
    for value in wrong:
        with pytest.raises(Rubbish, match="the answer"):
            check(value, schema)


def test_a_missing_or_made_up_field_is_told():
    bare = object.__new__(Inner)
    with pytest.raises(Rubbish, match=r"the answer\.points is missing"):
        check(bare, schema_of(Inner))
    more = Inner()
    more.sum = 3  # type: ignore[assignment, method-assign]  # it would hide the method
    with pytest.raises(Rubbish):
        check(more, schema_of(Inner))
    with pytest.raises(Rubbish, match="the answer lacks 'b'"):
        check({"a": 1}, schema_of(Strict))


def test_every_command_of_the_harness_says_what_it_answers():
    from bench.training.rooms import JudgeRoom, OurRoom, TorchRoom
    from bench.trial.room import Room

    inherited = {"explain", "tell", "parameters"}  # never asked for by the parent
    for room in (Room, OurRoom, TorchRoom, JudgeRoom):
        vague = {name for name, schema in schemas_of(room).items() if schema == ANY}
        assert vague <= inherited, room
