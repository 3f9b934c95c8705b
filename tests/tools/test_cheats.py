"""The table of cheats: docs/judge.md says what the files of tests/evil say, and what says nothing is refused."""

import pytest

from tools import cheats


def test_the_page_says_what_the_files_say():
    page = cheats.PAGE.read_text()
    assert page == cheats.with_table(page, cheats.cheats()), "python tools/cheats.py"


def test_every_check_that_catches_is_told_on_the_page():
    page = cheats.PAGE.read_text().partition(cheats.BEGIN)[0]
    simulator = {"out-of-bounds", "race", "uninitialised", "read-only", "divergent_barrier"}
    named = {name for cheat in cheats.cheats() for name in cheat.caught_by}
    assert not {name for name in named - simulator if f"`{name}`" not in page}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('"""A story."""', "does not say what it is caught by"),
        ('"""A story."""\nCAUGHT_BY = "late"\nCAUGHT_IN = "court"', "none of proof, timing"),
    ],
)
def test_a_cheat_says_what_catches_it(text, says, tmp_path):
    path = tmp_path / "cheat.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        cheats.read(path)


def test_a_page_without_marks_is_left_alone():
    with pytest.raises(ValueError, match="for the table to stand between"):
        cheats.with_table("no table here", [])


def test_a_changed_file_is_told(tmp_path, monkeypatch, capsys):
    page = tmp_path / "docs" / "judge.md"
    page.parent.mkdir()
    page.write_text(f"before\n{cheats.BEGIN}\nthe table of yesterday\n{cheats.END}\nafter\n")
    monkeypatch.setattr(cheats, "PAGE", page)
    monkeypatch.setattr(cheats, "HOME", tmp_path)
    assert cheats.main(["--check"]) == 1 and "tools/cheats.py" in capsys.readouterr().err
    assert cheats.main([]) == 0 and cheats.main(["--check"]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "yesterday" not in text
    assert "| residual torch.zeros | Answers zeros, which are close to anything small. | `inaccurate` | proof |" in text
