"""What each token stands for in bytes, and text from a stream of tokens.

A vocabulary spells its tokens in one of two alphabets:
    byte-level      every byte is one printable character (GPT-2, encoder.py): "Ġthe" is b" the"
    SentencePiece   "▁" is a space, "<0x0A>" is one byte, everything else is itself
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

SPACE = "\u2581"  # "▁"
BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Return character -> byte: bytes that print stand for themselves, the others follow from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


def byte_level_bytes(piece: str) -> bytes:
    """Return the bytes of a byte-level piece; a piece with characters outside the alphabet stands for itself."""
    try:
        return bytes(BYTE_OF[character] for character in piece)
    except KeyError:
        return piece.encode("utf-8", "replace")


def sentence_piece_bytes(piece: str) -> bytes:
    """Return the bytes of a SentencePiece piece."""
    match = BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece.replace(SPACE, " ").encode("utf-8", "replace")


class StreamDecoder:
    """Turns tokens into text as they come; work per token is proportional to the token's own bytes.

    A character whose bytes are spread over tokens is held back until it is complete.  The texts of all calls, joined,
    are the text of all tokens: no piece is ever taken back.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], strip_space: bool = False) -> None:
        """token_bytes: bytes of a token id; strip_space: leave out one space at the very beginning."""
        self._token_bytes = token_bytes
        self._strip_space = strip_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Return the text that is certain now, often empty for parts of a character."""
        data = self._token_bytes(token)
        if self._strip_space and data:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def finish(self) -> str:
        """Return what was held back: U+FFFD for a character that never became complete."""
        return self._utf8.decode(b"", final=True)
