"""Any text is scrubbed in time that grows with its length and no faster, and leaves as text that a file can hold."""

import json
import time

import pytest

from bench.core.evidence import plain
from bench.records.scrub import clean, scrub

PIECES = (
    *("a", "a.", "a@", "a@a", "@", "a-", "a+", "-eyJ", "eyJ", "eyJaaaaaaaaaaa.", "eyJ.", "://", "://a:", "://a:b"),
    *("/a", "/", " /a", "//", "~/", "-I/", "-I", "hf_", "-hf_", "AKIA", "ghp_a ", ".", "-", "_", ":/", "<", ">/", "]/"),
    *(
        "\x1b",
        "\x1b[",
        "\x1b[0",
        "\x1b]",
        "\x1b[0;",
        "\x1b ",
        "\x9b",
        "\udc80",
        "\r",
        "\n",
        " ",
        "a b",
        "é",
        "😀",
        "\\",
    ),
)


def seconds_of(text: str) -> float:
    start = time.process_time()
    scrub(text)
    return time.process_time() - start


def test_a_long_text_of_anything_is_scrubbed_at_once():
    for piece in PIECES:
        for head in ("", "x@"):
            # Were a pattern to start anew at each character, this would take seconds.
            assert seconds_of(head + piece * ((1 << 15) // len(piece))) < 1.0, repr((head, piece))


def test_a_megabyte_is_scrubbed_at_once():
    assert seconds_of("a" * (1 << 20)) < 2.0 and seconds_of("x@" + "-eyJ" * (1 << 18)) < 2.0


def test_a_mail_address_and_a_token_are_found_wherever_they_stand():
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.s-g_N4ture"
    for before in ("", " ", "Bearer ", "jwt-", "a.b.", "x=", "(", "-"):
        assert token not in scrub(f"{before}{token}") and "s-g_N4ture" not in scrub(f"{before}{token}")
    for before in ("", " ", "<", "mailto:", "a@b ", "("):
        assert "someone" not in scrub(f"{before}some.one+someone@example.org")
    same = "eyJustAWordOfItsOwn.and.another"
    assert scrub(same) == same


def test_what_enters_a_record_steers_no_terminal_and_can_be_written():
    row = {"story": "\x1b[31mred\x1b[0m \u202eback\udc80", "evidence": ["a\rb", "bell\x07"], "k\x1b[1mey": "tab\tstays"}
    kept = clean(row)
    assert kept == {"story": "red \ufffdback\ufffd", "evidence": ["a\nb", "bell\ufffd"], "key": "tab\tstays"}
    json.dumps(kept, ensure_ascii=False).encode()


def test_plain_text_stays_as_it_is():
    text = "±5 %\tα → β, naïve, 漢字, 😀\nnext line (file.py line 3)"
    assert plain(text) == text == scrub(text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b[38:2::255:0:0mred", "red"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x07", "link"),
        ("\x1bPq#0\x1b\\picture", "picture"),
        ("\x1b(Bset", "set"),
        ("\x1bcreset", "reset"),
        ("unfinished \x1b[12", "unfinished "),
        ("\x9b31mred", "\ufffd31mred"),
        ("a\r\nb\rc\u2028d\x0be", "a\nb\nc\nd\ne"),
        ("half \ud83d of one", "half \ufffd of one"),
    ],
)
def test_escape_sequences_go_and_control_characters_are_shown(text, left):
    assert plain(text) == left
