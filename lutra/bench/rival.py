"""Another engine in the same rounds: llama-bench of llama.cpp, or a program that takes and prints the same.

    llama-bench -m FILE -p 128 -n 16 … -o json     →   [{"n_prompt": 128, "n_gen": 0, "avg_ts": tokens/s, …}, …]

It decodes into an empty cache, where lutra decodes after the prompt: what is compared favours the rival.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lutra.errors import FileError


@dataclass(frozen=True)
class Rival:
    """A benchmark program and the model file it runs.  Raises FileError where one of them is missing."""

    program: Path
    model: Path

    def __post_init__(self) -> None:
        for path in (self.program, self.model):
            if not path.is_file():
                raise FileError(f"{path}: expected a file for the comparison, found none; check --rival, --rival-model")

    def command(self, prompt: int, gen: int, threads: int) -> list[str]:
        """Its command line: one repetition, since the rounds repeat it."""
        numbers = {"-p": prompt, "-n": gen, "-t": threads, "-r": 1}
        words = [word for flag, number in numbers.items() for word in (flag, str(number))]
        return [str(self.program.absolute()), "-m", str(self.model), *words, "-o", "json"]

    def run(self, prompt: int, gen: int, threads: int) -> tuple[float, float]:
        """Seconds it takes to prefill `prompt` tokens and to decode `gen`.  Raises FileError when it fails."""
        try:
            done = subprocess.run(self.command(prompt, gen, threads), capture_output=True, text=True)
        except OSError as error:
            raise FileError(f"{self.program}: expected a program, got {error.strerror}; check --rival") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise FileError(
                f"{self.program}: expected figures, got exit code {done.returncode}: {last}; try it alone: "
                + shlex.join(self.command(prompt, gen, threads))
            )
        return parse(done.stdout, prompt, gen)


def parse(text: str, prompt: int, gen: int) -> tuple[float, float]:
    """Seconds of prefill and decode out of what llama-bench prints.  Raises FileError for anything else."""
    try:
        rates = {(row["n_prompt"], row["n_gen"]): float(row["avg_ts"]) for row in json.loads(text)}
        return prompt / rates[prompt, 0], gen / rates[0, gen]
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise FileError(
            f"expected rows of n_prompt={prompt} and n_gen={gen} with avg_ts from the rival, got {text[:60]!r}; "
            "name the program llama-bench with --rival"
        ) from error
