"""What `lutra quantize --budget, --bpw, --max-ppl-increase` are given, and whether a model can keep it."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from lutra.errors import RequestError

if TYPE_CHECKING:
    from lutra.files.model_file import ModelFile
    from lutra.model.config import ModelConfig

# what is chosen from where nobody says: the best known of each size (docs/quality.md)
FORMATS = (
    "planes1x2-g128-mins", "planes1x2-g64-mins", "planes3-g64-mins", "planes3-g32-mins", "planes4-g64-mins",
    "planes4-g32-mins", "planes5-g32-mins", "int8-g32",
)  # fmt: skip
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
HEADER_BYTES = 400  # of a file's header for each of its tensors


def parse_size(text: str) -> float:
    """Bytes of 2.5GB, 800M or 1.2GiB.  Raises RequestError for anything else."""
    found = re.fullmatch(r"\s*([0-9.]+(?:[eE][0-9]+)?)\s*([KMG]I?)?B?\s*", text.upper())
    try:
        number = float(found[1]) if found else math.nan
    except ValueError:
        number = math.nan
    if not found or not 0 < number < math.inf:
        raise RequestError(f"expected a size as 2.5GB, 800MB or 1.2GiB, got {text!r}; change --budget")
    return number * UNITS[found[2] or ""]


def parse_increase(text: str) -> float:
    """The share of 1% or 0.01.  Raises RequestError for anything else."""
    try:
        value = float(text.rstrip().removesuffix("%")) / (100 if text.rstrip().endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < 100:
        raise RequestError(f"expected an increase as 1% or 0.01, got {text!r}; change --max-ppl-increase")
    return value


@dataclass(frozen=True)
class Condition:
    """What the formats of a file have to keep: bytes of what is quantised, or a growth of the loss in nats."""

    num_bytes: float | None = None
    limit: float | None = None


def condition(
    file: "ModelFile", config: "ModelConfig", names: Sequence[str] = FORMATS, budget: str | None = None,
    bpw: float | None = None, max_ppl_increase: str | None = None,
) -> Condition:  # fmt: skip
    """Understand a condition, and see from the sizes of a model alone whether formats can meet it.

    names    formats to choose from
    budget   of everything in the file; bpw: of what is quantised
    Raises RequestError for no condition or several, for fewer bytes than the smallest formats take, and for packed
    files; FormatError for unknown formats.
    """
    from lutra.formats.vectors import find_other
    from lutra.model import sensitivity
    from lutra.model.layer_errors import check_is_unpacked

    check_is_unpacked(file)
    if bpw is not None and not (math.isfinite(bpw) and bpw > 0):
        raise RequestError(f"expected a number above 0, got {bpw:g}; change --bpw")
    if sum(value is not None for value in (budget, bpw, max_ppl_increase)) != 1:
        raise RequestError("expected one of --budget, --bpw and --max-ppl-increase, got none or several; give one")
    formats = [find_other(name, "in --choose-from") for name in names]
    if max_ppl_increase is not None:
        return Condition(limit=math.log1p(parse_increase(max_ppl_increase)))
    choices = sensitivity.unit_bytes(config, formats, not config.tied)
    least = sum(min(sizes.values()) for sizes in choices.values())
    smallest = Counter(min(sizes, key=lambda name: sizes[name]) for sizes in choices.values()).most_common(1)[0][0]
    do = f"which {smallest} takes; allow more, or give smaller formats with --choose-from"
    if bpw is not None:
        count = sensitivity.num_weights(config, not config.tied)
        if bpw * count / 8 < least:
            needed = math.ceil(800 * least / count) / 100
            raise RequestError(f"expected --bpw of at least {needed:.2f}, got {bpw:g}, less than {do}")
        return Condition(bpw * count / 8)
    num_bytes = parse_size(budget or "")
    kept = _other_bytes(file, config, choices)
    if num_bytes < least + kept:
        raise RequestError(
            f"expected a budget of at least {_rounded_up(least + kept)}, {kept / 1e6:.2f} MB of it for the embedding "
            f"and whatever else stays as stored, got {budget}, less than {do}"
        )
    return Condition(num_bytes - kept)


def _rounded_up(num_bytes: float) -> str:
    """A size that is enough, as --budget takes it."""
    return f"{math.ceil(num_bytes / 1e4) / 100:.2f}MB"


def _other_bytes(file: "ModelFile", config: "ModelConfig", units: Iterable[str]) -> float:
    """Bytes of a file that stay: embedding and norms as stored, the tokenizer, a line of the header for each tensor."""
    from lutra.formats.sidecars import Adapted
    from lutra.model.sensitivity import per_tensor
    from lutra.model.tokenizer import Tokenizer, to_stored

    chosen = per_tensor(dict.fromkeys(units, ""), config)
    left = [tensor.read() for name, tensor in file.tensors.items() if name not in chosen]
    stored = [values.weight if isinstance(values, Adapted) else values for values in left]
    texts = () if file.kind == "quantised" else to_stored(file, Tokenizer.from_file(file))[1].values()
    header = HEADER_BYTES * (len(left) + len(chosen))
    return float(sum(int(values.nbytes) for values in stored) + sum(map(len, texts)) + header)


OPTIONS = [
    click.option("--budget", help="Bytes of the file, as 2.5GB: every weight gets a format of its own."),
    click.option("--bpw", type=click.FloatRange(min=0, min_open=True), help="The same by mean bits per weight."),
    click.option("--max-ppl-increase", help="The same by what may be lost, as 1%: the smallest file that keeps it."),
    click.option("--choose-from", help="Formats joined by commas.  Default: one or two of each width from 2 to 8."),
    click.option("--deployment", type=click.Choice(["one user", "batched"]), default="one user", show_default=True,
                 help="Whose speed counts where errors are about the same."),
]  # fmt: skip
