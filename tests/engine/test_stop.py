"""Stop texts end a generation at the same character, however the text is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutra.engine.stop import StopText


def streamed(stops: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool]:
    """What comes out for each piece, with the rest at the end; and whether a stop was met."""
    stop = StopText(stops)
    out = [stop.push(piece) for piece in pieces]
    return [*out, stop.finish()], stop.is_over


def naive(stops: tuple[str, ...], text: str) -> tuple[str, bool]:
    """Look at every beginning of the text: the first that ends with a stop is cut before the longest such stop."""
    for end in range(len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - len(max(met, key=len))], True
    return text, False


def test_what_may_become_a_stop_is_kept_back() -> None:
    assert streamed(("\nUser:",), ["Hi", "\nUs", "ers", "\n", "User: yes", "more"]) == (
        ["Hi", "", "\nUsers", "", "", "", ""], True,
    )


def test_without_stops_nothing_is_kept_back() -> None:
    assert streamed((), ["a", "", "b"]) == (["a", "", "b", ""], False)


def test_an_unfinished_stop_is_text() -> None:
    assert streamed(("abc",), ["xa", "b"]) == (["x", "", "ab"], False)


@pytest.mark.parametrize("pieces", [["xabcd"], ["x", "a", "b", "c", "d"], ["xab", "cd"]])
def test_the_stop_that_ends_first_counts_in_any_pieces(pieces: list[str]) -> None:
    out, is_over = streamed(("abcd", "bc"), pieces)
    assert ("".join(out), is_over) == ("xa", True)


texts = st.text(alphabet="ab", max_size=12)


@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3), st.lists(texts, max_size=6))
def test_equals_the_naive_search(stops: list[str], pieces: list[str]) -> None:
    out, is_over = streamed(tuple(stops), pieces)
    assert ("".join(out), is_over) == naive(tuple(stops), "".join(pieces))


@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3), st.lists(texts, max_size=6))
def test_what_comes_out_is_never_taken_back(stops: list[str], pieces: list[str]) -> None:
    """After every piece, the text so far is a beginning of what any continuation gives: a stop may follow at once."""
    stop, so_far = StopText(tuple(stops)), ""
    for count, piece in enumerate(pieces, 1):
        so_far += stop.push(piece)
        for ending in stops:
            assert naive(tuple(stops), "".join(pieces[:count]) + ending)[0].startswith(so_far)
