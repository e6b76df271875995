"""Tokens per second of a model with random weights, beside the roof of this machine."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from lutra import machine
from lutra.compiler.launch import Workers
from lutra.formats import catalog
from lutra.model.random import random_config, random_weights
from lutra.model.transformer import Transformer

REPEATS = 5  # prefill and decode alternate this often; the best of each counts, the median is printed too


@dataclass(frozen=True)
class Result:
    """One measurement.  Rates in tokens per second, best and median of REPEATS; GB/s are 1e9 bytes."""

    shape: str
    format: str
    isa: str
    threads: int
    prefill_best: float
    prefill_median: float
    decode_best: float
    decode_median: float
    bytes_per_token: int
    roof_gb_per_s: float

    @property
    def gb_per_s(self) -> float:
        """Weights read per second in the best decode."""
        return self.decode_best * self.bytes_per_token / 1e9

    def lines(self) -> str:
        """The roofline in words."""
        share = 100 * self.gb_per_s / self.roof_gb_per_s
        return "\n".join(
            [
                f"{self.shape} {self.format}, {self.threads} threads, {self.isa}",
                f"prefill   {self.prefill_best:8.1f} tok/s   (median {self.prefill_median:.1f})",
                f"decode    {self.decode_best:8.1f} tok/s   (median {self.decode_median:.1f})",
                f"weights   {self.bytes_per_token / 1e6:8.1f} MB per token",
                f"reading   {self.gb_per_s:8.1f} GB/s    {share:.0f} % of the {self.roof_gb_per_s:.1f} GB/s "
                f"measured in the same run",
            ]
        )


def run(shape: str, format_name: str, threads: int | None, prompt: int, gen: int) -> str:
    """Measure and describe; see `measure`."""
    return measure(shape, format_name, threads, prompt, gen).lines()


def measure(shape: str, format_name: str, threads: int | None, prompt: int, gen: int, order: str | None = None) -> Result:
    """Prefill `prompt` tokens and decode `gen`, alternating with measurements of the read bandwidth.

    shape        a name of model/random.SHAPES        format_name   a name of formats/catalog
    threads      default: the cores this process may use
    order        "mad" or "lut" forces a kernel family
    Raises RequestError or FormatError for unknown names.
    """
    config = random_config(shape)
    weights = random_weights(config, catalog.find(format_name), order)
    workers = Workers(threads or machine.usable_cores())
    transformer = Transformer(config, weights, workers, prompt + gen + 1)
    tokens = [i * 7 % config.vocab_size for i in range(prompt)]
    transformer.prefill(tokens, 0)
    transformer.decode(1, prompt)  # both programs are compiled now
    prefill_s, decode_s, roofs = [], [], []
    for _ in range(REPEATS):
        roofs.append(machine.read_gb_per_s(workers.threads))
        started = time.perf_counter()
        transformer.prefill(tokens, 0)
        prefill_s.append(time.perf_counter() - started)
        started = time.perf_counter()
        for i in range(gen):
            transformer.decode(1 + i, prompt + i)
        decode_s.append(time.perf_counter() - started)
    return Result(
        shape,
        format_name,
        machine.isa(),
        workers.threads,
        prompt / min(prefill_s),
        prompt / statistics.median(prefill_s),
        gen / min(decode_s),
        gen / statistics.median(decode_s),
        weights.bytes_per_token,
        max(roofs),
    )
