"""Perplexity over bits per weight of one float model: our methods, and llama.cpp's types of the same model.

    python bench/bits_quality.py MODEL text.txt --calib calibration.txt --out results.json [--bin llama.cpp/build/bin]
    python bench/pareto.py results.json --picture docs/pictures/bits_quality.png

The linears of the layers change; embedding, head and norms stay as stored in all of them.  Every file is measured by
lutra, with the same windows, so what differs is the weights.  Bits per weight count the linears, scales included.
Results are written as they come; run again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from llama_perplexity import run

from lutra import machine
from lutra.engine.llm import LLM
from lutra.errors import LutraError
from lutra.files import open_model
from lutra.files.model_file import LazyTensor
from lutra.files.names import LINEARS
from lutra.formats.qtensor import QTensor
from lutra.model.quantize import quantize
from lutra.model.recipe import Recipe
from lutra.model.to_gguf import export

# formats near 2, 2.5, 3 and 4 bits, each with the methods that can write it
FORMATS: dict[str, tuple[str, ...]] = {
    "ternary-g128": ("clip", "gptq+clip"),
    "planes2-g256": ("rtn", "gptq", "gptq+clip"),
    "planes2-g128": ("gptq",),
    "planes2-g64": ("gptq",),
    "planes2-g128-mins": ("clip", "gptq+clip"),
    "planes2-g64-mins": ("rtn", "clip", "awq+clip", "gptq", "gptq+clip"),
    "planes2-g32-mins-u8xf16": ("clip", "gptq+clip"),
    "planes1x2-g128-mins": ("hlq", "gptq+hlq"),
    "planes1x2-g64-mins": ("hlq", "gptq+hlq"),
    "planes2-g32-mins": ("clip", "gptq+clip"),
    "planes3-g256": ("rtn", "gptq"),
    "planes3-g128": ("gptq", "gptq+clip"),
    "planes3-g128-mins": ("clip", "gptq+clip"),
    "planes3-g64-mins": ("rtn", "clip", "awq+clip", "gptq", "gptq+clip"),
    "planes3-g32-mins-u8xf16": ("clip", "gptq+clip"),
    "ternaryx2-g128": ("ptqtp",),
    "planes1x3-g128-mins": ("hlq", "gptq+hlq"),
    "planes4-g128": ("gptq",),
    "planes4-g64": ("gptq",),
    "planes4-g128-mins": ("clip", "gptq+clip"),
    "planes4-g32-mins": ("rtn", "clip", "awq+clip", "gptq", "gptq+clip"),
    "planes4-g32": ("rtn", "gptq+clip"),
    "planes4-g32-mins-u8xf16": ("clip", "gptq+clip"),
    "nf4-g64": ("rtn",),
    "e2m1-g32-e8m0": ("rtn",),
    "iq4nl-g32": ("rtn", "gptq"),
}
# Of llama.cpp: without and with a matrix of importance, which llama-imatrix makes of the calibration text
TYPES = ("Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "IQ4_NL", "IQ4_XS", "TQ2_0")
MATRIX_TYPES = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_K")


def bits_per_weight(path: Path) -> float:
    """Bits of the layers' linears, scales included, for each of their weights."""
    num_bytes = num_weights = 0
    for name, tensor in open_model(path).tensors.items():
        if name.rsplit(".", 1)[-1] in LINEARS:
            num_bytes += stored_bytes(tensor)
            num_weights += tensor.shape[0] * tensor.shape[1]
    return 8 * num_bytes / num_weights


def stored_bytes(tensor: LazyTensor) -> float:
    """Bytes of a matrix as its file has it: K-quants have scales of 6 bits there."""
    size = tensor.shape[0] * tensor.shape[1]
    if tensor.stored_type in GGMLQuantizationType.__members__:
        block_size, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.stored_type]]
        return size / block_size * block_bytes
    value = tensor.read()
    return value.nbytes if isinstance(value, QTensor) else 2 * size


def ours(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, Any]]:
    """(name, family, function that writes the model and returns its path)."""
    for format, methods in FORMATS.items():
        for method in methods:
            recipe = Recipe(format, method, windows=options.windows, length=options.length)
            yield f"{format} {method}", method, lambda recipe=recipe: _quantised(options, recipe, folder)


def _quantised(options: argparse.Namespace, recipe: Recipe, folder: Path) -> Path:
    target = folder / "ours.safetensors"
    target.unlink(missing_ok=True)
    text = options.calib.read_text("utf-8") if recipe.calibrated else None
    quantize(options.model, target, recipe, text, options.threads, lambda label, done, total: None)
    return target


def theirs(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, Any]]:
    for kind, with_matrix in [*((kind, False) for kind in TYPES), *((kind, True) for kind in MATRIX_TYPES)]:
        name = f"llama.cpp {kind}" + (", matrix" if with_matrix else "")
        if options.bin:
            yield name, "llama.cpp", partial(_llama, options, kind, folder, with_matrix)


def _llama(options: argparse.Namespace, kind: str, folder: Path, with_matrix: bool) -> Path:
    source, target = folder / "float.gguf", folder / "theirs.gguf"
    if not source.exists():
        export(options.model, source)
    matrix = ["--imatrix", str(_matrix(options, source, folder))] if with_matrix else []
    kept = ["--token-embedding-type", "bf16", "--output-tensor-type", "bf16"]
    run(str(options.bin / "llama-quantize"), "--pure", *kept, *matrix, str(source), str(target), kind)
    return target


def _matrix(options: argparse.Namespace, source: Path, folder: Path) -> Path:
    """What llama-imatrix makes of as many windows of the calibration text as our methods see."""
    target = folder / "matrix.gguf"
    if not target.exists():
        seen = ["-f", str(options.calib), "--chunks", str(options.windows), "-c", str(options.length)]
        run(str(options.bin / "llama-imatrix"), "-m", str(source), "-o", str(target), *seen)
    return target


def measured(options: argparse.Namespace, path: Path) -> dict[str, float]:
    llm = LLM.load(path, threads=options.threads, context=options.context)
    found = llm.measure(options.text.read_text("utf-8"), options.context, protocol="gptq")
    return {"perplexity": found.value, "bits_per_weight": bits_per_weight(path)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", type=Path, help="a float model; llama.cpp's types need rows of 256")
    options.add_argument("text", type=Path)
    options.add_argument("--calib", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True, help="JSON, for bench/pareto.py")
    options.add_argument("--bin", type=Path, help="the folder with llama-quantize and llama-imatrix")
    options.add_argument("--context", type=int, default=256)
    options.add_argument("--windows", type=int, default=64, help="of calibration")
    options.add_argument("--length", type=int, default=256, help="tokens of one")
    options.add_argument("--threads", type=int, default=machine.usable_cores())
    chosen = options.parse_args()
    rows = json.loads(chosen.out.read_text("utf-8")) if chosen.out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        jobs = [("float", "float", lambda: chosen.model), *theirs(chosen, Path(folder)), *ours(chosen, Path(folder))]
        for name, family, make in jobs:
            if any(row["name"] == name for row in rows):
                continue
            try:
                rows.append({"name": name, "family": family} | measured(chosen, make()))
            except LutraError as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            print(f"{name:40} {rows[-1]['bits_per_weight']:6.3f} {rows[-1]['perplexity']:9.3f}", flush=True)
            chosen.out.write_text(json.dumps(rows, indent=1), "utf-8")


if __name__ == "__main__":
    main()
