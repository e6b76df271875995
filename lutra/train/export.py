"""A checkpoint becomes the folder that lutra runs, and the reference forward pass reads that folder back.

The folder is laid out as `microsoft/bitnet-b1.58-2B-4T` is: config.json, model.safetensors, tokenizer.json.

| tensor                | dtype | shape       | what                                                    |
|-----------------------|-------|-------------|---------------------------------------------------------|
| ..._proj.weight       | uint8 | [N/4, K]    | ternary codes + 1; bits 2i, 2i+1 of row r: row i*N/4 + r |
| ..._proj.weight_scale | bf16  | [1]         | mean of the absolute master weight; multiply by it      |
| embedding, norms      | bf16  | [V, K], [K] | as trained, rounded                                     |

Source    huggingface.co/microsoft/bitnet-b1.58-2B-4T, and its loader in transformers, `integrations/bitnet.py`
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from lutra.errors import FileError, FormatError
from lutra.train import data
from lutra.train.bitlinear import quantize_activations, ternarize
from lutra.train.model import DecoderConfig, rotary_table, rotate
from lutra.train.run import read_checkpoint

ROWS_PER_BYTE = 4


def pack_rows(codes: torch.Tensor) -> torch.Tensor:
    """Pack ternary codes four rows to a byte.

    codes    [N, K] in {-1, 0, 1}, N a multiple of 4
    returns  uint8 [N / 4, K]
    Raises FormatError when N is not a multiple of 4.
    """
    if codes.shape[0] % ROWS_PER_BYTE:
        raise FormatError(f"expected N to be a multiple of {ROWS_PER_BYTE}, got N={codes.shape[0]}; choose other sizes")
    quarters = (codes + 1).to(torch.uint8).chunk(ROWS_PER_BYTE)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def unpack_rows(packed: torch.Tensor) -> torch.Tensor:
    """Undo `pack_rows`: uint8 [N / 4, K] -> int8 [N, K] in {-1, 0, 1}."""
    return torch.cat([packed >> shift & 3 for shift in (0, 2, 4, 6)]).to(torch.int8) - 1


def packed_tensors(state: dict[str, torch.Tensor], ternary: bool) -> dict[str, torch.Tensor]:
    """Turn the master weights of a decoder into the tensors of the folder; those of a float decoder only to bf16."""
    tensors = {}
    for name, weight in state.items():
        if ternary and name.endswith("_proj.weight"):
            codes, scale = ternarize(weight)
            tensors[name] = pack_rows(codes)
            tensors[name + "_scale"] = scale.reshape(1).bfloat16()
        else:
            tensors[name] = weight.bfloat16()
    return tensors


# DecoderConfig.weights → the keys of config.json that say so
KINDS: dict[str, dict[str, Any]] = {
    "ternary": {
        "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2",
        "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear",
                                "quantization_mode": "offline"},
    },
    "float": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"},
}  # fmt: skip


def hugging_face_config(config: DecoderConfig, bos: int, eos: int) -> dict[str, Any]:
    """Describe the decoder in the keys of a Hugging Face config.json."""
    return KINDS[config.weights] | {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_context,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": "bfloat16",
    }


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path`, then move over it, so that a reader sees the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.chmod(0o644)  # safetensors makes files that only their owner can read
    os.replace(partial, path)


def export(run_folder: Path, folder: Path) -> None:
    """Export run_folder/{checkpoint.pt, tokenizer.json} to a model folder.

    Raises FileError when the run has no checkpoint yet, or a damaged one.
    """
    from tokenizers import Tokenizer

    checkpoint = run_folder / "checkpoint.pt"
    if not checkpoint.exists():
        raise FileError(f"expected a training run with checkpoint.pt, got {run_folder}; train first, or name its --out")
    state = read_checkpoint(checkpoint)
    tokenizer = Tokenizer.from_file(str(run_folder / "tokenizer.json"))
    sizes = DecoderConfig(**state["config"]["model"])
    config = hugging_face_config(sizes, *data.bos_and_eos(tokenizer))
    tensors = packed_tensors(state["model"], sizes.weights == "ternary")
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "model.safetensors", lambda p: save_file(tensors, p, metadata={"format": "pt"}))
    replace_file(folder / "tokenizer.json", lambda p: tokenizer.save(str(p)))
    replace_file(folder / "config.json", lambda p: p.write_text(json.dumps(config, indent=2) + "\n"))


@dataclass(frozen=True)
class CapturedDot:
    """One linear of the reference: what went in, and its exact integer sums before any scale."""

    x: torch.Tensor  # f32 [T, K]
    values: torch.Tensor  # int8 [T, K]
    acc: torch.Tensor  # int32 [T, N]


class Reference:
    """The exported model as plain arithmetic: float32 everywhere, int32 inside every ternary linear."""

    def __init__(self, folder: Path, capture: dict[str, CapturedDot] | None = None) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.tensors = load_file(folder / "model.safetensors")
        self.codes = {name.removesuffix(".weight"): unpack_rows(tensor).float()
                      for name, tensor in self.tensors.items() if tensor.dtype == torch.uint8}
        self.capture = capture

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """ids [T] -> f32 [T, vocab]"""
        sizes = DecoderConfig(head_dim=self.config["head_dim"], rope_theta=self.config["rope_theta"])
        cos, sin = rotary_table(sizes, len(ids))
        embedding = self.tensors["model.embed_tokens.weight"].float()
        x = embedding[torch.tensor(ids)]
        for i in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{i}"
            x = x + self.attention(self.norm(x, f"{layer}.input_layernorm"), f"{layer}.self_attn", cos, sin)
            x = x + self.feed_forward(self.norm(x, f"{layer}.post_attention_layernorm"), f"{layer}.mlp")
        return self.norm(x, "model.norm") @ embedding.T

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        mean = x.square().mean(-1, keepdim=True)
        return x * (mean + self.config["rms_norm_eps"]).rsqrt() * self.tensors[name + ".weight"].float()

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """x f32 [T, K] -> f32 [T, N], by exact integer sums.

        The sums are made in float32, where integers below 2**24 are exact in any order: |acc| <= 127 * K < 2**24
        for K < 132,000.
        """
        values, scales = quantize_activations(x)
        acc = (values @ self.codes[name].T).int()
        if self.capture is not None:
            self.capture[name] = CapturedDot(x, values.to(torch.int8), acc)
        return acc.float() * (scales * self.tensors[name + ".weight_scale"].float())

    def attention(self, x: torch.Tensor, prefix: str, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        def heads(name: str) -> torch.Tensor:  # [heads, T, head_dim]
            return self.linear(x, f"{prefix}.{name}_proj").unflatten(-1, (-1, self.config["head_dim"])).transpose(0, 1)

        q, k, v = rotate(heads("q"), cos, sin), rotate(heads("k"), cos, sin), heads("v")
        sharing = len(q) // len(k)
        k, v = k.repeat_interleave(sharing, 0), v.repeat_interleave(sharing, 0)
        scores = q @ k.transpose(1, 2) / self.config["head_dim"] ** 0.5  # [heads, T, T]
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        y = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        return self.linear(self.norm(y.transpose(0, 1).flatten(1), f"{prefix}.attn_sub_norm"), f"{prefix}.o_proj")

    def feed_forward(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        hidden = F.relu(self.linear(x, f"{prefix}.gate_proj")).square() * self.linear(x, f"{prefix}.up_proj")
        return self.linear(self.norm(hidden, f"{prefix}.ffn_sub_norm"), f"{prefix}.down_proj")


def reference_logits(folder: Path, ids: list[int], capture: dict[str, CapturedDot] | None = None) -> torch.Tensor:
    """Run an exported folder in plain PyTorch: what an engine's logits are compared with.

    folder   what `export` wrote
    ids      [T] token ids, BOS included
    capture  if given, filled with one CapturedDot per ternary linear, by its name in the file
    returns  f32 [T, vocab]
    """
    return Reference(Path(folder), capture).logits(ids)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m lutra.train.export RUN_FOLDER MODEL_FOLDER")
    export(Path(sys.argv[1]), Path(sys.argv[2]))
