"""What may leave this machine: no absolute paths, no names of host and user, no secrets; and no text that steers a
terminal, or that no file can hold. Everything that enters a record goes through here."""

import contextlib
import getpass
import math
import os
import re
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bench import HOME
from bench.core.evidence import plain

# --- what may leave this machine ---

# Values of these keys are this project's own words, so a user called "torch" must not change them.
_OWN_WORDS = {
    *("schema", "run", "utc", "case_id", "layer", "variant", "backend", "story", "phase", "dtype", "shape"),
    *("shape_name", "device", "cache", "status", "timer", "baseline", "stopped", "source_hash"),
}
# Names of users and hosts that tell nothing of anybody; without those that a command begins with no run could be gone
# on with.
_NAMES_NOBODY = {"", "root", "home", "localhost", "python", "bench", "layer", "e2e", "train", "generate"}
_SECRET_NAME = re.compile(
    r"token|secret|passw|api_?key|access_?key|private|credential|cookie|(^|_)auth|session", re.IGNORECASE
)
# Each looks at a character a few times at most, whatever the text is: a run of letters is tried from its start alone.
_SECRET_TEXT = re.compile(
    r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user:password@ in an address
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|hf_|sk-|xox[abprs]-|pypi-)[\w-]{10,}"
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]+"  # mail address
)
_DOTTED = re.compile(r"[\w.-]{30,}")  # may hold a JSON web token: eyJ….….…
# An absolute path: a slash that no word, dot or slash precedes, so that "GB/s", "a/b" and "../x" stay. The last
# part is kept where it looks like a file's name, because an error message is useless without it.
_PATH = re.compile(r"(?:(?<![\w./~>\]-])|(?<=-[IL]))/(?:[^\s/:;,'\"()\[\]<>|=]+/)*([^\s/:;,'\"()\[\]<>|=]*)")


class _Private(NamedTuple):
    """What no text may tell, as variables and machine are now: looked up once, for a record has a hundred texts."""

    secrets: list[str]
    names: list[tuple[str, str]]  # with what stands for each


def clean(value: Any, *, free_text: bool = False) -> Any:
    """`value` ready for JSON: strings scrubbed (keys too), numbers that are not finite as None.

    free_text: names of host and user are replaced even where a key usually holds this project's own words.
    """
    return _clean(value, free_text, "", _private())


def _clean(value: Any, free_text: bool, key: str, private: _Private) -> Any:
    if isinstance(value, str):
        return _scrub(value, free_text or key not in _OWN_WORDS, private)
    if isinstance(value, Mapping):
        inside = key if key == "shape" else None  # its values are sizes and options
        return {
            _scrub(str(k), False, private): _clean(v, free_text, inside or str(k), private) for k, v in value.items()
        }
    if isinstance(value, (list, tuple, set)):
        return [_clean(v, free_text, key, private) for v in value]
    if isinstance(value, Path):
        return _scrub(str(value), True, private)
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _clean(value.tolist(), free_text, key, private)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def scrub(text: str) -> str:
    """`text`, plain (see bench.core.evidence), without secrets, absolute paths and the names of host and user.

    Paths inside the working folder or the repository become relative; others keep a file's name at most.
    """
    return _scrub(text, True, _private())


def _scrub(text: str, names: bool, private: _Private) -> str:
    for secret in private.secrets:
        text = text.replace(secret, "<secret>")
    text = _SECRET_TEXT.sub("<secret>", plain(text))
    if "eyJ" in text:
        text = _DOTTED.sub(lambda run: _without_token(run[0]), text)
    for folder in _own_folders():
        text = re.sub(rf"(?<![\w.~-]){re.escape(folder)}(?:/|(?![\w.-]))", "", text)
    text = _PATH.sub(lambda path: _stand_in(path[1]), text)
    if names:
        for word, stand_in in private.names:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", stand_in, text)
    return text


def _private() -> _Private:
    return _Private(_secret_values(), _identifying_names())


def _without_token(run: str) -> str:
    """Letters, dashes and dots without a JSON web token: three parts, of which the first starts with eyJ."""
    parts = run.split(".")
    for i, head in enumerate(parts[:-2]):
        start = 0 if head.startswith("eyJ") else head.find("-eyJ") + 1
        if head[start : start + 3] == "eyJ" and len(head) >= start + 13 and len(parts[i + 1]) >= 10:
            return ".".join([*parts[:i], head[:start] + "<secret>", *parts[i + 3 :]])
    return run


def _stand_in(last_part: str) -> str:
    """For an absolute path that ends in `last_part`."""
    if not last_part:
        return "/"
    return f"<path>/{last_part}" if "." in last_part[1:-1] else "<path>"


def _secret_values() -> list[str]:
    """Values of variables with a telling name; short ones would blank out ordinary words."""
    values = {v for k, v in os.environ.items() if len(v) >= 8 and _tells(k)}
    return sorted(values, key=len, reverse=True)


@cache
def _tells(name: str) -> bool:
    """Whether a variable's name says that its value is a secret. Asked of every variable for each record."""
    return bool(_SECRET_NAME.search(name))


@cache
def _own_folders() -> tuple[str, ...]:
    """Folders that paths are written relative to; the longest first."""
    folders = {str(HOME), os.getcwd()}
    return tuple(sorted((f for f in folders if f != "/"), key=len, reverse=True))


def _identifying_names() -> list[tuple[str, str]]:
    host = socket.gethostname()
    users = {os.environ.get("USER", ""), os.environ.get("LOGNAME", "")}
    with contextlib.suppress(KeyError, OSError, RuntimeError):  # a user id without an entry in passwd, and no $HOME
        users |= {Path.home().name, getpass.getuser()}
    hosts = {host, host.partition(".")[0]}
    found = [(h, "<host>") for h in hosts - _NAMES_NOBODY] + [(u, "<user>") for u in users - _NAMES_NOBODY]
    return sorted(found, key=lambda pair: len(pair[0]), reverse=True)
