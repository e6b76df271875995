"""What a caller may ask of one generation, checked where it enters."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lutra.errors import RequestError

MAX_STOPS = 64
MAX_STOP_CHARS = 1024

# field                low       high     integer
RANGES = {
    "max_tokens": (1, 1 << 30, True),
    "temperature": (0.0, 100.0, False),
    "top_p": (0.0, 1.0, False),
    "top_k": (-1, 1 << 30, True),
    "min_p": (0.0, 1.0, False),
    "repetition_penalty": (0.01, 100.0, False),
    "seed": (-(1 << 63), (1 << 64) - 1, True),
}


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop.  Defaults of temperature, top_k, top_p and min_p: llama.cpp's.

    max_tokens           tokens to generate at most
    temperature          0 = always the most probable token; 1 = the model's own probabilities
    top_k                keep this many of the most probable tokens; 0 or -1 = all
    top_p                keep the most probable tokens that together reach this probability; 1 = all
    min_p                keep tokens at least this fraction as probable as the best; 0 = all
    repetition_penalty   divide positive (multiply negative) logits of tokens seen before; 1 = off
    seed                 same seed, same text; None = drawn by the system
    stop                 texts that end the generation, themselves not part of it; a single text is one stop
    ignore_eos           go on after end tokens

    raises   RequestError    a value outside its range
    """

    max_tokens: int = 256
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is the one of the largest logit."""
        return self.temperature == 0 and self.repetition_penalty == 1

    def __post_init__(self) -> None:
        for name, (low, high, integer) in RANGES.items():
            if not (name == "seed" and self.seed is None):
                _check_number(name, getattr(self, name), low, high, integer)
        if self.top_p == 0:
            raise RequestError("top_p: expected more than 0 and at most 1, got 0; for the best token use temperature 0")
        if type(self.ignore_eos) is not bool:
            raise RequestError(f"ignore_eos: expected true or false, got {self.ignore_eos!r}")
        object.__setattr__(self, "stop", _checked_stops(self.stop))


def _check_number(name: str, value: object, low: float, high: float, integer: bool) -> None:
    kinds = (int,) if integer else (int, float)
    if type(value) not in kinds or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type, operator]
        noun = "an integer" if integer else "a number"
        raise RequestError(f"{name}: expected {noun} from {low} to {high}, got {repr(value)[:80]}")


def _checked_stops(stop: object) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, (tuple, list)) or not all(isinstance(text, str) for text in stops):
        raise RequestError(f"stop: expected a text or a list of texts, got {repr(stop)[:80]}")
    if len(stops) > MAX_STOPS or not all(0 < len(text) <= MAX_STOP_CHARS for text in stops):
        raise RequestError(
            f"stop: expected at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters, "
            f"got {len(stops)} of {sorted(map(len, stops))[:MAX_STOPS]} characters"
        )
    return tuple(stops)
