"""Whether a kernel reads or writes what its pointers point to, as far as its tokens say so.

uses_of(body, ["a", "b", "out"])    {"a": Use(reads=True, writes=False), …}; one that is handed on is not in it
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kernels.cuda import cplusplus
from kernels.cuda.cplusplus import Token

OPERATORS = ("+", "-", "*", "/", "%", "&", "|", "^")


@dataclass
class Use:
    reads: bool = False
    writes: bool = False
    asked: bool = False  # whether it is there


def uses_of(body: Sequence[Token], names: Iterable[str]) -> dict[str, Use]:
    """By name, of those of which every use could be told: by index, by dereference, by an atomic, by a pointer that is
    made of it."""
    found = {}
    for name in names:
        use = Use()
        if _follow(body, name, use, set()) and (use.reads or use.writes):
            found[name] = use
    return found


def _follow(body: Sequence[Token], name: str, use: Use, seen: set[str]) -> bool:
    """Adds what is done with `name`, and with pointers made of it; False where something cannot be told."""
    if name in seen:
        return True
    seen.add(name)
    for i, token in enumerate(body):
        if token.kind != "word" or token.text != name or body[i - 1].text in (".", "->", "::"):
            continue
        texts = [t.text for t in body[i + 1 : i + 4]]
        if texts[:1] == ["["]:
            if _atomic(body, i):
                use.reads = use.writes = True
            else:
                _add(body, cplusplus.closing(body, i + 1) + 1, use)
            continue
        start = _statement(body, i)
        if body[i - 1].text == "*" and not _a_value(body[i - 2]):
            if any(t.text == "atomic_ref" for t in body[start:i]):
                use.reads = use.writes = True
            else:
                _add(body, i + 1, use)
            continue
        made = _made(body, start, i)
        if made == name or (made is None and texts[:1] in (["+"], ["-"]) and texts[1:2] == ["="] and start == i):
            continue  # it is moved: p += n
        if made:
            if not _follow(body[i:], made, use, seen):
                return False
        elif _atomic(body, i):
            use.reads = use.writes = True
        elif texts[:1] in (["=="], ["!="]) or _asked(body, i):
            use.asked = True
        else:
            return False
    return True


def _add(body: Sequence[Token], k: int, use: Use) -> None:
    """A use that ends before `k`: an assignment follows, or the value is wanted."""
    while k < len(body):
        if body[k].text == ")":
            k += 1
        elif body[k].text == "[":
            k = cplusplus.closing(body, k) + 1
        elif body[k].text == "." and k + 1 < len(body) and body[k + 1].kind == "word":
            k += 2
        else:
            break
    texts = [t.text for t in body[k : k + 3]]
    changed = texts[:1] and texts[0] in (*OPERATORS, "<<") and texts[1:2] == ["="]
    if texts[:1] == ["="]:
        use.writes = True
    elif changed or texts[:2] in (["+", "+"], ["-", "-"]):
        use.reads = use.writes = True
    else:
        use.reads = True


def _statement(body: Sequence[Token], i: int) -> int:
    """Where the statement that `i` is in begins."""
    depth = 0
    for j in range(i - 1, -1, -1):
        text = body[j].text
        depth += (text in (")", "]")) - (text in ("(", "["))
        if text in (";", "{", "}") or (depth < 0 and j and body[j - 1].text in ("for", "if", "while")):
            return j + 1
    return 0


def _made(body: Sequence[Token], start: int, i: int) -> str | None:
    """`p` where the statement from `start` is `T* p = … name …` and `i` stands behind the sign, not within an index."""
    sign = next((j for j in range(start, i) if body[j].text == "="), None)
    if sign is None or sign - 1 < start or body[sign - 1].kind != "word":
        return None
    before = [t.text for t in body[start : sign - 1]]
    pointer = not before or "*" in before or "auto" in before
    depth = 0
    for token in body[sign + 1 : i]:
        depth += (token.text == "[") - (token.text == "]")
        if token.text in ("*",) and depth == 0 and not pointer:
            return None
    return body[sign - 1].text if pointer and depth == 0 else None


def _atomic(body: Sequence[Token], i: int) -> bool:
    """Whether it is the first argument of an atomic: atomicAdd(&p[i], …), atomicAdd(p + i, …)."""
    j = i - 1
    while j > 0 and body[j].text in ("&", "("):
        j -= 1
    return body[j].text.startswith("atomic")


def _asked(body: Sequence[Token], i: int) -> bool:
    """`if (p)`, `p ? … : …`, `!p`, `p &&`."""
    before, after = body[i - 1].text, body[i + 1].text if i + 1 < len(body) else ""
    return before in ("!", "&&", "||") or after in ("?", "&&", "||") or (before == "(" and after == ")" and i > 1
                                                                         and body[i - 2].text == "if")  # fmt: skip


def _a_value(token: Token) -> bool:
    """Whether a `*` behind it is a product."""
    return (token.kind in ("word", "number") and token.text != "return") or token.text in (")", "]")
