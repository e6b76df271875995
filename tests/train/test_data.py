"""Text to token windows: cleaning, the split by title, windows that lose nothing, a mixture that continues."""

from pathlib import Path

import numpy as np
import pytest

from lutra.errors import FileError, FormatError
from lutra.train import data

TALES = [f"Once upon a time there was a small cat named Tom number {i}. The cat liked to play with a red ball all day. "
         f"Then it was happy and went home to sleep." for i in range(30)]


def corpus() -> data.Corpus:
    novels = {f"Author_Title{i}_1900": [f'"It is day {j}," said the captain, and looked at the sea.' for j in range(60)]
              for i in range(20)}
    train, held_out = data.split_titles(novels)
    return data.Corpus({t: novels[t] for t in train}, {t: novels[t] for t in held_out}, TALES[:25], TALES[25:])


def test_plain_reduces_to_ascii() -> None:
    assert data.plain("“Café,” he said — ‘no’…") == "\"Cafe,\" he said  -  'no'..."
    assert data.plain("â€œNo,â€\x9d it wasnâ€™t") == "\"No,\" it wasn't"


@pytest.mark.parametrize("text", [
    "CHAPTER I\n\nThe first line of it is wrapped\nand goes on here, quietly.\n\n"
    "\"And this is another one,\" she said.",
    "The first line of it is wrapped\nand goes on here, quietly.\n\"And this is another one,\" she said.",
    "CHAPTER I\nThe first line of it is wrapped and goes on here, quietly.\n\"And this is another one,\" she said.\n"
    + "x" * 400,
], ids=["blank lines", "wrapped, no blank lines", "one line per paragraph"])
def test_paragraphs_of_three_kinds_of_file(text: str) -> None:
    assert data.paragraphs(text)[:2] == ["The first line of it is wrapped and goes on here, quietly.",
                                         '"And this is another one," she said.']


def test_stories_of_both_kinds_of_file() -> None:
    first, second = TALES[:2]
    assert data.stories(f"{first}\n<|endoftext|>\n{second}\n<|endoftext|>\n") == [first, second]
    assert data.stories(f"{first}\n\nThe end.\n{second}") == [f"{first}\nThe end.", second]


def test_split_never_shares_a_title() -> None:
    titles = [f"Author_Title{i}_1900" for i in range(92)]
    train, held_out = data.split_titles(titles)
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(titles)
    assert len(held_out) == 6
    assert data.split_titles(reversed(titles)) == (train, held_out)


def test_read_corpus_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(10):
        (tmp_path / f"Author_Title{i}_1900.txt").write_text("He went to the sea, and looked at it.\n\n" * 5)
    (tmp_path / "README.txt").write_text("About these novels and where they come from.")
    (tmp_path / "tales.txt.stories").write_text("\n".join(TALES))
    got = data.read_corpus(tmp_path, tmp_path / "tales.txt.stories")
    assert len(got.train_novels) == 9 and len(got.held_out_novels) == 1
    assert got.train_stories + got.held_out_stories == TALES
    said = f"{tmp_path / 'README.txt'}: not read: no novel is named so, but Author_Title_Year.txt\n"
    assert capsys.readouterr().err == said


def test_missing_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="expected novels"):
        data.read_novels(tmp_path)
    with pytest.raises(FileError, match="expected a story file"):
        data.read_stories(tmp_path)


def test_every_text_file_is_read(tmp_path: Path) -> None:
    for name in ("A_Title_1900.txt", "A-B_Well-Made_1901.txt"):
        (tmp_path / name).write_text("A plain paragraph of some length.")
    assert len(data.read_novels(tmp_path)) == 2


def test_tokenizer_round_trips_and_prepends_bos() -> None:
    tokenizer = data.train_tokenizer(corpus(), 300)
    encoded = tokenizer.encode(TALES[0])
    assert encoded.ids[0] == tokenizer.token_to_id(data.BOS) == 0
    assert tokenizer.decode(encoded.ids) == TALES[0]
    assert tokenizer.decode(tokenizer.encode("naïve 東").ids) == "naïve 東"  # bytes never seen in training


def test_a_tokenizer_without_bos_is_an_error() -> None:
    from tokenizers import Tokenizer, models

    with pytest.raises(FormatError, match="end_of_text"):
        data.bos_and_eos(Tokenizer(models.BPE()))


def test_novel_windows_start_at_paragraphs_and_cover_the_text() -> None:
    paragraphs = [np.arange(start, start + 10, dtype=np.uint16) for start in range(10, 310, 10)]
    windows = data.novel_windows([paragraphs], 26, bos=0)
    assert (windows[:, 0] == 0).all() and (windows[:, 1] % 10 == 0).all()
    assert set(windows[:, 1:].flat) == set(range(10, int(windows.max()) + 1))
    assert windows.max() > 310 - 26  # only a tail shorter than a window is dropped


def test_one_long_paragraph_is_continued() -> None:
    windows = data.novel_windows([[np.arange(100, dtype=np.uint16)]], 26, bos=7)
    assert windows.shape == (4, 26) and windows[:, 1:].ravel().tolist() == list(range(100))


def test_story_windows_show_every_short_story_whole() -> None:
    tales = [np.array([0, *([10 + i] * (5 + i)), 1], np.uint16) for i in range(12)]
    windows = data.story_windows(tales, 30, np.random.default_rng(3))
    assert (windows[:, 0] == 0).all()
    text = [" ".join(map(str, w)) + " " for w in windows]
    for tale in tales:
        assert any(" ".join(map(str, tale)) + " " in window for window in text)


def mixture() -> data.Mixture:
    novels = np.arange(40 * 17, dtype=np.uint16).reshape(40, 17) % 90 + 5
    tales = [np.array([0, *([i + 5] * 9), 1], np.uint16) for i in range(30)]
    return data.Mixture(novels, tales, vocab_size=100, seed=4)


def test_mixture_continues_from_its_cursors() -> None:
    whole, first, second = mixture(), mixture(), mixture()
    expected = [whole.batch(step, 4, 0.5, 0.1) for step in range(30)]
    for step in range(11):
        first.batch(step, 4, 0.5, 0.1)
    second.novel_cursor, second.story_cursor = first.novel_cursor, first.story_cursor
    for step in range(11, 30):
        for got, want in zip(second.batch(step, 4, 0.5, 0.1), expected[step], strict=True):
            np.testing.assert_array_equal(got, want)


def test_noise_touches_inputs_of_stories_only() -> None:
    clean, noisy = mixture().batch(0, 64, 0.5, 0.0), mixture().batch(0, 64, 0.5, 0.3)
    np.testing.assert_array_equal(clean[1], noisy[1])
    changed = (clean[0] != noisy[0]).any(1)
    is_story = clean[0][:, 0] == 0
    assert changed[is_story].mean() > 0.9 and not changed[~is_story].any()
    assert (noisy[0][is_story, 0] == 0).all()


def test_shares_of_nothing_and_everything() -> None:
    assert (mixture().batch(0, 8, 1.0, 0)[0][:, 0] == 0).all()
    assert (mixture().batch(0, 8, 0.0, 0)[0][:, 0] != 0).all()


def test_spread_takes_all_or_evenly() -> None:
    windows = np.arange(10)[:, None]
    assert len(data.spread(windows, 20)) == 10
    assert data.spread(windows, 4).ravel().tolist() == [0, 3, 6, 9]
