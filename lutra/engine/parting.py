"""Where two models' texts part: both continue the same prompts, always with the likeliest token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lutra.engine.llm import LLM
from lutra.engine.params import SamplingParams
from lutra.errors import RequestError
from lutra.model.load import Progress

SHOWN = 60  # characters of each text after the point where they part


@dataclass(frozen=True)
class Parting:
    """One prompt and both continuations, as tokens; `common`: how many of them are the same from the start."""

    prompt: list[int]
    first: list[int]
    second: list[int]

    @property
    def common(self) -> int:
        pairs = zip(self.first, self.second, strict=False)
        return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(self.first), len(self.second)))

    @property
    def is_same(self) -> bool:
        return self.first == self.second


def prompts_of(tokens: Sequence[int], bos_id: int | None, count: int, length: int) -> list[list[int]]:
    """Prompts of `length` tokens, BOS included, from places spread evenly over a text.

    Raises RequestError for a text shorter than one prompt.
    """
    begin = [] if bos_id is None else [bos_id]
    room = length - len(begin)
    if room < 1 or len(tokens) < room:
        raise RequestError(f"expected a text of at least {max(room, 1)} tokens for a prompt, got {len(tokens)}")
    starts = np.linspace(0, len(tokens) - room, count).astype(int)
    return [[*begin, *tokens[start : start + room]] for start in dict.fromkeys(starts.tolist())]


def part(
    first: LLM, second: LLM, prompts: Sequence[list[int]], num_tokens: int, progress: Progress | None = None
) -> list[Parting]:
    """Let both continue every prompt by at most `num_tokens` tokens."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0)
    found = []
    for index, prompt in enumerate(prompts):
        found.append(Parting(prompt, *(list(llm.generate_ids(prompt, params)) for llm in (first, second))))
        if progress is not None:
            progress("continuing", index + 1, len(prompts))
    return found


def report(partings: Sequence[Parting], llm: LLM) -> Iterator[str]:
    """Say how many texts are the same, how long the others stay together, and show the one that parts first."""
    same = sum(parting.is_same for parting in partings)
    longest = max(max(len(parting.first), len(parting.second)) for parting in partings)
    yield f"{same} of {len(partings)} greedy texts of up to {longest} tokens are the same"
    parted = [parting for parting in partings if not parting.is_same]
    if not parted:
        return
    lengths = sorted(parting.common for parting in parted)
    yield f"the others part after {lengths[len(lengths) // 2]} tokens (median; first {lengths[0]}, last {lengths[-1]})"
    shown = min(parted, key=lambda parting: parting.common)
    shared = llm.tokenizer.decode([*shown.prompt, *shown.first[: shown.common]])
    yield f"  both  …{shared[-SHOWN:]!r}"
    for name, tokens in {"A": shown.first, "B": shown.second}.items():
        yield f"  {name}     {llm.tokenizer.decode(tokens[shown.common :])[:SHOWN]!r}"
