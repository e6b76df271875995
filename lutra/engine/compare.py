"""Two models side by side: size, speed in alternation, perplexity of one text, divergence, where their texts part.

A is the reference, usually of floats; B what became of it.  Without a text both read one that A writes itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lutra.engine import parting, perplexity
from lutra.engine.divergence import Divergence, divergence
from lutra.engine.llm import LLM
from lutra.engine.params import SamplingParams
from lutra.engine.parting import Parting
from lutra.engine.runner import run_pending
from lutra.errors import RequestError
from lutra.model.load import Progress
from lutra.model.packed import linears

PROMPT, GENERATED, ROUNDS = 64, 32, 5  # tokens of a round of speed, where the context holds as many; rounds
WRITTEN = 1024  # tokens that A writes where no text is given
SHORTEST = 8  # tokens of a prompt for greedy texts
SEED = 0


@dataclass(frozen=True)
class Size:
    """Bytes of the file, bytes that one decoded token reads, and bits per weight of the linears and the head."""

    file_bytes: int
    read_bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class Speed:
    """Tokens per second, one value a round."""

    prefill: tuple[float, ...]
    decode: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything about A and B; pairs are (A, B)."""

    names: tuple[str, str]
    text: str
    sizes: tuple[Size, Size]
    speeds: tuple[Speed, Speed]
    divergence: Divergence
    partings: tuple[Parting, ...]


def size(llm: LLM) -> Size:
    weights = llm.model.weights
    count = sum(x.weight.n * x.weight.k for name, x in linears(weights) if name != "embed")
    return Size(_file_bytes(llm.model.file.path), weights.bytes_per_token, 8 * weights.bytes_per_token / count)


def _file_bytes(path: Path) -> int:
    """Of one file, or of the weights in a folder."""
    return sum(part.stat().st_size for part in path.glob("*.safetensors")) if path.is_dir() else path.stat().st_size


def speeds(models: Sequence[LLM], rounds: int = ROUNDS, progress: Progress | None = None) -> list[Speed]:
    """Prefill and decode of every model in alternation, so that whatever slows the computer slows all of them.

    The first round is thrown away: kernels are compiled in it, pages touched, threads woken.
    """
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in models]
    for index in range(rounds + 1):
        for llm, (prefill, decode) in zip(models, found, strict=True):
            rates = _round(llm)
            if index:
                prefill.append(rates[0])
                decode.append(rates[1])
        if progress is not None:
            progress("measuring speed", index, rounds)
    return [Speed(tuple(prefill), tuple(decode)) for prefill, decode in found]


def _round(llm: LLM) -> tuple[float, float]:
    """Tokens per second of one prompt and of some decoded tokens.  Which tokens makes no difference."""
    room, sequence = llm.transformer.context, llm.sequence
    prompt, generated = max(min(PROMPT, room // 2), 1), max(min(GENERATED, room // 4), 1)
    sequence.restart([0])  # nothing of an earlier round is kept
    sequence.tokens, sequence.num_cached = [0] * prompt, 0
    started = time.perf_counter()
    run_pending(llm.transformer, sequence)
    prefilled = time.perf_counter()
    for _ in range(generated):
        sequence.tokens.append(llm.transformer.best)
        run_pending(llm.transformer, sequence)
    ended = time.perf_counter()
    sequence.tokens, sequence.num_cached = [], 0
    return prompt / (prefilled - started), generated / (ended - prefilled)


def written(llm: LLM, count: int = WRITTEN) -> list[int]:
    """Tokens that a model writes, as likely as it holds them for: texts one after the other."""
    begin = [llm.tokenizer.bos_id if llm.tokenizer.bos_id is not None else min(llm.tokenizer.eos_ids, default=0)]
    tokens: list[int] = []
    seed = SEED
    while len(tokens) < count:
        params = SamplingParams(max_tokens=count, temperature=1, top_k=0, top_p=1, min_p=0, seed=seed, ignore_eos=True)
        tokens += llm.generate_ids(begin, params)
        seed += 1
    return tokens[:count]


def shared_tokens(a: LLM, b: LLM, text: str) -> tuple[list[int], int | None]:
    """The tokens of a text without BOS, and BOS; RequestError where the models make different ones of it."""
    ours, theirs = a.tokens_of(text), b.tokens_of(text)
    if ours != theirs:
        raise RequestError(
            "expected two models with the same tokenizer, got different tokens for the text; compare them by "
            "perplexity per character instead, or choose models of one family"
        )
    return ours


def compare(
    a: LLM, b: LLM, text: str | None, protocol: str, context: int | None, rounds: int, num_prompts: int,
    progress: Progress | None = None,
) -> Comparison:  # fmt: skip
    """Measure everything.

    text      None for one that A writes
    context   tokens of a window; None for the protocol's
    Raises RequestError for different tokenizers or vocabularies and for a text too short.
    """
    room = min(llm.transformer.context for llm in (a, b))
    window = perplexity.window_size(protocol, context, room)
    if text is None:
        tokens, bos_id = written(a), a.tokens_of("")[1]
        said = f"{len(tokens)} tokens that A wrote"
    else:
        tokens, bos_id = shared_tokens(a, b, text)
        said = f"{len(tokens)} tokens"
    windows = perplexity.cut(tokens, bos_id, window, protocol)
    measured = speeds([a, b], rounds, progress)
    found = divergence(a.transformer.scorer(window), b.transformer.scorer(window), windows, progress)
    length = max(min(window // 2, 32), SHORTEST)
    prompts = parting.prompts_of(tokens, bos_id, num_prompts, length) if num_prompts else []
    partings = parting.part(a, b, prompts, room - length, progress)
    names = str(a.model.file.path), str(b.model.file.path)
    described = f"{said}, protocol {protocol}, context {window}"
    return Comparison(names, described, (size(a), size(b)), (measured[0], measured[1]), found, tuple(partings))


def rows(found: Comparison) -> Iterator[dict[str, str]]:
    """Heading → text of a table, one row a measure; the last column is B divided by A."""

    def row(name: str, a: float, b: float, form: str, ratio: float | None = None) -> dict[str, str]:
        beside = b / a if ratio is None else ratio
        return {"measure": name, "A": format(a, form), "B": format(b, form), "B / A": f"{beside:.3f}"}

    (a, b), (fast_a, fast_b) = found.sizes, found.speeds
    yield row("file MB", a.file_bytes / 1e6, b.file_bytes / 1e6, ".2f")
    yield row("read per token MB", a.read_bytes / 1e6, b.read_bytes / 1e6, ".2f")
    yield row("bits per weight", a.bits_per_weight, b.bits_per_weight, ".3f")
    for name in ("prefill", "decode"):
        ours, theirs = getattr(fast_a, name), getattr(fast_b, name)
        ratio = median(y / x for x, y in zip(ours, theirs, strict=True))
        yield row(f"{name} tok/s", median(ours), median(theirs), ".1f", ratio)
    yield row("perplexity", *found.divergence.perplexities, ".4f")


def quality(found: Divergence) -> Iterator[str]:
    """What B lost, in lines."""
    increase, error = found.loss_increase
    summary = ", ".join(f"{name} {value:.5f}" for name, value in found.kl_summary().items())
    yield f"loss increase   {increase:+.5f} ± {error:.5f} nats per token, over {len(found.kl)} tokens"
    yield f"KL divergence   {summary} nats"
    yield f"top-1 agreement {100 * found.top1:.2f} %"


def to_json(found: Comparison) -> list[dict[str, object]]:
    """The numbers of A and of B, as bench/pareto.py reads them."""
    values: list[dict[str, object]] = []
    for index, name in enumerate(found.names):
        size, speed = found.sizes[index], found.speeds[index]
        values.append({
            "name": name, "file_bytes": size.file_bytes, "bytes": size.read_bytes,
            "bits_per_weight": size.bits_per_weight, "prefill_tok_s": median(speed.prefill),
            "decode_tok_s": median(speed.decode), "perplexity": found.divergence.perplexities[index],
        })  # fmt: skip
    values[1] |= {
        "kl": found.divergence.kl_summary(),
        "top1": found.divergence.top1,
        "loss_increase": found.divergence.loss_increase[0],
        "loss_increase_error": found.divergence.loss_increase[1],
    }
    return values
