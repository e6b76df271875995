"""Text to token ids and back, whichever kind of tokenizer a model file carries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lutra.errors import FileError, RequestError
from lutra.files.door import parse_object, refusal, shown
from lutra.files.model_file import ModelFile
from lutra.model.config import MAX_VOCAB, ModelConfig, config_from
from lutra.model.fields import Fields, side_file
from lutra.model.pieces import StreamDecoder
from lutra.model.special import SpecialToken, SpecialTokens
from lutra.model.spm import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, SentencePiece

if TYPE_CHECKING:
    from lutra.model.library_tokenizer import LibraryTokenizer

# Tokens that end a turn or a text; whichever the vocabulary has ends a generation, declared as end token or not: GGUF
# files of chat models declare one, and the model writes another.  The names: llama.cpp, src/llama-vocab.cpp
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>")
TOKENIZER_JSON, VOCABULARY_JSON = "tokenizer.json", "vocabulary.json"  # Hugging Face's file; GGUF's key-values as JSON
VOCABULARY_KEYS = (  # of a GGUF file, all that a tokenizer is made of
    "general.architecture",
    *(f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "token_type", "scores", "merges")),
    *(f"tokenizer.ggml.{name}" for name in ("add_bos_token", "add_space_prefix", "unknown_token_id")),
)
MAX_TEXT_CHARS = 1 << 25
CACHED_TOKENS = 1 << 16
DO = "convert the model again with a current tool"


class Encoder(Protocol):
    """What the kinds of tokenizers have in common."""

    vocab_size: int
    strips_space: bool  # the first space of a decoded text is the encoder's, not the text's

    def encode(self, text: str, at_start: bool = True) -> list[int]: ...

    def token_bytes(self, token: int) -> bytes: ...


class Tokenizer:
    """A model's vocabulary at work.

    bos_id    put in front of a text, if add_bos           add_bos     whether this model wants that
    eos_ids   end a generation: declared ones and END_OF_TURN
    """

    def __init__(
        self, encoder: Encoder, special: list[SpecialToken], bos_id: int | None, add_bos: bool, eos_ids: Iterable[int]
    ) -> None:
        self.vocab_size = encoder.vocab_size
        self.bos_id = bos_id
        self.add_bos = add_bos and bos_id is not None
        self._encoder = encoder
        self._special = SpecialTokens(special)
        self._special_texts = {token.id: token.text for token in special}
        ends = [token.id for token in special if token.text in END_OF_TURN]
        self.eos_ids = tuple(dict.fromkeys([*eos_ids, *ends]))
        self._token_bytes = lru_cache(CACHED_TOKENS)(encoder.token_bytes)

    @classmethod
    def from_file(cls, model_file: ModelFile) -> Tokenizer:
        """Read the tokenizer of a GGUF file, of the tokenizer.json beside a config.json, or of a packed file.

        raises   FileError    missing or broken, or of a kind lutra does not run
        """
        return READERS[model_file.kind](model_file)

    def encode(self, text: str, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """Return token ids.

        add_bos        put bos_id in front if the model wants one
        parse_special  names of special tokens in `text` become those tokens, unless `shield`ed; False: ordinary text
        raises         RequestError    more than 2**25 characters
        """
        if len(text) > MAX_TEXT_CHARS:
            raise RequestError(f"text: expected at most {MAX_TEXT_CHARS} characters, got {len(text)}; shorten it")
        text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates are no text
        ids = [self.bos_id] if add_bos and self.add_bos and self.bos_id is not None else []
        if not parse_special:
            return ids + self._encoder.encode(text)
        for position, run in enumerate(self._special.split(text)):
            ids += [run] if isinstance(run, int) else self._encoder.encode(run, at_start=position == 0)
        return ids

    def shield(self, text: str) -> str:
        """Return text whose special-token names stay ordinary text under parse_special (see special.py)."""
        return self._special.shield(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of whole sequences; special tokens have none, broken UTF-8 becomes U+FFFD."""
        stream = self.stream(at_start=True)
        return "".join([stream.push(token) for token in ids]) + stream.finish()

    def stream(self, at_start: bool = False) -> StreamDecoder:
        """Return a decoder for tokens that come one by one.

        at_start   False: they continue a prompt, so a space in front of the first word is part of the text
                   True: they are a whole text, as in `decode`
        """
        return StreamDecoder(self._token_bytes, at_start and self._encoder.strips_space)

    def special_text(self, token: int | None) -> str:
        """Return the name of a special token, "" for none: what chat templates call bos_token and eos_token."""
        return "" if token is None else self._special_texts.get(token, "")

    def has_special(self, text: str) -> bool:
        """Return whether the vocabulary has a special token of this name."""
        return text in self._special_texts.values()


def _from_gguf(model_file: ModelFile) -> Tokenizer:
    return _from_vocabulary(model_file, model_file.metadata)


def _from_vocabulary(model_file: ModelFile, metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that GGUF key-values describe: VOCABULARY_KEYS."""
    fields = Fields(model_file.path, metadata, "tokenizer.ggml.")
    pieces = _column(fields, "tokens", str, None, "")
    types = _column(fields, "token_type", int, len(pieces), NORMAL)
    config = config_from(model_file)
    _check_ids(fields, len(pieces), config.bos_id, config.eos_ids)
    special = [SpecialToken(pieces[i], i) for i, kind in enumerate(types) if kind in (CONTROL, UNKNOWN)]
    kind = fields.text("model")
    if kind == "llama":
        encoder: Encoder = _sentence_piece(fields, pieces, types)
        wants_bos = True  # llama.cpp's default for this kind
    elif kind == "gpt2":
        encoder, wants_bos = _byte_level(fields, pieces, types)
    else:
        raise refusal(fields.path, "tokenizer.ggml.model", "llama or gpt2", shown(kind), "use another model")
    add_bos = fields.flag("add_bos_token", wants_bos)
    return Tokenizer(encoder, special, config.bos_id, add_bos, config.eos_ids)


def _sentence_piece(fields: Fields, pieces: list[str], types: list[int]) -> SentencePiece:
    scores = _column(fields, "scores", float, len(pieces), None)
    prefix = fields.flag("add_space_prefix", True)
    unknown_id = fields.integer("unknown_token_id", 0, len(pieces) - 1, 0)
    return SentencePiece(pieces, scores, types, prefix, unknown_id)


def _byte_level(fields: Fields, pieces: list[str], types: list[int]) -> tuple[Encoder, bool]:
    from lutra.model.library_tokenizer import from_byte_level
    from lutra.model.pretokenizers import pre_tokenizer

    name = fields.get("pre")
    rule = pre_tokenizer(None if name is None else fields.text("pre"), str(fields.values.get("general.architecture")))
    merges = _column(fields, "merges", str, None, "")
    found = {pieces[i]: kind == CONTROL for i, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)}
    return from_byte_level(fields.path, pieces, merges, found, rule), rule.add_bos


def _from_folder(model_file: ModelFile) -> Tokenizer:
    from lutra.model.library_tokenizer import from_tokenizer_json, read_tokenizer_json

    path = model_file.folder / TOKENIZER_JSON
    encoder = from_tokenizer_json(path, read_tokenizer_json(path))
    config = config_from(model_file)
    prefix = encoder.prefix()
    bos_id = prefix[0] if prefix else config.bos_id
    settings = side_file(model_file.folder, "tokenizer_config.json")
    add_bos = bool(prefix) if settings is None else settings.flag("add_bos_token", bool(prefix))
    return _from_library(path, encoder, config, bos_id, add_bos)


def _from_library(
    path: Path, encoder: LibraryTokenizer, config: ModelConfig, bos_id: int | None, add_bos: bool
) -> Tokenizer:
    _check_ids(Fields(path, {}), max(encoder.vocab_size, config.vocab_size), bos_id, config.eos_ids)
    return Tokenizer(encoder, encoder.special_tokens(), bos_id, add_bos, config.eos_ids)


def to_stored(model_file: ModelFile, tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a packed file keeps of a model's tokenizer: settings for its header, and one file's bytes by name."""
    settings = {"bos_id": tokenizer.bos_id, "add_bos": tokenizer.add_bos}
    if model_file.kind == "quantised":  # which holds what this function made of its source
        held = [name for name in (TOKENIZER_JSON, VOCABULARY_JSON) if name in model_file.tensors]
        return settings, {name: np.asarray(model_file.tensors[name].read()).tobytes() for name in held}
    if model_file.kind == "gguf":
        found = {key: model_file.metadata[key] for key in VOCABULARY_KEYS if key in model_file.metadata}
        return settings, {VOCABULARY_JSON: json.dumps(found).encode()}
    from lutra.model.library_tokenizer import read_tokenizer_json

    return settings, {TOKENIZER_JSON: read_tokenizer_json(model_file.folder / TOKENIZER_JSON)}


def _from_packed(model_file: ModelFile) -> Tokenizer:
    """Read what `to_stored` made."""
    path = model_file.path
    if VOCABULARY_JSON in model_file.tensors:
        text = np.asarray(model_file.tensors[VOCABULARY_JSON].read()).tobytes()
        return _from_vocabulary(model_file, parse_object(path, VOCABULARY_JSON, text))
    if TOKENIZER_JSON not in model_file.tensors:
        raise refusal(path, "tokenizer", f"{TOKENIZER_JSON} or {VOCABULARY_JSON}", "neither", "pack the model again")
    from lutra.model.library_tokenizer import from_tokenizer_json

    stated = model_file.metadata.get("tokenizer")
    fields = Fields(path, stated if isinstance(stated, dict) else {})
    bos_id = None if fields.get("bos_id") is None else fields.integer("bos_id", 0, MAX_VOCAB)
    encoder = from_tokenizer_json(path, np.asarray(model_file.tensors[TOKENIZER_JSON].read()).tobytes())
    return _from_library(path, encoder, config_from(model_file), bos_id, fields.flag("add_bos", False))


def _column(fields: Fields, key: str, kind: type, length: int | None, default: Any) -> list[Any]:
    """Read one array of the vocabulary.

    length   None: the column that decides it, required; else a missing column is `default` throughout, None = refused
    raises   FileError
    """
    column = fields.get(key)
    if column is None and length is not None and default is not None:
        return [default] * length
    if not isinstance(column, list) or not 0 < len(column) <= MAX_VOCAB * 2:
        raise _bad_column(fields, key, f"an array of {length or 'at least one'} values", column)
    if length is not None and len(column) != length:
        raise _bad_column(fields, key, f"{length} values, one per token", f"{len(column)} values")
    for value in column:
        if type(value) is not kind or value != value:
            raise _bad_column(fields, key, f"values of type {kind.__name__}", value)
    return column


def _bad_column(fields: Fields, key: str, expected: str, got: object) -> FileError:
    return fields.refuse(key, expected, got, DO)


def _check_ids(fields: Fields, vocab_size: int, bos_id: int | None, eos_ids: tuple[int, ...]) -> None:
    for name, token in [("bos_token_id", bos_id), *(("eos_token_id", token) for token in eos_ids)]:
        if token is not None and token >= vocab_size:
            raise fields.refuse(name, f"a token id below {vocab_size}", token, DO)


READERS = {"gguf": _from_gguf, "safetensors": _from_folder, "packed": _from_packed, "quantised": _from_packed}
