"""Perplexity of the same GGUF files in lutra and in llama.cpp, type by type, by llama.cpp's protocol.

    python bench/widen.py stories260K.gguf wide.gguf
    python bench/llama_perplexity.py wide.gguf text.txt --bin path/to/llama.cpp/build/bin

llama-quantize makes each file of a float one; both programs measure it.  Both round activations to 8 bits where a
weight is quantised, llama.cpp in blocks of 32 or 256, lutra in the weight's groups: that is the difference left over.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from lutra import machine
from lutra.bench.report import to_table
from lutra.engine.llm import LLM
from lutra.errors import FileError, LutraError

# name → arguments of llama-quantize; a type that it only gives to experts is asked for tensor by tensor
TYPES = {
    "F32": ["COPY"],
    "F16": ["F16"],
    "MXFP4": ["--tensor-type", "attn=mxfp4", "--tensor-type", "ffn=mxfp4", "Q8_0"],
    "TQ1_0": ["TQ1_0"],  # embedding Q4_K, head Q6_K
    "TQ2_0": ["TQ2_0"],
}
DEFAULT = "F32,Q8_0,Q4_0,Q4_K,Q6_K,TQ2_0,MXFP4"
FOUND = re.compile(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)")
TRIES = 5  # on a busy computer it may end before its own last line is written
BATCH = 512  # tokens that llama.cpp decodes together


def quantize_arguments(name: str) -> list[str]:
    """Arguments of llama-quantize for a type: every matrix in it, where TYPES has no other row."""
    *flags, kind = TYPES.get(name, ["--pure", name])
    return [*flags, "{source}", "{target}", kind]


def run(*words: str) -> str:
    """What a program wrote; FileError with its last line where it failed."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise FileError(f"{words[0]}: expected a program, got: {error.strerror}; see --bin") from None
    said = done.stdout + done.stderr
    if done.returncode:
        last = (said.strip().splitlines() or ["nothing said"])[-1]
        raise FileError(f"{words[0]}: expected it to end well, got exit code {done.returncode}: {last}; run it by hand")
    return said


def make(folder: Path, source: Path, target: Path, name: str) -> None:
    """Write the model in a type."""
    places = {"source": str(source), "target": str(target)}
    run(str(folder / "llama-quantize"), *(word.format(**places) for word in quantize_arguments(name)))


def theirs(folder: Path, model: Path, text: Path, context: int, threads: int) -> float:
    """The perplexity that llama-perplexity prints."""
    words = ["-m", model, "-f", text, "-c", context, "-t", threads, "-b", max(BATCH // context, 1) * context]
    words.append("--no-repack")  # its AMX kernels fault where a machine lists AMX and does not allow it
    for _ in range(TRIES):
        found = FOUND.search(run(str(folder / "llama-perplexity"), *map(str, words)))
        if found is not None:
            return float(found[1])
    raise FileError(f"{model}: expected llama-perplexity to print a final estimate, got none; give a longer text")


def row(name: str, options: argparse.Namespace) -> dict[str, str]:
    """Measure one type in both programs; a type that lutra does not read says so."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / f"{name}.gguf"
        make(options.bin, options.model, model, name)
        rival = theirs(options.bin, model, options.text, options.context, options.threads)
        try:
            llm = LLM.load(model, threads=options.threads, context=options.context)
            ours = llm.measure(options.text.read_text("utf-8"), options.context, protocol="llama.cpp")
        except LutraError as error:
            return {"type": name, "llama.cpp": f"{rival:.4f}", "lutra": "-", "difference": str(error)[:100]}
    difference = f"{100 * (ours.value / rival - 1):+.3f} %"
    return {"type": name, "llama.cpp": f"{rival:.4f}", "lutra": f"{ours.value:.4f}", "difference": difference}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", type=Path, help="a GGUF file of floats")
    options.add_argument("text", type=Path)
    options.add_argument("--bin", type=Path, required=True, help="the folder with llama-quantize and llama-perplexity")
    options.add_argument("--types", default=DEFAULT)
    options.add_argument("--context", type=int, default=128)
    options.add_argument("--threads", type=int, default=machine.usable_cores())
    chosen = options.parse_args()
    rows = []
    try:
        for name in chosen.types.split(","):
            rows.append(row(name, chosen))
            print(*rows[-1].values(), file=sys.stderr, flush=True)
    except LutraError as error:
        sys.exit(f"error: {error}")
    print(to_table(rows))


if __name__ == "__main__":
    main()
