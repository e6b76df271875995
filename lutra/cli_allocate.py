"""What `lutra quantize --budget, --bpw, --max-ppl-increase` are given, and how that becomes a format for every weight.

The damage of a rounded weight is measured as divergence from the model as it was, not as loss: what rounding does to
the loss of a text has a part of random sign, which for most single weights is larger than the harm.
"""

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lutra.errors import FileError, RequestError

if TYPE_CHECKING:
    from lutra.engine.llm import LLM
    from lutra.model.sensitivity import Costs, Swap, Table
    from lutra.model.transformer import Transformer

# what is chosen from where nobody says: the best known of each size (docs/quality.md)
FORMATS = (
    "planes1x2-g128-mins", "planes1x2-g64-mins", "planes3-g64-mins", "planes3-g32-mins", "planes4-g64-mins",
    "planes4-g32-mins", "planes5-g32-mins", "int8-g32",
)  # fmt: skip
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
DEPLOYMENTS = {"one user": 1, "batched": 16}  # rows of a step
MARGIN = 0.9  # of what a correction would be, so that the next try meets the limit
TRIES = 6  # of meeting a limit that the sum of errors predicts too low
TOKENS, CHECKED, CONTEXT = 2048, 8192, 512  # of the text that damage, and the outcome, are measured on; of its windows

Say = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Choice:
    """A format for every weight, by tensor, and what led to it in words."""

    formats: dict[str, str]
    report: str

    @property
    def usual(self) -> str:
        """The format that most weights of the layers get."""
        return Counter(name for tensor, name in self.formats.items() if tensor != "head").most_common(1)[0][0]


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


def allocate(
    llm: "LLM",
    text: str | None,
    names: Sequence[str] = FORMATS,
    budget: str | None = None,
    bpw: float | None = None,
    max_ppl_increase: str | None = None,
    deployment: str = "one user",
    method: str = "scaled",
    progress: Say | None = None,
) -> Choice:
    """Choose a format for every linear of a model, and for its head where that is not the embedding.

    llm         of floats, or whatever is taken as the truth
    text        damage is measured on its beginning; None for what the model writes itself
    names       formats to choose from
    budget      of everything in the file; bpw: of what is quantised
    deployment  of DEPLOYMENTS: whose speed counts where errors are about the same
    Raises RequestError for no condition or several, and for one that nothing meets; FormatError for unknown formats.
    """
    from lutra.engine import perplexity
    from lutra.engine.compare import written
    from lutra.engine.divergence import divergence
    from lutra.formats import catalog
    from lutra.model import sensitivity
    from lutra.quantize.recommend import explain, recommend

    given = [budget, bpw, max_ppl_increase]
    if sum(value is not None for value in given) != 1:
        raise RequestError("expected one of --budget, --bpw and --max-ppl-increase, got none or several; give one")
    limit = None if max_ppl_increase is None else math.log1p(parse_increase(max_ppl_increase))
    file_bytes = None if budget is None else parse_size(budget)
    formats = [catalog.find(name) for name in dict.fromkeys(names)]
    config, with_head = llm.config, not llm.config.tied
    window = min(CONTEXT, llm.transformer.context)
    tokens, bos_id = llm.tokens_of(text or "")
    if text is None:
        tokens = written(llm, TOKENS)
    read, checked = (perplexity.cut(tokens[:count], bos_id, window) for count in (TOKENS, CHECKED))
    reference = llm.transformer.scorer(window)

    def damage(transformer: "Transformer") -> float:
        return float(divergence(reference, transformer, read).kl.mean())

    def loss(transformer: "Transformer") -> float:
        scores = [score for each in checked for score in perplexity.negative_log_likelihoods(transformer, each)]
        return math.fsum(scores) / len(scores)

    swap = sensitivity.Swap(llm.model, window, loss)
    ids = [each.tokens for each in read]
    costs = sensitivity.measure(llm.model, ids, formats, damage, method, with_head=with_head, progress=progress)
    wanted, count = sensitivity.unit_sizes(config, with_head), sensitivity.num_weights(config, with_head)
    tables = {
        name: sensitivity.join(costs, sensitivity.kernel_times(wanted, formats, rows, llm.transformer.workers))
        for name, rows in DEPLOYMENTS.items()
    }
    if limit is not None:
        num_bytes = _bytes_for(swap, tables[deployment], limit)
    else:
        num_bytes = bpw * count / 8 if bpw is not None else file_bytes - _other_bytes(llm, costs)  # type: ignore
    found = {name: recommend(name, DEPLOYMENTS[name], table, num_bytes) for name, table in tables.items()}
    chosen = found[deployment].allocation
    grown = swap.loss_of(chosen, sensitivity.by_default) - swap.baseline()
    said = [explain(each, tables[name], count) for name, each in found.items()]
    said.append(
        f"chosen for {deployment}: perplexity {100 * math.expm1(grown):+.2f} % measured on the text, "
        f"{100 * math.expm1(found[deployment].total[1]):+.2f} % expected of the sum"
    )
    return Choice(sensitivity.per_tensor(chosen, config), "\n".join(said))


def _other_bytes(llm: "LLM", costs: "Costs") -> float:
    """Bytes of a file that stay: the embedding and whatever else is not in the table, as stored."""
    from lutra.formats.sidecars import Adapted
    from lutra.model.sensitivity import per_tensor

    chosen = per_tensor(dict.fromkeys(costs, ""), llm.config)
    left = [tensor.read() for name, tensor in llm.model.file.tensors.items() if name not in chosen]
    stored = [values.weight if isinstance(values, Adapted) else values for values in left]
    return float(sum(int(values.nbytes) for values in stored))


def _bytes_for(swap: "Swap", table: "Table", limit: float) -> float:
    """Fewest bytes whose measured growth of the loss stays below the limit.

    Errors only add up while they are small, so the sum that is aimed at is corrected by what was measured.
    Raises RequestError where even the best formats, or TRIES corrections, do not meet it.
    """
    from lutra.model.sensitivity import by_default
    from lutra.quantize.allocate import front

    points, aim, before = front(table), limit, swap.baseline()
    for _ in range(TRIES):
        point = points.reaching(max(aim, float(points.errors[-1])))
        grown = swap.loss_of(points.allocation(point), by_default) - before
        if grown <= limit:
            return float(points.costs[point])
        aim *= MARGIN * limit / grown
    raise RequestError(
        f"expected formats that keep the increase below {100 * math.expm1(limit):.2f} %, got "
        f"{100 * math.expm1(grown):.2f} % at {points.costs[point] / 1e6:.1f} MB; allow more, or better formats"
    )


def for_file(model: str, out: Path, text: str | None, threads: int, progress: Say, **asked: object) -> Choice:
    """The choice for a file that is to be written, kept beside it as NAME.formats.json.

    Kernel times differ from run to run, so whoever asks for the same again gets what was chosen before: a quantisation
    that was interrupted goes on with the same formats.  `lutra quantize --per-layer` reads the file too.
    Raises as `allocate` does; FileError where the file cannot be written.
    """
    from lutra.engine.llm import LLM

    path = out.with_suffix(".formats.json")
    question = {"model": model, "text": None if text is None else hashlib.sha256(text.encode()).hexdigest(), **asked}
    known = _read(path)
    if known.get("_asked") == json.loads(json.dumps(question)):
        chosen = {name: str(value) for name, value in known.items() if not name.startswith("_")}
        head = {"head": str(known["_head"])} if known.get("_head") else {}
        return Choice({**chosen, **head}, str(known.get("_report", "")))
    choice = allocate(LLM.load(model, threads=threads), text, progress=progress, **asked)  # type: ignore[arg-type]
    inner = {name: format for name, format in choice.formats.items() if name != "head"}
    stated = {**inner, "_head": choice.formats.get("head"), "_asked": question, "_report": choice.report}
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(stated, indent=1) + "\n", "utf-8")
        os.replace(part, path)
    except OSError as error:
        raise FileError(f"{path}: expected a file that can be written, got: {error.strerror}; choose another") from None
    return choice


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


options = [
    click.option("--budget", help="Bytes of the file, as 2.5GB: every weight gets a format of its own."),
    click.option("--bpw", type=click.FloatRange(min=0, min_open=True), help="The same by mean bits per weight."),
    click.option("--max-ppl-increase", help="The same by what may be lost, as 1%: the smallest file that keeps it."),
    click.option("--choose-from", help="Formats joined by commas.  Default: one or two of each width from 2 to 8."),
    click.option("--deployment", type=click.Choice(["one user", "batched"]), default="one user", show_default=True,
                 help="Whose speed counts where errors are about the same."),
]  # fmt: skip
