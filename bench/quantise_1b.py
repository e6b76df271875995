"""Memory and time that quantising a model takes: a random Llama of a named shape, then `lutra quantize` in a process.

    python bench/quantise_1b.py                                    # 1b by rtn, hlq and gptq: a table on stdout
    python bench/quantise_1b.py --shape 7b --layers 2 --method gptq
    python bench/quantise_1b.py --kill 0.5 --method gptq           # killed half-way and resumed: is the file the same?

Each method runs in a process of its own; memory is the most that process held, mapped files included.  Weights are
bf16, normal, 1/sqrt(K).  Seconds depend on what else the computer does, CPU seconds hardly.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lutra.model.random import SHAPES

METHODS = {"rtn": "planes4-g128-zeros", "clip": "planes4-g128-zeros", "hlq": "planes1x2-g64-mins",
           "gptq": "planes4-g128-zeros", "gptq+clip": "planes3-g64-zeros", "gptq+hlq": "planes1x2-g64-mins",
           "awq+clip": "planes4-g128-zeros"}  # fmt: skip
HF_NAMES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
            "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}  # fmt: skip
SAMPLE_ROWS = 256  # that are really random; the others repeat them, shifted


def write_model(folder: Path, shape: str, layers: int | None) -> None:
    """Write config, tokenizer and one shard of weights per layer."""
    hidden, ffn, usual_layers, heads, kv_heads, vocabulary = SHAPES[shape]
    layers = layers or usual_layers
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": hidden,
        "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(_letters())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    keys = kv_heads * (hidden // heads)
    shapes = {"q": (hidden, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, hidden),
              "gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn)}  # fmt: skip
    rng = np.random.default_rng(0)
    weight_map: dict[str, str] = {}
    for name, tensors in _shards(rng, layers, shapes, (vocabulary, hidden)):
        _write_shard(folder / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _letters() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _shards(rng: np.random.Generator, layers: int, shapes: dict[str, tuple[int, int]],
            table: tuple[int, int]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:  # fmt: skip
    ones = np.ones(table[1], ml_dtypes.bfloat16)
    yield "outside.safetensors", {"model.embed_tokens.weight": _matrix(rng, *table), "model.norm.weight": ones}
    for index in range(layers):
        prefix = f"model.layers.{index}."
        tensors = {f"{prefix}{HF_NAMES[name]}.weight": _matrix(rng, *shape) for name, shape in shapes.items()}
        norms = {f"{prefix}{name}.weight": ones for name in ("input_layernorm", "post_attention_layernorm")}
        yield f"layer-{index:04}.safetensors", tensors | norms


def _matrix(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    sample = (rng.standard_normal((min(n, SAMPLE_ROWS), k), np.float32) / np.sqrt(k)).astype(ml_dtypes.bfloat16)
    blocks = [np.roll(sample, shift, 1) for shift in range(-(-n // len(sample)))]
    return np.concatenate(blocks)[:n]


def _write_shard(path: Path, tensors: dict[str, np.ndarray]) -> None:
    entries, end = {}, 0
    for name, values in tensors.items():
        entries[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [end, end + values.nbytes]}
        end += values.nbytes
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for values in tensors.values():
            file.write(values.view(np.uint8).data)


def _text(path: Path | None, num_tokens: int) -> str:
    if path is None:
        return random_text(num_tokens + 1000)
    with path.open(encoding="ascii", errors="replace") as file:  # a byte becomes one token, unless it is none of ASCII
        return file.read(num_tokens + 1000).replace("\ufffd", "?")


def random_text(num_chars: int) -> str:
    rng = np.random.default_rng(1)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz      ", np.uint8)
    return bytes(rng.choice(letters, num_chars)).decode()


def command(folder: Path, out: Path, method: str, text: Path, tokens: int) -> list[str]:
    return [sys.executable, "-m", "lutra", "quantize", str(folder / "model"), str(out), "--format", METHODS[method],
            "--method", method, "--calib", str(text), "--calib-windows", str(tokens // 512),
            "--no-speed"]  # which would load the result  # fmt: skip


def run(arguments: list[str]) -> tuple[float, float, float]:
    """Run a process; return (seconds, seconds of all its threads on a CPU, the most memory it held, in GB)."""
    started = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed with status {status}: {' '.join(arguments)}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def killed_and_resumed(arguments: list[str], out: Path, num_layers: int) -> tuple[int, float]:
    """Start, kill as soon as so many layers are done, and start again; return (layers done, seconds of the rest)."""
    parts = out.with_name(f".{out.name}.part")
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    while _layers_done(parts) < num_layers:
        if process.poll() is not None:
            raise SystemExit(f"ended before {num_layers} layers were done: {' '.join(arguments)}")
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return _layers_done(parts), run(arguments)[0]


def _layers_done(folder: Path) -> int:
    return len(list(folder.glob("layer-*")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1b", choices=SHAPES)
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--method", action="append", choices=METHODS, help="may be given several times")
    parser.add_argument("--tokens", type=int, default=16384, help="of calibration")
    parser.add_argument("--text", type=Path, help="to calibrate on, a token a byte; default: random words")
    parser.add_argument("--kill", type=float, help="kill when this share of layers is done, resume, compare the files")
    parser.add_argument("--folder", type=Path, help="where the model is kept; default: one that is removed")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "model" / "config.json").exists():
            write_model(folder / "model", options.shape, options.layers)
        layers = len(list((folder / "model").glob("layer-*")))
        text = folder / "text.txt"
        text.write_text(_text(options.text, options.tokens))
        weights = sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors"))
        print(f"{options.shape}: {layers} layers, {weights / 1e9:.2f} GB of bf16; where there is calibration, it has "
              f"{options.tokens} tokens\n")  # fmt: skip
        print("| method | format | seconds | CPU seconds | peak memory, GB | file, GB |\n|---|---|--:|--:|--:|--:|")
        for method in options.method or ("rtn", "hlq", "gptq"):
            out = folder / f"{method}.safetensors"
            arguments = command(folder, out, method, text, options.tokens)
            seconds, cpu, memory = run(arguments)
            size = out.stat().st_size / 1e9
            row = method, METHODS[method], f"{seconds:.0f}", f"{cpu:.0f}", f"{memory:.2f}", f"{size:.2f}"
            print("| " + " | ".join(row) + " |", flush=True)
            if options.kill is not None:
                digest = hashlib.sha256(out.read_bytes()).hexdigest()
                out.unlink()
                done, rest = killed_and_resumed(arguments, out, max(1, round(options.kill * layers)))
                said = "the same file" if hashlib.sha256(out.read_bytes()).hexdigest() == digest else "ANOTHER FILE"
                print(f"killed with {done} layers done, {rest:.0f} s more: {said}, sha256 {digest[:16]}", flush=True)
            out.unlink()


if __name__ == "__main__":
    main()
