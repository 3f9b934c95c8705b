"""What a process answers, read as if somebody else had written it: no code runs, no size is believed, types are held.

`packed` writes a message; `unpacked` reads one without ever calling what is not known to be harmless; `schema_of` turns
a return annotation into plain data, and `check` holds a value to it. A message that fails is `Rubbish`.
"""

import dataclasses
import importlib
import io
import pickle
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import PosixPath, PurePath, PurePosixPath
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

MOST_BYTES = 64 << 20  # of one message
PROTOCOL = 4
HARNESS = ("bench.", "reference.")  # modules whose dataclasses, named tuples and enumerations may come
HARMLESS = {
    *((cls.__module__, cls.__name__) for cls in (PosixPath, PurePosixPath)),  # Python 3.13 has them in pathlib._local
    *(("collections", name) for name in ("OrderedDict", "Counter", "deque")),
    *(("builtins", name) for name in ("int", "float", "bool")),  # what NumPy's scalars are sent as
}


class Rubbish(Exception):
    """A message that no room of the harness would send."""


class Mark(Enum):
    """What an annotation says beyond the type."""

    DURATION = "a duration"


Seconds = Annotated[float, Mark.DURATION]  # finite and not negative

# --- to bytes and back ---


class _Writer(pickle.Pickler):
    """Numbers of NumPy are sent as Python's: a reply is plain data."""

    def reducer_override(self, value: Any) -> Any:
        if type(value).__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "shape", (1,)):
            bare = value.item()
            if type(bare) in (int, float, bool):
                return type(bare), (bare,)
        return NotImplemented


def packed(message: object) -> bytes:
    """A message as bytes. Raises Rubbish where it cannot be sent."""
    buffer = io.BytesIO()
    try:
        _Writer(buffer, PROTOCOL).dump(message)
    except Exception as error:
        raise Rubbish(f"an answer that cannot be sent: {type(error).__name__}") from error
    if buffer.tell() > MOST_BYTES:
        raise Rubbish(f"an answer of {buffer.tell():,} bytes, more than {MOST_BYTES:,}")
    return buffer.getvalue()


# A pickle is a program for a small machine. These instructions build plain data, objects of known classes, and nothing
# else; none reserves memory that the message does not fill, which is why Python's own machine is used: C's has a table
# whose size the message names.
_INSTRUCTIONS = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT),
    *(pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.SHORT_BINBYTES, pickle.BINBYTES),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.STACK_GLOBAL, pickle.NEWOBJ, pickle.REDUCE, pickle.BUILD),
)


class _Reader(pickle._Unpickler):
    """Reads plain data and objects of the harness's own classes."""

    def __init__(self, data: bytes, modules: Collection[str]):
        super().__init__(io.BytesIO(data))
        self.modules = modules

    def find_class(self, module: str, name: str) -> type:
        if type(module) is not str or type(name) is not str:
            raise Rubbish("a class without a name")
        known = (module, name) in HARMLESS
        if known or module in self.modules or module.startswith(HARNESS):
            found = getattr(importlib.import_module(module), name, None)
            if isinstance(found, type) and (known or (found.__module__ == module and _is_record(found))):
                return found
        raise Rubbish(f"{module}.{name}"[:200])

    def load_build(self) -> None:
        if isinstance(self.stack[-2], type):  # type: ignore[attr-defined]  # it would change the class for everybody
            raise Rubbish("a change of a class")
        super().load_build()  # type: ignore[misc]

    dispatch: typing.ClassVar[dict[int, Callable[..., None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]] for code in _INSTRUCTIONS
    }
    dispatch[pickle.BUILD[0]] = load_build


def _is_record(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) or _is_named_tuple(cls) or issubclass(cls, Enum)


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_fields")


def unpacked(data: bytes, modules: Collection[str] = ()) -> Any:
    """A message from its bytes; `modules`: whose records may come besides the harness's. Raises Rubbish."""
    try:
        return _Reader(data, modules).load()
    except Rubbish as error:
        raise Rubbish(f"a message that asks for {error}") from error
    except Exception as error:
        raise Rubbish(f"{len(data):,} bytes that are no message ({type(error).__name__})") from error


# --- types ---

Schema = tuple[Any, ...]
ANY: Schema = ("any",)
_PLAIN = {int: "int", float: "float", bool: "bool", str: "str", bytes: "bytes", type(None): "none", None: "none"}
_LISTS = (list, Sequence, Iterable, Collection)


def schema_of(hint: Any, inside: tuple[type, ...] = ()) -> Schema:
    """An annotation as nested tuples of strings, which can be sent; what it cannot say is ANY."""
    if hint in _PLAIN:
        return (_PLAIN[hint],)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        marks = [m for m in arguments[1:] if isinstance(m, Mark)]
        inner = schema_of(arguments[0], inside)
        return ("marked", inner, marks[0].value) if marks else inner
    if origin in (Union, types.UnionType):
        return ("union", tuple(schema_of(a, inside) for a in arguments))
    if origin is Literal:
        return ("literal", arguments)
    if origin is tuple and arguments:
        if arguments[-1] is Ellipsis:
            return ("many", "tuple", schema_of(arguments[0], inside))
        return ("tuple", tuple(schema_of(a, inside) for a in arguments if a != ()))
    if origin in _LISTS and arguments:
        return ("many", "list" if origin is list else "sequence", schema_of(arguments[0], inside))
    if origin in (set, frozenset) and arguments:
        return ("many", origin.__name__, schema_of(arguments[0], inside))
    if isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2:
        return ("dict", *(schema_of(a, inside) for a in arguments))
    if str(origin).endswith(("Required", "NotRequired")):
        return schema_of(arguments[0], inside)
    return _schema_of_class(hint, inside) if isinstance(hint, type) and hint not in inside else ANY


def _schema_of_class(cls: type, inside: tuple[type, ...]) -> Schema:
    if cls in (list, tuple, dict, set, frozenset):
        return ("class", "builtins", cls.__name__)
    if issubclass(cls, PurePath):
        return ("path",)
    if not (is_typeddict(cls) or _is_record(cls)):
        return ANY
    if issubclass(cls, Enum):
        return ("class", cls.__module__, cls.__qualname__)
    fields = {name: schema_of(hint, (*inside, cls)) for name, hint in _hints(cls).items()}
    if is_typeddict(cls):
        return ("fields", fields, tuple(getattr(cls, "__required_keys__", ())))
    return ("object", cls.__module__, cls.__qualname__, fields)


def _hints(what: Any) -> dict[str, Any]:
    """Annotations, resolved; none where a name in them cannot be found."""
    try:
        return get_type_hints(what, include_extras=True)
    except Exception:
        return {}


def schemas_of(room: type) -> dict[str, Schema]:
    """What each command of a room answers."""
    names = [n for n in dir(room) if not n.startswith("_") and callable(getattr(room, n))]
    return {n: schema_of(_hints(getattr(room, n)).get("return", Any)) for n in names}


def check(value: object, schema: Schema, where: str = "the answer") -> None:
    """Raises Rubbish with the place and both types where a value is not of the schema's type."""
    kind = schema[0]
    if kind == "any":
        return
    if kind == "union":
        _check_union(value, schema[1], where)
    elif kind == "marked":
        check(value, schema[1], where)
        _check_mark(value, schema[2], where)
    elif kind == "literal":
        if not any(type(value) is type(a) and value == a for a in schema[1]):
            raise _mistyped(value, schema, where)
    elif not _is(value, schema):
        raise _mistyped(value, schema, where)
    else:
        for name, part, inner in _parts(value, schema):
            check(part, inner, f"{where}{name}" if len(where) < 200 else where)


def is_finite(value: float) -> bool:
    """Whether a number is finite as a float: a whole one may be larger than any, and stops whoever reckons with it."""
    return abs(value) <= sys.float_info.max


def _is(value: object, schema: Schema) -> bool:
    """Whether a value's own type is the schema's; its parts are not looked at."""
    kind = schema[0]
    if kind == "float":
        return type(value) is float or (type(value) is int and is_finite(value))
    if kind == "int":
        return type(value) in (int, bool) and is_finite(value)  # type: ignore[arg-type]
    if kind in ("bool", "str", "bytes"):
        return type(value).__name__ == kind
    if kind == "none":
        return value is None
    if kind == "path":
        return isinstance(value, PurePath)
    if kind == "many":
        names = ("list", "tuple") if schema[1] == "sequence" else (schema[1],)
        return type(value).__name__ in names
    if kind == "tuple":
        return type(value) is tuple and len(value) == len(schema[1])
    if kind == "dict":
        return isinstance(value, dict)
    if kind == "fields":
        return type(value) is dict and set(schema[2]) <= value.keys() <= schema[1].keys()
    if (type(value).__module__, type(value).__qualname__) != schema[1:3]:
        return False
    return kind == "class" or not hasattr(value, "__dict__") or vars(value).keys() <= schema[3].keys()


def _parts(value: Any, schema: Schema) -> Iterable[tuple[str, object, Schema]]:
    """What is to be checked inside a value: its place, itself, its schema."""
    kind = schema[0]
    if kind == "many":
        return ((f"[{i}]", v, schema[2]) for i, v in enumerate(value))
    if kind == "tuple":
        return ((f"[{i}]", v, s) for i, (v, s) in enumerate(zip(value, schema[1], strict=True)))
    if kind == "dict":
        keys = (("'s key", k, schema[1]) for k in value)
        return (*keys, *((f"[{str(k)[:60]!r}]", v, schema[2]) for k, v in value.items()))
    if kind == "fields":
        return ((f".{k}", v, schema[1][k]) for k, v in value.items())
    if kind == "object":
        return ((f".{k}", getattr(value, k, _MISSING), s) for k, s in schema[3].items())
    return ()


class _Missing:
    """Stands for a field that an object does not have."""


_MISSING = _Missing()


def _check_union(value: object, members: Sequence[Schema], where: str) -> None:
    problems = []
    for member in members:
        try:
            return check(value, member, where)
        except Rubbish as problem:
            problems.append(problem)
    # Where one has the right type outside, its word on the inside is the telling one.
    raise max(problems, key=lambda p: len(str(p).split(" is ")[0])) if len(problems) > 1 else problems[0]


def _check_mark(value: object, mark: str, where: str) -> None:
    if isinstance(value, (int, float)) and not (is_finite(value) and value >= 0):
        raise Rubbish(f"{where} is {value}, which is not {mark}")


def _mistyped(value: object, schema: Schema, where: str) -> Rubbish:
    kind = str(schema[0])
    if kind == "fields" and type(value) is dict:
        wrong = [f"lacks {k!r}" for k in schema[2] if k not in value]
        wrong += [f"has {k!r}"[:80] for k in value if k not in schema[1]]
        return Rubbish(f"{where} {', '.join(wrong[:5])}")
    if kind in ("object", "class"):
        kind = schema[2]
    elif kind == "many":
        kind = schema[1]
    elif kind == "literal":
        kind = f"one of {schema[1]}"
    got = "missing" if value is _MISSING else f"of type {type(value).__name__}"
    return Rubbish(f"{where} is {got}, not {kind}")
