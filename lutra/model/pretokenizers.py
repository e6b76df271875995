"""How byte-level vocabularies cut text into words before joining bytes: one row per name in GGUF files.

GGUF files do not carry the rule, only its name (tokenizer.ggml.pre).  The patterns are those of each model's own
tokenizer.json; the names, and which models share one rule, are llama.cpp's (src/llama-vocab.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass

from lutra.errors import FileError

# GPT-2, encoder.py
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# tiktoken, cl100k_base; Llama 3 uses it unchanged, Qwen2 takes digits one by one
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = CL100K.format(digits="{1,3}")
QWEN2 = CL100K.format(digits="")
# Falcon, tokenizer.json: punctuation first, then GPT-2, then digits in threes
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")
FALLBACK = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")  # llama.cpp's for files without a name
STARCODER = (r"\p{N}", GPT2)


@dataclass(frozen=True)
class PreTokenizer:
    """patterns: applied one after the other, each isolates its matches; nfc: Unicode-normalise before;
    whole_words: a word that is a token is not joined from bytes; add_bos: unless the file says otherwise."""

    patterns: tuple[str, ...]
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False


_GPT2 = PreTokenizer((GPT2,))
_LLAMA3 = PreTokenizer((LLAMA3,), whole_words=True, add_bos=True)
_QWEN2 = PreTokenizer((QWEN2,), nfc=True)

PRE_TOKENIZERS = {
    "default": PreTokenizer(FALLBACK),
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "falcon3": _LLAMA3,
    "falcon_e": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "falcon": PreTokenizer(FALCON),
    "starcoder": PreTokenizer(STARCODER),
    "smollm": PreTokenizer(STARCODER),
    "command-r": PreTokenizer(STARCODER),
}


def pre_tokenizer(name: str | None, architecture: str) -> PreTokenizer:
    """Return the rule of a GGUF file.

    name    tokenizer.ggml.pre; missing in Microsoft's BitNet files, whose vocabulary is Llama 3's
    raises  FileError    a name without a row: another rule would quietly give other tokens
    """
    if name is None:
        return PRE_TOKENIZERS["llama-bpe" if architecture.startswith("bitnet") else "default"]
    if name not in PRE_TOKENIZERS:
        raise FileError(
            f"tokenizer.ggml.pre: expected one of {', '.join(PRE_TOKENIZERS)}, got {name[:80]!r}; "
            "use the model's Hugging Face folder, whose tokenizer.json carries its own rule"
        )
    return PRE_TOKENIZERS[name]
