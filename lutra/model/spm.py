"""SentencePiece BPE with scores: the tokenizer of Llama 1 and 2, from the vocabulary that GGUF files carry.

The rule (SentencePiece, src/bpe_model.cc): write a space as "▁" and put one in front, start from single characters,
and while any two neighbours together are a piece of the vocabulary, join the pair whose piece scores best, leftmost
among equals.  A character that is no piece becomes its UTF-8 bytes, "<0xE2>" and so on.

This is not the merge-rank BPE of the tokenizers library: equal scores and several ways to one piece make them differ.
"""

from __future__ import annotations

import re
from heapq import heapify, heappop, heappush

from lutra.model.pieces import BYTE_PIECE, SPACE, sentence_piece_bytes

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
CACHED_WORDS = 1 << 16


class SentencePiece:
    """Text to tokens and back.

    pieces      one text per token id          scores   one number per id, larger joins first
    types       one of the constants above per id
    add_prefix  begin every text with a space  unknown_id   for characters without piece and bytes
    """

    def __init__(
        self, pieces: list[str], scores: list[float], types: list[int], add_prefix: bool = True, unknown_id: int = 0
    ) -> None:
        self.vocab_size = len(pieces)
        self.strips_space = add_prefix
        self._add_prefix = add_prefix
        self._unknown_id = unknown_id
        self._pieces = pieces
        self._is_text = [kind in (NORMAL, USER_DEFINED, BYTE) for kind in types]
        self._scores = scores
        self._ids = _first_ids(pieces, types, NORMAL)
        self._byte_ids = _byte_ids(pieces, types)
        self._user_defined = _first_ids(pieces, types, USER_DEFINED)
        self._user_pattern = _alternatives(self._user_defined)
        self._splits_words = not any(re.search(f"[^{SPACE}]{SPACE}", piece) for piece in self._ids)
        self._words: dict[str, list[int]] = {}

    def encode(self, text: str, at_start: bool = True) -> list[int]:
        """Return token ids without BOS.  A space goes in front of every run between special tokens, as llama.cpp."""
        if not text:
            return []
        text = (" " + text if self._add_prefix else text).replace(" ", SPACE)
        if self._user_pattern is None:
            return self._encode_run(text)
        ids: list[int] = []
        for run in self._user_pattern.split(text):  # odd ones are user-defined pieces
            ids += [self._user_defined[run]] if run in self._user_defined else self._encode_run(run)
        return ids

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token stands for; nothing for control tokens and ids outside the vocabulary."""
        known = 0 <= token < self.vocab_size and self._is_text[token]
        return sentence_piece_bytes(self._pieces[token]) if known else b""

    def _encode_run(self, text: str) -> list[int]:
        """Encode word by word where no piece reaches from one word into the next: joins cannot cross there."""
        if not self._splits_words:
            return self._join(text)
        ids: list[int] = []
        for word in re.findall(f"{SPACE}*[^{SPACE}]+|{SPACE}+", text):
            known = self._words.get(word)
            if known is None:
                known = self._join(word)
                if len(self._words) < CACHED_WORDS and len(word) < 64:
                    self._words[word] = known
            ids += known
        return ids

    def _join(self, text: str) -> list[int]:
        """Join the best-scoring neighbours until none are left: O(n log n) with a heap of candidate pairs."""
        parts: list[str] = list(text)  # a joined part leaves "" at its right half's place
        before = list(range(-1, len(parts) - 1))
        after = list(range(1, len(parts) + 1))
        pairs: list[tuple[float, int, str]] = []  # (-score, left position, piece)

        def candidate(left: int, right: int) -> tuple[float, int, str] | None:
            piece = parts[left] + parts[right]
            token = self._ids.get(piece)
            return None if token is None else (-self._scores[token], left, piece)

        pairs = [pair for i in range(len(parts) - 1) if (pair := candidate(i, i + 1)) is not None]
        heapify(pairs)
        while pairs:
            _, left, piece = heappop(pairs)
            right = after[left]
            if not parts[left] or right >= len(parts) or parts[left] + parts[right] != piece:
                continue  # one of the two has been joined with another since
            parts[left], parts[right] = piece, ""
            after[left] = after[right]
            if after[right] < len(parts):
                before[after[right]] = left
            for first, second in ((before[left], left), (left, after[left])):
                if first >= 0 and second < len(parts) and (pair := candidate(first, second)) is not None:
                    heappush(pairs, pair)
        return [token for part in parts if part for token in self._part_ids(part)]

    def _part_ids(self, part: str) -> list[int]:
        if part in self._ids:
            return [self._ids[part]]
        return [self._byte_ids.get(byte, self._unknown_id) for byte in part.encode("utf-8", "replace")]


def _first_ids(pieces: list[str], types: list[int], kind: int) -> dict[str, int]:
    """Return piece -> id of one kind; of equal pieces the first counts."""
    ids: dict[str, int] = {}
    for token, (piece, piece_kind) in enumerate(zip(pieces, types, strict=True)):
        if piece_kind == kind and piece:
            ids.setdefault(piece, token)
    return ids


def _byte_ids(pieces: list[str], types: list[int]) -> dict[int, int]:
    matches = {token: BYTE_PIECE.fullmatch(pieces[token]) for token, kind in enumerate(types) if kind == BYTE}
    return {int(match[1], 16): token for token, match in matches.items() if match}


def _alternatives(texts: dict[str, int]) -> re.Pattern[str] | None:
    """Return a pattern that captures any of the texts, longest first; None for no texts."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if texts else None
