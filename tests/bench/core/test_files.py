"""A file is written whole, whatever the text."""

from bench.core.files import write_atomically


def test_half_of_a_surrogate_pair_does_not_lose_the_rest(tmp_path):
    file = write_atomically(tmp_path / "table.csv", "before,\udc80,after\n")
    assert file.read_text() == "before,?,after\n"
