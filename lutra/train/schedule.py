"""How far a run is, and what follows from it: the learning rate, weight decay and the mixture.

Everything follows the share of the budget used so far, so the decay completes however fast the machine turns out to be.

Source    recipe (high peak rate, weight decay off in the second half): BitNet b1.58, arXiv 2402.17764, and
          "The Era of 1-bit LLMs: Training Tips, Code and FAQ", 2024
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from lutra.errors import RequestError


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, or minutes of active time, or until a time of day (the first to come)."""

    steps: int | None = None
    minutes: float | None = None
    until: datetime | None = None

    def progress(self, step: int, active_s: float) -> float:
        """Return the share used, 0 .. 1."""
        shares = []
        if self.steps is not None:
            shares.append(step / self.steps)
        if self.minutes is not None:
            shares.append(active_s / (60 * self.minutes))
        if self.until is not None:
            left_s = max(0.0, (self.until - datetime.now(timezone.utc)).total_seconds())
            shares.append(active_s / max(active_s + left_s, 1e-9) if left_s else 1.0)
        return min(1.0, max(shares))


def parse_until(text: str) -> datetime:
    """Read HH:MM in UTC as the next such moment.  Raises RequestError for anything else."""
    try:
        hour, minute = (int(part) for part in text.split(":"))
        now = datetime.now(timezone.utc)
        moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    except ValueError:
        raise RequestError(f"expected --until HH:MM in UTC, got {text!r}; write for example 08:30") from None
    return moment if moment > now else moment + timedelta(days=1)


@dataclass(frozen=True)
class Schedule:
    """The course of a run."""

    peak_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1  # first half; 0 after
    story_share: tuple[float, float] = (0.15, 0.35)  # at the start, at the end
    noise: float = 0.05  # share of a story window's inputs replaced by random tokens

    def learning_rate(self, step: int, progress: float) -> float:
        """Warm up over the first steps, then fall on a cosine to zero at the end of the budget."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.peak_rate * warmup * 0.5 * (1 + math.cos(math.pi * progress))

    def decay(self, progress: float) -> float:
        """Weight decay at this point."""
        return self.weight_decay if progress < 0.5 else 0.0

    def stories(self, progress: float) -> float:
        """Share of story windows in the mixture at this point."""
        first, last = self.story_share
        return first + (last - first) * progress
