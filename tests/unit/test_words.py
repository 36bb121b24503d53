"""Text that others control, as the edges let it through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buttervolume.words import LONGEST, enumerated, lines, printable, shortened

ANY = st.text(st.characters())  # halves of surrogate pairs included


@given(ANY)
def test_what_is_printable_can_be_shown_anywhere(text: str) -> None:
    shown = printable(text)

    assert shown.isprintable()
    shown.encode()
    assert printable(shown) == shown, "once is enough, and twice does no harm"
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    ("odd", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x85\x9b", r"\x85\x9b"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2066\u2067\u200f", r"\u2066\u2067\u200f"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
        ("größe 😀 日本", "größe 😀 日本"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_each_is_written_so_that_one_sees_what_it_is(odd: str, shown: str) -> None:
    assert printable(odd) == shown


@given(ANY.map(lambda text: text * 300), st.integers(200, 3000))
def test_what_is_shortened_fits_and_is_printable(text: str, longest: int) -> None:
    shown = shortened(text, longest)

    assert len(shown.encode()) <= longest
    assert shown.isprintable()
    assert shortened(shown, longest) == shown


def test_the_beginning_and_the_end_stay_and_the_rest_is_counted() -> None:
    shown = shortened("first" + "x" * 30_000_000 + "last")

    assert shown.startswith("firstx")
    assert shown.endswith("xlast")
    kept = len(shown.replace("… and ", "").replace(" more …", "")) - len("29,998,025")
    assert f"… and {30_000_009 - kept:,} more …" in shown


def test_an_escape_is_not_cut() -> None:
    for filling in range(20):
        shown = shortened("a" * filling + "\u2028" * 5000)
        assert set(shown.partition("…")[0].lstrip("a").split("\\")) == {"", "u2028"}


def test_names_are_counted_where_they_have_no_room() -> None:
    names = [f"name{number}" for number in range(20_000)]

    shown = enumerated(names)

    assert shown.startswith("name0, name1, ")
    listed = shown.count(",") - 1  # one is in the number
    assert shown.endswith(f" … and {20_000 - listed - 1:,} more")
    assert len(shown) <= LONGEST
    assert enumerated(["a", "b"]) == "a, b"
    assert enumerated([]) == ""
    assert shortened(enumerated(["x" * 5000, "y"])).endswith("… and 1 more")


def test_a_line_ends_at_a_line_feed_and_nowhere_else() -> None:
    odd = "a\u2028b\x0cc\x85d\x1ce\rf"

    assert lines(f"{odd}\r\n\n  \nlast") == [odd, "last"]
