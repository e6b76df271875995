"""What a decoder looks like in numbers: read from GGUF metadata, config.json or a file of ours, checked at the door."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lutra.errors import FileError
from lutra.files.door import refusal, shown
from lutra.files.model_file import ModelFile
from lutra.model.chat_template import find_template
from lutra.model.families import BY_CLASS, BY_GGUF, BY_MODEL_TYPE, BY_NAME, Family
from lutra.model.fields import Fields, side_file
from lutra.model.rope import MAX_THETA, scaling_from_gguf, scaling_from_hugging_face

ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu2": "relu2"}  # Hugging Face's names and ours
NO_TOKEN = 0xFFFFFFFF  # GGUF writers' spelling of "there is no such token"

# our name        GGUF key                       config.json key            least, most (far above any real model)
SIZES = {
    "hidden_size": ("embedding_length", "hidden_size", 1, 1 << 16),
    "ffn_size": ("feed_forward_length", "intermediate_size", 1, 1 << 18),
    "num_layers": ("block_count", "num_hidden_layers", 1, 1 << 10),
    "num_heads": ("attention.head_count", "num_attention_heads", 1, 1 << 10),
    "max_context": ("context_length", "max_position_embeddings", 1, 1 << 24),
}
MAX_VOCAB = 1 << 21
MAX_HEAD_DIM = 1 << 10


@dataclass(frozen=True)
class ModelConfig:
    """One decoder.

    architecture   name of a row of families.py
    ffn_size       width between gate/up and down
    head_dim       even; num_heads * head_dim need not be hidden_size
    max_context    tokens; at most the sliding window, if there is one
    rope_scaling   None, or a dict that rope.py reads
    tied           the head is the embedding
    eos_ids        as the files declare; Tokenizer.eos_ids adds the end-of-turn tokens of the vocabulary
    """

    architecture: str
    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    norm_eps: float
    activation: str
    tied: bool
    attn_sub_norm: bool
    ffn_sub_norm: bool
    qk_norm: bool
    qkv_bias: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    chat_template: str | None

    @property
    def family(self) -> Family:
        """The row of families.py."""
        return BY_NAME[self.architecture]


def config_from(model_file: ModelFile) -> ModelConfig:
    """Read the config of a model file.

    raises   FileError    an unknown family, a missing or absurd size, or a feature lutra does not compute
    """
    return READERS[model_file.kind](model_file)


def _from_gguf(model_file: ModelFile) -> ModelConfig:
    general = Fields(model_file.path, model_file.metadata)
    architecture = general.text("general.architecture")
    if architecture not in BY_GGUF:
        raise _unknown_family(general, "general.architecture", architecture, tuple(BY_GGUF))
    family = BY_GGUF[architecture]
    fields = Fields(model_file.path, model_file.metadata, architecture + ".")
    sizes = {name: fields.integer(gguf, low, high) for name, (gguf, _, low, high) in SIZES.items()}
    heads = _heads(fields, sizes, "attention.head_count_kv", "attention.key_length")
    fields.require("attention.value_length", (heads["head_dim"],), "use a model whose keys and values are equally wide")
    fields.require("rope.dimension_count", (heads["head_dim"],), "use a model that rotates whole heads")
    fields.require("expert_count", (0,), "use a dense model: mixtures of experts are not run")
    sizes["max_context"] = min(sizes["max_context"], fields.integer("attention.sliding_window", 1, 1 << 30, 1 << 30))
    tokens = general.get("tokenizer.ggml.tokens")
    num_tokens = len(tokens) if isinstance(tokens, list) else None
    return ModelConfig(
        architecture=family.name,
        **sizes,
        **heads,
        vocab_size=fields.integer("vocab_size", 1, MAX_VOCAB, num_tokens),
        rope_theta=fields.number("rope.freq_base", 1.0, MAX_THETA, family.rope_theta),
        rope_scaling=scaling_from_gguf(fields),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon", 0.0, 1.0, family.norm_eps),
        activation=family.activation,
        tied="head" not in model_file.tensors,
        attn_sub_norm=family.attn_sub_norm,
        ffn_sub_norm=family.ffn_sub_norm,
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias or "layers.0.q.bias" in model_file.tensors,
        bos_id=_token_id(general, "tokenizer.ggml.bos_token_id"),
        eos_ids=_eos_ids(general, "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                         "tokenizer.ggml.eom_token_id"),
        chat_template=find_template(model_file),
    )


def _from_hugging_face(model_file: ModelFile) -> ModelConfig:
    path = model_file.folder / "config.json"
    fields = Fields(path, model_file.metadata)
    family = _hugging_face_family(fields)
    sizes = {name: fields.integer(key, low, high) for name, (_, key, low, high) in SIZES.items()}
    heads = _heads(fields, sizes, "num_key_value_heads", "head_dim")
    fields.require("mlp_bias", (False,), "use a model without biases in gate, up and down")
    fields.require("hidden_act", tuple(ACTIVATIONS), "use a model with one of these activations")
    if fields.flag("use_sliding_window", False):  # every layer sees the whole of a context this short
        sizes["max_context"] = min(sizes["max_context"], fields.integer("sliding_window", 1, 1 << 30))
    theta, scaling = scaling_from_hugging_face(fields, family.rope_theta)
    generation = side_file(model_file.folder, "generation_config.json")
    declared = [_eos_ids(source, "eos_token_id") for source in (fields, generation) if source is not None]
    return ModelConfig(
        architecture=family.name,
        **sizes,
        **heads,
        vocab_size=fields.integer("vocab_size", 1, MAX_VOCAB),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, family.norm_eps),
        activation=ACTIVATIONS[fields.text("hidden_act", family.activation)],
        tied=fields.flag("tie_word_embeddings", False),
        attn_sub_norm=family.attn_sub_norm,
        ffn_sub_norm=family.ffn_sub_norm,
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias or fields.flag("attention_bias", False),
        bos_id=_token_id(fields, "bos_token_id"),
        eos_ids=tuple(dict.fromkeys(token for ids in declared for token in ids)),
        chat_template=find_template(model_file),
    )


def _from_packed(model_file: ModelFile) -> ModelConfig:
    """Read what `to_json` made, and believe no more of it than of other files."""
    stated = model_file.metadata.get("config")
    if not isinstance(stated, dict):
        raise refusal(model_file.path, "config", "an object", shown(stated), "pack the model again")
    fields = Fields(model_file.path, {f"config.{name}": value for name, value in stated.items()}, "config.")
    fields.require("architecture", tuple(BY_NAME), "use a model of one of these families")
    fields.require("activation", tuple(ACTIVATIONS.values()), "use a model with one of these activations")
    sizes = {name: fields.integer(name, low, high) for name, (_, _, low, high) in SIZES.items()}
    numbers: dict[str, Any] = sizes | _heads(fields, sizes, "num_kv_heads", "head_dim")
    theta, scaling = scaling_from_hugging_face(fields, 0.0)
    flags = ("tied", "attn_sub_norm", "ffn_sub_norm", "qk_norm", "qkv_bias")
    return ModelConfig(
        architecture=fields.text("architecture"),
        **numbers,
        vocab_size=fields.integer("vocab_size", 1, MAX_VOCAB),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=fields.number("norm_eps", 0.0, 1.0),
        activation=fields.text("activation"),
        **{name: fields.flag(name, False) for name in flags},
        bos_id=_token_id(fields, "bos_id"),
        eos_ids=_eos_ids(fields, "eos_ids"),
        chat_template=fields.text("chat_template", "") or None,
    )


def to_json(config: ModelConfig) -> dict[str, Any]:
    """Say a config in values that JSON has."""
    return asdict(config) | {"eos_ids": list(config.eos_ids)}


def _hugging_face_family(fields: Fields) -> Family:
    """Find the row by class name first: 1bitLLM's BitNet says model_type llama but is not one."""
    classes = fields.get("architectures")
    class_name = classes[0] if isinstance(classes, list) and classes else None
    if isinstance(class_name, str) and class_name in BY_CLASS:
        return BY_CLASS[class_name]
    model_type = fields.text("model_type")
    if class_name is not None or model_type not in BY_MODEL_TYPE:
        raise _unknown_family(fields, "architectures", class_name or model_type, tuple(BY_CLASS))
    return BY_MODEL_TYPE[model_type]


def _unknown_family(fields: Fields, key: str, got: object, known: tuple[str, ...]) -> FileError:
    return refusal(fields.path, key, " or ".join(known), shown(got), "use a model of one of these families")


def _heads(fields: Fields, sizes: dict[str, int], kv_key: str, dim_key: str) -> dict[str, int]:
    """Read num_kv_heads and head_dim; both may be left out."""
    num_heads, hidden_size = sizes["num_heads"], sizes["hidden_size"]
    num_kv_heads = fields.integer(kv_key, 1, num_heads, num_heads)
    if num_heads % num_kv_heads:
        raise fields.refuse(kv_key, f"a divisor of the {num_heads} attention heads", num_kv_heads)
    if fields.get(dim_key) is None and hidden_size % num_heads:
        raise fields.refuse(dim_key, f"a head size, as {num_heads} heads do not divide {hidden_size}", None)
    head_dim = fields.integer(dim_key, 2, MAX_HEAD_DIM, hidden_size // num_heads)
    if head_dim % 2:
        raise fields.refuse(dim_key, "an even head size, as the rotary embedding turns pairs", head_dim)
    return {"num_kv_heads": num_kv_heads, "head_dim": head_dim}


def _token_id(fields: Fields, key: str) -> int | None:
    if fields.get(key) in (None, NO_TOKEN, -1):
        return None
    return fields.integer(key, 0, MAX_VOCAB)


def _eos_ids(fields: Fields, *keys: str) -> tuple[int, ...]:
    """Gather end tokens; in Hugging Face files the value is a number or a list."""
    ids: dict[int, None] = {}
    for key in keys:
        stated = fields.get(key)
        for value in stated if isinstance(stated, list) else [stated]:
            token = _token_id(Fields(fields.path, {key: value}), key)
            if token is not None:
                ids[token] = None
    return tuple(ids)


READERS = {"gguf": _from_gguf, "safetensors": _from_hugging_face, "packed": _from_packed, "quantised": _from_packed}
