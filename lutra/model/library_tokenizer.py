"""Tokenizers run by the `tokenizers` library: tokenizer.json as it is, and byte-level vocabularies of GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from lutra.errors import FileError
from lutra.files.door import refusal, shown
from lutra.model.pieces import byte_level_bytes, sentence_piece_bytes
from lutra.model.pretokenizers import PreTokenizer
from lutra.model.special import SpecialToken

MAX_TOKENIZER_BYTES = 1 << 27  # the largest in use has 35 MB
DO = "get the model's tokenizer files from their source again"


class LibraryTokenizer:
    """A tokenizers.Tokenizer that never sees special tokens in text, with the bytes of every token."""

    def __init__(self, library: tokenizers.Tokenizer, path: Path) -> None:
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True  # the library's word for: special tokens in text are ordinary text
        self._library = library
        self._added = {token: added.content for token, added in library.get_added_tokens_decoder().items()}
        self.vocab_size = 1 + max([*library.get_vocab(with_added_tokens=True).values(), -1])
        state = _state(library.decoder)
        self._bytes_of = _alphabet(state, path)
        self.strips_space = '"Strip"' in state or ('"Metaspace"' in state and '"never"' not in state)
        self._continuing = _without_prefix(library)
        self._special_ids = {token.id for token in self.special_tokens()}

    def encode(self, text: str, at_start: bool = True) -> list[int]:
        """Return token ids without BOS.  at_start: nothing precedes, which matters to some (prepend_scheme "first")."""
        library = self._library if at_start else self._continuing
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token stands for; nothing for special tokens and ids outside the vocabulary."""
        if not 0 <= token < self.vocab_size or token in self._special_ids:
            return b""
        if token in self._added:
            return self._added[token].encode("utf-8", "replace")
        piece = self._library.id_to_token(token)
        return b"" if piece is None else self._bytes_of(piece)

    def special_tokens(self) -> list[SpecialToken]:
        """Return the special tokens (not other added ones: those are part of ordinary text)."""
        added = self._library.get_added_tokens_decoder().items()
        return [SpecialToken(row.content, token, row.lstrip, row.rstrip) for token, row in added if row.special]

    def prefix(self) -> list[int]:
        """Return what the tokenizer's own post-processor puts before a text: [BOS], or nothing."""
        bare = self._library.encode("a", add_special_tokens=False).ids
        full = self._library.encode("a", add_special_tokens=True).ids
        starts = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
        return list(full[: starts[0]]) if starts else []


def read_tokenizer_json(path: Path) -> bytes:
    """Read the text of a tokenizer.json.  raises FileError: missing, unreadable, or too large."""
    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise refusal(path, "file", f"at most {MAX_TOKENIZER_BYTES} bytes", f"{path.stat().st_size} bytes", DO)
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        do = "put the model's tokenizer.json beside its config.json"
        raise refusal(path, "file", "a tokenizer.json", reason, do) from None


def from_tokenizer_json(path: Path, text: bytes) -> LibraryTokenizer:
    """Make the tokenizer of a tokenizer.json's text; `path` is for messages.

    raises   FileError    not a tokenizer the library knows
    """
    return LibraryTokenizer(_build(lambda: tokenizers.Tokenizer.from_buffer(text), path), path)


def from_byte_level(
    path: Path, pieces: list[str], merges: list[str], added: dict[str, bool], rule: PreTokenizer
) -> LibraryTokenizer:
    """Build the byte-level BPE of a GGUF file.

    pieces   text per token id               merges   "left right", best first
    added    pieces that are found in text before anything else -> whether they are special
    raises   FileError                       merges that do not fit the vocabulary
    """
    ids: dict[str, int] = {}
    for token, piece in enumerate(pieces):
        ids.setdefault(piece, token)
    pairs = [_pair(path, merge) for merge in merges]
    model = _build(lambda: models.BPE(vocab=ids, merges=pairs, ignore_merges=rule.whole_words), path)
    library = tokenizers.Tokenizer(model)
    if rule.nfc:
        library.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    library.decoder = decoders.ByteLevel()
    rows = [tokenizers.AddedToken(piece, special=special, normalized=False) for piece, special in added.items()]
    library.add_special_tokens([row for row in rows if row.special])
    library.add_tokens([row for row in rows if not row.special])
    return LibraryTokenizer(library, path)


def _pair(path: Path, merge: str) -> tuple[str, str]:
    """Cut "left right" at the first space that leaves something on the left."""
    at = merge.find(" ", 1)
    if at < 0:
        raise refusal(path, "tokenizer.ggml.merges", "two pieces with a space between", shown(merge), DO)
    return merge[:at], merge[at + 1 :]


def _build(make: Any, path: Path) -> Any:
    """Call into the library, whose errors are plain Exceptions (and panics, which are BaseExceptions)."""
    try:
        return make()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise refusal(path, "tokenizer", "a tokenizer of the tokenizers library", shown(str(error)), DO) from None


def _state(part: Any) -> str:
    """Return the JSON text of a part of a tokenizer."""
    return "" if part is None else str(part.__getstate__(), "utf-8")


def _alphabet(decoder_state: str, path: Path) -> Any:
    """Choose by the decoder how pieces are spelled.  raises FileError for other kinds (word pieces, CTC)."""
    if '"ByteLevel"' in decoder_state:
        return byte_level_bytes
    if '"ByteFallback"' in decoder_state or '"Metaspace"' in decoder_state:
        return sentence_piece_bytes
    raise _unknown_decoder(path, decoder_state)


def _unknown_decoder(path: Path, decoder_state: str) -> FileError:
    return refusal(path, "decoder", "ByteLevel, ByteFallback or Metaspace", shown(decoder_state), "use another model")


def _without_prefix(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return the tokenizer for text that continues: another one only if its first word is spelled specially."""
    state = _state(library.pre_tokenizer)
    if '"prepend_scheme":"first"' not in state:
        return library
    data = json.loads(library.to_str())
    data["pre_tokenizer"] = json.loads(state.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"'))
    continuing = tokenizers.Tokenizer.from_str(json.dumps(data))
    continuing.encode_special_tokens = True
    return continuing
