"""The rounds: work and roofs in alternation, on the same threads."""

from __future__ import annotations

import time
from collections.abc import Callable

from lutra import machine
from lutra.bench import work
from lutra.bench.case import Case
from lutra.bench.rival import Rival
from lutra.bench.row import Row
from lutra.compiler.launch import Program, Workers
from lutra.model.transformer import Transformer
from lutra.model.weights import Weights

ROUNDS = 5
TRIALS = 3  # of each way to read, before the fastest is taken as the roof

Say = Callable[[str], None]  # told what is being done


def silent(message: str) -> None:
    """Nobody listens."""


def measure(case: Case, weights: Weights, rounds: int = ROUNDS, rival: Rival | None = None, say: Say = silent) -> Row:
    """Measure one case.

    weights   of case.model, made by Model.make
    rounds    that count; one more goes before them
    rival     another engine that runs in every round
    """
    config, workers = case.model.config, Workers(case.threads)
    transformer = Transformer(config, weights, workers, case.prompt + case.gen, kv=case.model.kv)
    cache_bytes = work.cache_bytes(work.position_bytes(config, transformer), case.prompt, case.gen)
    operations = work.prefill_operations(weights, case.prompt)
    multiply = machine.multiply_program(operations)
    read = fastest(machine.read_programs(weights.bytes_per_token + cache_bytes), workers)
    tokens = some_tokens(case.prompt, config.vocab_size)

    def decode() -> None:
        for i in range(case.gen):
            transformer.decode(1 + i, case.prompt + i)

    def read_as_much() -> None:
        for _ in range(case.gen):
            read.run(workers, 0)

    runs: dict[str, Callable[[], object]] = {
        "prefill": lambda: transformer.prefill(tokens, 0),
        "multiply": lambda: multiply.run(workers, 0),
        "decode": decode,
        "read": read_as_much,
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, rounds):
        say(f"round {number + 1} of {rounds}" if number >= 0 else "compiling kernels, first round")
        taken = {name: timed(run) for name, run in runs.items()}
        if rival is not None and number >= 0:
            prefill_s, decode_s = rival.run(case.prompt, case.gen, case.threads)
            taken |= {"rival_prefill": prefill_s, "rival_decode": decode_s}
        if number >= 0:
            for name, value in taken.items():
                seconds.setdefault(name, []).append(value)
    order = weights.layers[0].o.weight.order
    return Row(case, order, weights.bytes_per_token, cache_bytes, operations, seconds)


def some_tokens(count: int, vocabulary: int) -> list[int]:
    """Any ids; what they are costs nothing."""
    return [i * 7 % vocabulary for i in range(count)]


def timed(run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def fastest(programs: list[Program], workers: Workers) -> Program:
    """The program that was fastest in its best of TRIALS."""
    best = [min(timed(lambda p=program: p.run(workers, 0)) for _ in range(TRIALS)) for program in programs]
    return programs[best.index(min(best))]
