"""What `lutra tune` measured on this computer: the best plan, row block and time of each weight's kernel.

Lookups come before the tables of plan.py and choose.py.  They change speed only: every plan, row block and family gives
the same bits, so a model says the same before and after.

One JSON file for each computer and instruction set lies in the cache folder.  Its head states the CPU, the instruction
set, lutra's version and the sources of the kernels; a file with another head, or with anything in it that this lutra
would not have written, is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from lutra import __version__, machine
from lutra.compiler import jit, targets
from lutra.formats.format import Format
from lutra.kernels.plan import Plan, candidates, plan_for
from lutra.kernels.tiles import TiledWeight

DECODE, PREFILL = "decode", "prefill"  # one row at a time · more rows than the largest block
ROW_BLOCKS = (1, 2, 4, 8, 16, 32)
GAIN = 0.9  # another family must take less than this of the usual one's time: it is chosen once, for all uses

TYPES = {"order": str, "kind": str, "n": int, "k": int, "use": str, "tile_m": int, "row_us": float}

Key = tuple[str, str, int, int, str]


@dataclass(frozen=True)
class Choice:
    """The fastest way found to multiply by one kind of weight.

    order    kernel family
    kind     name of the format, or element type of a dense weight
    n, k     sizes
    use      DECODE or PREFILL
    tile_m   rows of activations per task
    plan     None for a family without plans
    row_us   microseconds per row of activations, inputs included
    """

    order: str
    kind: str
    n: int
    k: int
    use: str
    tile_m: int
    plan: Plan | None
    row_us: float

    @property
    def key(self) -> Key:
        return self.order, self.kind, self.n, self.k, self.use


def kind_of(weight: TiledWeight) -> str:
    return weight.dtype if weight.format is None else weight.format.name


def plan(weight: TiledWeight, tile_m: int, isa: str | None = None) -> Plan:
    """The plan measured best for this weight and row block, else the table's.

    A block of a few rows, which nothing measures, reads weights from memory as one row does: the table's plan with the
    prefetching that was best for that.
    """
    name = targets.choose(isa).isa
    usual = plan_for(weight.order, name, tile_m)
    measured = (_find(weight, use, name) for use in (DECODE, PREFILL))
    plans = {found.tile_m: found.plan for found in measured if found is not None and found.plan is not None}
    if tile_m in plans or 1 not in plans:
        return plans.get(tile_m, usual)
    return replace(usual, prefetch_bytes=plans[1].prefetch_bytes, second_bytes=plans[1].second_bytes)


def row_block(weight: TiledWeight, isa: str | None = None) -> int | None:
    """The row block measured best for many rows, None where none was measured."""
    found = _find(weight, PREFILL, targets.choose(isa).isa)
    return None if found is None else found.tile_m


def family(orders: Iterable[str], format: Format, n: int, k: int, isa: str | None = None) -> str:
    """The fastest of the families for a weight, the first, usual one unless another was measured and is clearly faster.

    A token of the answer and a token of the prompt count alike.
    """
    known, (usual, *others) = read(targets.choose(isa).isa), orders

    def row_us(order: str) -> dict[str, float]:
        found = ((use, known.get((order, format.name, n, k, use))) for use in (DECODE, PREFILL))
        return {use: choice.row_us for use, choice in found if choice is not None}

    limit, best = row_us(usual), usual
    least = GAIN * sum(limit.values())
    for order in others:
        times = row_us(order)
        if limit and times.keys() == limit.keys() and sum(times.values()) < least:
            best, least = order, sum(times.values())
    return best


def _find(weight: TiledWeight, use: str, isa: str) -> Choice | None:
    return read(isa).get((weight.order, kind_of(weight), weight.n, weight.k, use))


# ---- the file ---------------------------------------------------------------------------------------------------


def head(isa: str) -> dict[str, str]:
    """What a measurement depends on besides the weight."""
    sources = jit.sources_digest(str(Path(__file__).parent))
    return {"cpu": machine.cpu_name(), "isa": isa, "lutra": __version__, "sources": sources}


def path(isa: str) -> Path:
    """Where this computer's measurements lie."""
    digest = hashlib.sha256(repr((machine.cpu_name(), isa)).encode()).hexdigest()
    return jit.cache_folder() / f"tuned-{isa}-{digest[:8]}.json"


def read(isa: str) -> dict[Key, Choice]:
    """All measurements for an instruction set; empty where there is no file to be trusted."""
    return _read(path(isa), isa)


def write(isa: str, choices: Iterable[Choice]) -> Path:
    """Add measurements to those there are; return the file."""
    target = path(isa)
    known = {**read(isa), **{choice.key: choice for choice in choices}}
    text = json.dumps({"machine": head(isa), "choices": [asdict(choice) for choice in known.values()]}, indent=1)
    staging = target.with_suffix(f".{os.getpid()}")
    staging.write_text(text)
    staging.replace(target)
    _read.cache_clear()
    return target


@cache
def _read(path: Path, isa: str) -> dict[Key, Choice]:
    try:
        stored = json.loads(path.read_text("utf-8"))
        if stored["machine"] != head(isa):
            return {}
        choices = [_choice(entry, isa) for entry in stored["choices"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return {choice.key: choice for choice in choices}


def _choice(entry: dict[str, Any], isa: str) -> Choice:
    """An entry of the file, if `lutra tune` may have written it; else ValueError, TypeError or KeyError."""
    found = Choice(**entry)
    if any(type(getattr(found, name)) is not kind for name, kind in TYPES.items()):
        raise TypeError("a field of another type")
    if found.tile_m not in ROW_BLOCKS or found.use != (DECODE if found.tile_m == 1 else PREFILL):
        raise ValueError("a row block or use there is not")
    if not 0 < found.row_us < math.inf:
        raise ValueError("a time that no clock shows")
    known = {plan: plan for plan in candidates(found.order, isa, found.tile_m)} or {None: None}
    return replace(found, plan=known[found.plan and Plan(**entry["plan"])])
