"""Text files become token windows: clean, split by title, tokenize, mix.

Two kinds of text are mixed: novels (one file per title, hard-wrapped) and short simple stories.  Whole titles are held
out, never part of one; of the stories, the last ones are held out.  The texts themselves are not part of lutra.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lutra.errors import FileError, FormatError

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
HELD_OUT_EVERY = 15  # one title in fifteen is held out
HELD_OUT_STORIES = 0.08  # the last share of the stories
MEAN_PARAGRAPH_LINE = 100  # characters; files with longer lines on average hold one paragraph per line
STORY_REPEATS = 20  # how often the stories are shown to the BPE trainer, so that their plain words become tokens

PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": " - ", "–": "-", "…": "...", "œ": "oe", "æ": "ae",
                       "Æ": "Ae", "£": "pounds ", "_": "", "\ufeff": ""})


def plain(text: str) -> str:
    """Reduce text to ASCII with straight quotes; unknown signs vanish."""
    for broken, meant in (("â€œ", '"'), ("â€™", "'"), ("â€\x9d", '"'), ("â€", '"')):  # UTF-8 once read as cp1252
        text = text.replace(broken, meant)
    text = unicodedata.normalize("NFKD", text.translate(PLAIN))
    return text.encode("ascii", "ignore").decode().replace("''", '"').replace("--", " - ").replace("`", "'")


def paragraphs(text: str) -> list[str]:
    """Split a novel into paragraphs of one line each, and drop headings: short, or without lower-case letters.

    Files differ: one line per paragraph, wrapped lines with blank lines between paragraphs, wrapped lines with nothing
    between them.  In wrapped text a paragraph also ends where a sentence ends on a short line, or a quote opens a line.
    """
    lines = [re.sub(r"\s+", " ", line).strip() for line in plain(text).splitlines()]
    filled = [len(line) for line in lines if line]
    is_wrapped = sum(filled) < MEAN_PARAGRAPH_LINE * len(filled)
    short = 0.8 * max(np.percentile(filled, 90), 1) if filled else 0
    blocks: list[list[str]] = [[]]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        blocks[-1].append(line)
        ends = line.endswith((".", "!", "?", '"')) and (len(line) < short or following.startswith('"'))
        if not is_wrapped or not line or ends:
            blocks.append([])
    joined = (" ".join(filter(None, block)) for block in blocks)
    return [p for p in joined if len(p) >= 20 and any(c.islower() for c in p) and not p.upper().startswith("CHAPTER ")]


def stories(text: str) -> list[str]:
    """Split a file of stories: `<|endoftext|>` or, where there is none, one line break not followed by another."""
    mark = r"<\|endoftext\|>" if "<|endoftext|>" in text else r"(?<!\n)\n(?!\n)"
    split = (re.sub(r"\s*\n\s*", "\n", plain(part)).strip() for part in re.split(mark, text))
    return [story for story in split if len(story) >= 100]


@dataclass(frozen=True)
class Corpus:
    """Clean text: novels as title -> paragraphs, stories as a list, each in a training and a held-out part."""

    train_novels: dict[str, list[str]]
    held_out_novels: dict[str, list[str]]
    train_stories: list[str]
    held_out_stories: list[str]


def split_titles(titles: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return (training titles, held-out titles): of the sorted titles, every fifteenth is held out."""
    ordered = sorted(titles)
    held_out = ordered[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
    return [t for t in ordered if t not in held_out], held_out


def read_novels(folder: Path) -> dict[str, list[str]]:
    """Read every title of a folder: file stem -> paragraphs; other files are named on stderr, not read.

    raises   FileError   there is none
    """
    texts = sorted(folder.glob("*.txt"))
    files = [path for path in texts if "_" in path.stem]
    if not files:
        raise FileError(f"expected novels named Author_Title_Year.txt in {folder}, got none; check the path given")
    for path in texts:
        if path not in files:
            print(f"{path}: not read: no novel is named so, but Author_Title_Year.txt", file=sys.stderr)
    return {p.stem: paragraphs(p.read_text("utf-8", errors="replace")) for p in files}


def read_stories(source: Path) -> list[str]:
    """Read one story file, or the largest .txt file of a folder (smaller samples are often excerpts of it)."""
    files = [source] if source.is_file() else sorted(source.glob("*.txt"), key=lambda p: p.stat().st_size)
    if not files:
        raise FileError(f"expected a story file or a folder of .txt files, got {source}; check the path given")
    return list(dict.fromkeys(stories(files[-1].read_text("utf-8", errors="replace"))))


def read_corpus(novels: Path, story_source: Path) -> Corpus:
    """Read and split both kinds of text."""
    by_title, tales = read_novels(novels), read_stories(story_source)
    train, held_out = split_titles(by_title)
    cut = len(tales) - max(1, int(len(tales) * HELD_OUT_STORIES))
    return Corpus({t: by_title[t] for t in train}, {t: by_title[t] for t in held_out}, tales[:cut], tales[cut:])


def train_tokenizer(corpus: Corpus, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE on the training text; encoding prepends BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[BOS, EOS], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())

    def texts() -> Iterator[str]:
        for title in corpus.train_novels.values():
            yield "\n".join(title)
        for _ in range(STORY_REPEATS):
            yield from corpus.train_stories

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))])
    return tokenizer


def bos_and_eos(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the ids of BOS and EOS.  Raises FormatError for a tokenizer that was not trained here."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    if bos is None or eos is None:
        raise FormatError(f"expected a tokenizer with {BOS} and {EOS}, got one without; use the run's own")
    return bos, eos


def encode_novels(tokenizer: Tokenizer, novels: dict[str, list[str]]) -> list[list[np.ndarray]]:
    """Tokenize novels: per title a list of paragraphs, uint16 [tokens], each ending with a line break."""
    return [[np.array(e.ids, np.uint16) for e in tokenizer.encode_batch([p + "\n" for p in title],
                                                                        add_special_tokens=False)]
            for title in novels.values()]


def encode_tales(tokenizer: Tokenizer, tales: list[str]) -> list[np.ndarray]:
    """Tokenize stories: uint16 [tokens] each, BOS first and EOS last."""
    _, eos = bos_and_eos(tokenizer)
    return [np.array([*e.ids, eos], np.uint16) for e in tokenizer.encode_batch(tales)]


def spread(windows: np.ndarray, count: int) -> np.ndarray:
    """Choose at most `count` windows, evenly over all."""
    return windows[np.linspace(0, len(windows) - 1, min(count, len(windows))).astype(int)]


def novel_windows(titles: list[list[np.ndarray]], length: int, bos: int) -> np.ndarray:
    """Cut novels into windows that start at a paragraph: BOS, then the text.

    A window begins at the last paragraph start inside the previous one, so little is seen twice; a paragraph longer
    than a window is continued in the middle.
    returns  uint16 [windows, length]
    """
    windows = []
    for title in filter(None, titles):  # a file may hold no paragraph
        text = np.concatenate(title)
        starts = np.cumsum([0] + [len(p) for p in title])
        position = 0
        while position + length - 1 <= len(text):
            windows.append(np.concatenate(([bos], text[position : position + length - 1])))
            nearest = starts[np.searchsorted(starts, position + length - 1, "right") - 1]
            position = int(nearest) if nearest > position + length // 2 else position + length - 1
    return np.array(windows, np.uint16).reshape(-1, length)


def story_windows(tales: list[np.ndarray], length: int, rng: np.random.Generator) -> np.ndarray:
    """Cut shuffled stories (each BOS .. EOS) into windows that start at a story.

    A story that a window cuts off starts the next window, so each is seen whole once unless longer than a window.
    returns  uint16 [windows, length]
    """
    order = rng.permutation(len(tales))
    text = np.concatenate([tales[i] for i in order] + [tales[order[0]]] * (length // 8 + 1))
    starts = np.cumsum([0] + [len(tales[i]) for i in order])
    windows, story = [], 0
    while story < len(tales):
        position = starts[story]
        windows.append(text[position : position + length])
        story = max(story + 1, int(np.searchsorted(starts, position + length, "right")) - 1)
    return np.array(windows, np.uint16)


@dataclass
class Mixture:
    """Batches of novel and story windows.  The two cursors are its whole state: it continues where they say."""

    novels: np.ndarray  # uint16 [windows, length]
    tales: list[np.ndarray]  # uint16 [tokens] each
    vocab_size: int
    seed: int
    novel_cursor: int = 0
    story_cursor: int = 0

    def __post_init__(self) -> None:
        self._epochs: dict[str, tuple[int, np.ndarray]] = {}

    def _epoch(self, kind: str, epoch: int) -> np.ndarray:
        """Windows of one pass, shuffled by (seed, epoch) alone; the last pass made of each kind is kept."""
        if kind not in self._epochs or self._epochs[kind][0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            windows = (rng.permutation(self.novels) if kind == "novels"
                       else story_windows(self.tales, self.novels.shape[1], rng))
            self._epochs[kind] = epoch, windows
        return self._epochs[kind][1]

    def _next_novel(self) -> np.ndarray:
        epoch, index = divmod(self.novel_cursor, len(self.novels))
        self.novel_cursor += 1
        return self._epoch("novels", epoch)[index]

    def _next_story(self) -> np.ndarray:
        # Passes differ slightly in their number of windows, so the cursor counts in passes of len(tales) slots.
        epoch, index = divmod(self.story_cursor, len(self.tales))
        windows = self._epoch("stories", epoch)
        self.story_cursor += 1
        if index + 1 >= len(windows):
            self.story_cursor = (epoch + 1) * len(self.tales)
        return windows[index]

    def batch(self, step: int, batch_size: int, story_share: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets, int64 [batch_size, length - 1] each.

        story_share  probability that a window is stories
        noise        share of a story window's inputs replaced by random tokens: the stories are few and pass often,
                     this keeps the model from learning them by heart
        """
        rng = np.random.default_rng((self.seed, step, 1))
        is_story = rng.random(batch_size) < story_share
        windows = np.stack([self._next_story() if s else self._next_novel() for s in is_story]).astype(np.int64)
        inputs, targets = windows[:, :-1].copy(), windows[:, 1:]
        replaced = (rng.random(inputs.shape) < noise) & is_story[:, None]
        replaced[:, 0] = False
        inputs[replaced] = rng.integers(0, self.vocab_size, int(replaced.sum()))
        return inputs, targets

    @property
    def story_epoch(self) -> int:
        """Passes over the stories so far."""
        return self.story_cursor // len(self.tales)
