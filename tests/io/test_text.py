import pytest

from satmap.io.text import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Straße 7 – naïve 道路", "Straße 7 – naïve 道路"),
        ("a\x1b[31mb\rc\nd\te", r"a\x1b[31mb\rc\nd\te"),
        ("\x9b2J\x7f\x00", r"\x9b2J\x7f\x00"),
        ("right\u202eleft\u2028line\ufeff", r"right\u202eleft\u2028line\ufeff"),
        ("half \ud800", r"half \ud800"),
    ],
)
def test_nothing_moves_the_cursor(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_custom_lengths_and_line_ends() -> None:
    assert printable("x" * 10, 4) == "xxxx..."
    assert printable("xxxx", 4) == "xxxx"
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert printable(ValueError("no\x07")) == "no\\x07"
