"""A model of any container as a GGUF file that llama.cpp and its kin read: key-values, names, order of rows.

Only weights in formats that a GGUF type holds exactly can be written; nothing is rounded here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lutra.errors import FileError, FormatError, RequestError
from lutra.files import gguf_write, open_model
from lutra.files.blocks_write import encode
from lutra.files.door import check_apart, shown
from lutra.files.model_file import ModelFile
from lutra.files.names import GGUF, INTERLEAVED_ARCHITECTURES, half_rotation_rows, rotated_part
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.formats.vectors import VectorFormat, VectorWeight
from lutra.model.config import ModelConfig, config_from
from lutra.model.pretokenizers import GPT2, PRE_TOKENIZERS
from lutra.model.rope import rope_frequencies
from lutra.model.spm import CONTROL, NORMAL, USER_DEFINED
from lutra.model.tokenizer import TOKENIZER_JSON, VOCABULARY_JSON, Tokenizer, to_stored
from lutra.quantize.methods import METHODS, method_for

SUFFIX = ".gguf"

# tokenizer.ggml.* keys → how they are written
VOCABULARY_KINDS = {
    "model": "text", "pre": "text", "tokens": "text", "token_type": "i32", "scores": "f32", "merges": "text",
    "add_bos_token": "bool", "add_space_prefix": "bool", "unknown_token_id": "u32",
}  # fmt: skip


def export(source: str | Path, target: Path) -> None:
    """Write a model as GGUF.

    source   what open_model takes, but a packed file
    target   a name that ends in .gguf
    raises   RequestError   a target without the suffix
             FileError      a packed model, a tokenizer or a format that GGUF has no words for; a target that is the
                            source, or cannot be written
    """
    if target.suffix != SUFFIX:
        raise RequestError(f"expected a file name that ends in {SUFFIX}, got {target.name!r}; add the ending")
    check_apart(Path(source), target)
    file = open_model(source)
    if file.kind == "packed":
        raise FileError(f"{file.path}: expected a model in the order of its rows, got a packed one; give its source")
    config = config_from(file)
    architecture = config.family.gguf[0]
    fields = config_fields(config, architecture) | vocabulary_fields(file, config)
    gguf_write.write(target, architecture, fields, _tensors(file, config, architecture))


def takes(format: Format | VectorFormat | None) -> bool:
    """Whether `export` has a type for floats that were quantised to a format, seen by trying with a few.

    Q4_K and its like are formats of their own here, but a quantiser makes full use of scales of 8 bits, and the blocks
    have room for 4 or 6.  None, as stored, has one.
    """
    if format is None or isinstance(format, VectorFormat):
        return format is None
    weight = np.random.default_rng(0).standard_normal((4, 512), np.float32)
    try:
        encode(METHODS[method_for(format, None)].quantise(weight, format))
    except FormatError:
        return False
    return True


def config_fields(config: ModelConfig, architecture: str) -> dict[str, tuple[str, Any]]:
    """The key-values that say what config.json does."""
    sizes = {
        "context_length": config.max_context, "embedding_length": config.hidden_size,
        "feed_forward_length": config.ffn_size, "block_count": config.num_layers,
        "attention.head_count": config.num_heads, "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim, "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim, "vocab_size": config.vocab_size,
    }  # fmt: skip
    fields: dict[str, tuple[str, Any]] = {f"{architecture}.{key}": ("u32", size) for key, size in sizes.items()}
    fields[f"{architecture}.rope.freq_base"] = ("f32", config.rope_theta)
    fields[f"{architecture}.attention.layer_norm_rms_epsilon"] = ("f32", config.norm_eps)
    if config.chat_template is not None:
        fields["tokenizer.chat_template"] = ("text", config.chat_template)
    return fields


def vocabulary_fields(file: ModelFile, config: ModelConfig) -> dict[str, tuple[str, Any]]:
    """The key-values that a tokenizer is made of.

    raises   FileError   a tokenizer.json of another kind than byte-level BPE with a rule that GGUF has a name for
    """
    tokenizer = Tokenizer.from_file(file)
    settings, texts = to_stored(file, tokenizer)
    if VOCABULARY_JSON in texts:
        held = json.loads(texts[VOCABULARY_JSON])
        words = {key.removeprefix("tokenizer.ggml."): value for key, value in held.items() if "ggml" in key}
    else:
        words = byte_level_words(file.path, json.loads(texts[TOKENIZER_JSON]), config.vocab_size)
    words["add_bos_token"] = bool(settings["add_bos"])
    fields = {f"tokenizer.ggml.{key}": (VOCABULARY_KINDS[key], value) for key, value in words.items()}
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": next(iter(config.eos_ids), None)}
    return fields | {f"tokenizer.ggml.{key}": ("u32", token) for key, token in ids.items() if token is not None}


def byte_level_words(path: Path, stated: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """A byte-level BPE of a tokenizer.json in the words of GGUF; ids without a token get a name of their own."""
    model = stated.get("model") or {}
    pre = _pre_tokenizer(stated.get("pre_tokenizer") or {})
    if model.get("type") != "BPE" or model.get("byte_fallback") or pre is None:
        raise FileError(f"{path}: tokenizer.json: expected byte-level BPE that splits as one of "
                        f"{', '.join(PRE_TOKENIZERS)}, got another; give the model as GGUF")
    by_id = {token: (piece, NORMAL) for piece, token in model["vocab"].items()}
    for added in stated.get("added_tokens", []):
        by_id[added["id"]] = (added["content"], CONTROL if added["special"] else USER_DEFINED)
    rows = [by_id.get(token, (f"[unused {token}]", USER_DEFINED)) for token in range(vocab_size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {"model": "gpt2", "pre": pre, "tokens": [piece for piece, _ in rows], "merges": merges,
            "token_type": [kind for _, kind in rows]}  # fmt: skip


def _pre_tokenizer(stated: dict[str, Any]) -> str | None:
    """GGUF's name for a rule of splitting, None where it has none."""
    parts = stated.get("pretokenizers", [stated])
    patterns = tuple(part["pattern"].get("Regex") for part in parts if part.get("type") == "Split")
    if any(part.get("type") == "ByteLevel" and part.get("use_regex", True) for part in parts):
        patterns = (*patterns, GPT2)
    return next((name for name, rule in PRE_TOKENIZERS.items() if rule.patterns == patterns), None)


def _tensors(file: ModelFile, config: ModelConfig, architecture: str) -> Iterator[tuple[str, np.ndarray | QTensor]]:
    """Every tensor by its GGUF name, rows of q and k in the order that the architecture has there."""
    outside = {ours: theirs for theirs, ours in GGUF.outside.items()}
    parts = {ours: theirs for theirs, ours in GGUF.parts.items()}
    heads = {"q": config.num_heads, "k": config.num_kv_heads}
    for name, lazy in file.tensors.items():
        if name == "rope_freqs" or name in (TOKENIZER_JSON, VOCABULARY_JSON):
            continue
        value = lazy.read()
        if isinstance(value, VectorWeight):
            raise FileError(f"{file.path}: tensor {shown(lazy.source_name)}: expected a weight with a code for each of "
                            f"its values, got {value.format.name}, for which GGUF has no type; quantise the model to "
                            "another format")  # fmt: skip
        if not isinstance(value, np.ndarray | QTensor):
            raise FileError(f"{file.path}: tensor {shown(lazy.source_name)}: expected a weight alone, got one with "
                            "side-cars, for which GGUF has no place; quantise it again")  # fmt: skip
        part = rotated_part(name)
        if part is not None and architecture in INTERLEAVED_ARCHITECTURES:
            value = _rows(value, np.argsort(half_rotation_rows(value.shape[0], heads[part])))
        if isinstance(value, np.ndarray) and value.ndim == 1:
            value = np.asarray(value, np.float32)  # llama.cpp multiplies by no other norms
        if name in outside:
            yield outside[name], value
            continue
        _, layer, rest = name.split(".", 2)
        rest, is_bias = rest.removesuffix(".bias"), rest.endswith(".bias")
        yield f"blk.{layer}.{parts[rest]}.{'bias' if is_bias else 'weight'}", value
    factors = _rope_factors(file, config)
    if factors is not None:
        yield "rope_freqs.weight", factors


def _rows(value: np.ndarray | QTensor, index: np.ndarray) -> np.ndarray | QTensor:
    return value.rows(index) if isinstance(value, QTensor) else value[index]


def _rope_factors(file: ModelFile, config: ModelConfig) -> np.ndarray | None:
    """What plain frequencies are divided by: f32 [head_dim / 2], None for nothing."""
    if "rope_freqs" in file.tensors:
        return np.asarray(file.tensors["rope_freqs"].read(), np.float32)
    if config.rope_scaling is None:
        return None
    plain = rope_frequencies(config, np.ones(config.head_dim // 2))
    return np.asarray(plain / rope_frequencies(config), np.float32)
