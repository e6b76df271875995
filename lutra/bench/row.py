"""What the rounds of one case say: rates, their spread, and their share of the roofs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lutra.bench.case import Case

Seconds = Sequence[float]


@dataclass(frozen=True)
class Rate:
    """Amounts per second over some rounds: median, half the interquartile range, best."""

    median: float
    spread: float
    best: float

    @classmethod
    def of(cls, amount: float, seconds: Seconds) -> Rate:
        """The rates of rounds that did `amount` in so many seconds each."""
        rates = [amount / s for s in seconds]
        low, _, high = statistics.quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else (0.0, 0.0, 0.0)
        return cls(statistics.median(rates), (high - low) / 2, max(rates))

    def __str__(self) -> str:
        digits = 1 if self.best < 1000 else 0
        return f"{self.median:.{digits}f} ±{self.spread:.{digits}f} ({self.best:.{digits}f})"


@dataclass(frozen=True)
class Ratio:
    """How many times faster: median by median, best by best."""

    median: float
    best: float

    @classmethod
    def of(cls, seconds: Seconds, others: Seconds) -> Ratio:
        """Of work that took `seconds`, to the same work that took `others`."""
        return cls(statistics.median(others) / statistics.median(seconds), min(others) / min(seconds))

    def percent(self) -> str:
        return f"{100 * self.median:.0f} ({100 * self.best:.0f})"

    def times(self) -> str:
        return f"{self.median:.2f} ({self.best:.2f})"


@dataclass(frozen=True)
class Row:
    """One case, measured.

    order                kernel family of the layers
    weight_bytes         that a decode step reads
    cache_bytes          of keys and values that the average decode step reads
    prefill_operations   int8 operations of the prompt
    seconds              of each round: prefill, multiply (as many operations), decode (`gen` tokens),
                         read (as many bytes), and with a rival rival_prefill and rival_decode
    """

    case: Case
    order: str
    weight_bytes: int
    cache_bytes: int
    prefill_operations: int
    seconds: Mapping[str, Seconds]

    @property
    def bytes_per_token(self) -> int:
        return self.weight_bytes + self.cache_bytes

    @property
    def prefill(self) -> Rate:
        """Tokens per second."""
        return Rate.of(self.case.prompt, self.seconds["prefill"])

    @property
    def decode(self) -> Rate:
        """Tokens per second."""
        return Rate.of(self.case.gen, self.seconds["decode"])

    @property
    def gops(self) -> Rate:
        """1e9 int8 operations a second in prefill."""
        return Rate.of(self.prefill_operations / 1e9, self.seconds["prefill"])

    @property
    def gb_per_s(self) -> Rate:
        """1e9 bytes a second in decode."""
        return Rate.of(self.case.gen * self.bytes_per_token / 1e9, self.seconds["decode"])

    @property
    def peak_gops(self) -> Rate:
        return Rate.of(self.prefill_operations / 1e9, self.seconds["multiply"])

    @property
    def roof_gb_per_s(self) -> Rate:
        return Rate.of(self.case.gen * self.bytes_per_token / 1e9, self.seconds["read"])

    @property
    def shares(self) -> dict[str, Ratio]:
        """Share of the int8 peak in prefill, of the read bandwidth in decode: the roof's time for the same work."""
        pairs = {"prefill": "multiply", "decode": "read"}
        return {name: Ratio.of(self.seconds[name], self.seconds[roof]) for name, roof in pairs.items()}

    @property
    def rivals(self) -> dict[str, Ratio]:
        """How many times faster than the rival; empty without one."""
        names = [name for name in ("prefill", "decode") if f"rival_{name}" in self.seconds]
        return {name: Ratio.of(self.seconds[name], self.seconds[f"rival_{name}"]) for name in names}

    def cells(self) -> dict[str, str]:
        """Heading → text of the table."""
        case, model = self.case, self.case.model
        cells = {
            "shape": model.shape,
            "format": model.format,
            "head": model.head or model.format,
            "order": self.order,
            "kv": model.kv,
            "threads": str(case.threads),
            "prompt": str(case.prompt),
            "prefill tok/s": str(self.prefill),
            "Gop/s": str(self.gops),
            "% of int8 peak": self.shares["prefill"].percent(),
            "decode tok/s": str(self.decode),
            "MB/token": f"{self.bytes_per_token / 1e6:.1f}",
            "GB/s": str(self.gb_per_s),
            "% of read roof": self.shares["decode"].percent(),
        }
        return cells | {f"× rival {name}": ratio.times() for name, ratio in self.rivals.items()}

    def numbers(self) -> dict[str, Any]:
        """The same as flat numbers, with the roofs: median, spread and best of each rate."""
        case, model = self.case, self.case.model
        numbers: dict[str, Any] = {
            **asdict(model),
            "head": model.head or model.format,
            "order": self.order,
            "threads": case.threads,
            "prompt": case.prompt,
            "gen": case.gen,
            "rounds": len(self.seconds["decode"]),
            "weight_bytes": self.weight_bytes,
            "cache_bytes": self.cache_bytes,
            "prefill_operations": self.prefill_operations,
        }
        rates = {
            "prefill_tok_per_s": self.prefill, "prefill_gops": self.gops, "peak_gops": self.peak_gops,
            "decode_tok_per_s": self.decode, "decode_gb_per_s": self.gb_per_s, "roof_gb_per_s": self.roof_gb_per_s,
        }  # fmt: skip
        shares = {f"{name}_share": ratio for name, ratio in self.shares.items()}
        rivals = {f"{name}_times_rival": ratio for name, ratio in self.rivals.items()}
        for name, value in (rates | shares | rivals).items():
            numbers |= {f"{name}_{field}": number for field, number in asdict(value).items()}
        return numbers
