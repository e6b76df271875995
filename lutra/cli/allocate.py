"""How a condition on bytes or perplexity becomes a format for every weight.

The damage of a rounded weight is measured as divergence from the model as it was, not as loss: what rounding does to
the loss of a text has a part of random sign, which for most single weights is larger than the harm.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutra.cli.conditions import FORMATS, Condition, condition
from lutra.errors import FileError, RequestError

if TYPE_CHECKING:
    from lutra.engine.llm import LLM
    from lutra.engine.perplexity import Window
    from lutra.model.sensitivity import Swap, Table
    from lutra.model.transformer import Transformer

DEPLOYMENTS = {"one user": 1, "batched": 16}  # rows of a step
MARGIN = 0.9  # of what a correction would be, so that the next try meets the limit
TRIES = 6  # of meeting a limit that the sum of errors predicts too low
TOKENS, CHECKED, CONTEXT = 1024, 4096, 512  # of the text that damage, and the outcome, are measured on; of its windows
HELD_LOGITS = 1 << 26  # of the reference at a time: large vocabularies are measured on fewer tokens

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


def allocate(
    llm: "LLM",
    text: str | None,
    wanted: Condition,
    names: Sequence[str] = FORMATS,
    deployment: str = "one user",
    method: str = "scaled",
    progress: Say | None = None,
) -> Choice:
    """Choose a format for every linear of a model, and for its head where that is not the embedding.

    llm         of floats, or whatever is taken as the truth
    text        damage is measured on its beginning; None for what the model writes itself
    names       formats to choose from
    deployment  of DEPLOYMENTS: whose speed counts where errors are about the same
    Raises RequestError for a condition that nothing meets; FormatError for unknown formats.
    """
    from lutra.engine import perplexity
    from lutra.engine.divergence import distance_from
    from lutra.formats.vectors import find_other
    from lutra.model import sensitivity
    from lutra.quantize.recommend import explain, recommend

    say = progress or (lambda label, done, total: None)
    formats = [find_other(name, "in --choose-from") for name in dict.fromkeys(names)]
    config, with_head = llm.config, not llm.config.tied
    window = min(CONTEXT, llm.transformer.context)
    read, checked = _windows(llm, text, window, say)

    def loss(transformer: "Transformer") -> float:
        scores = [score for each in checked for score in perplexity.negative_log_likelihoods(transformer, each)]
        return math.fsum(scores) / len(scores)

    swap = sensitivity.Swap(llm.model, window, loss)
    ids, damage = [each.tokens for each in read], distance_from(llm.transformer.scorer(window), read)
    costs = sensitivity.measure(llm.model, ids, formats, damage, method, with_head=with_head, progress=progress)
    sizes, count = sensitivity.unit_sizes(config, with_head), sensitivity.num_weights(config, with_head)
    tables = {}
    for index, (name, rows) in enumerate(DEPLOYMENTS.items()):
        say(f"speed of the formats for {name}", index, len(DEPLOYMENTS))
        times = sensitivity.kernel_times(sizes, formats, rows, llm.transformer.workers)
        tables[name] = sensitivity.join(costs, times)
    say("measuring the choice", 0, 1)
    before = swap.baseline()
    num_bytes = wanted.num_bytes
    if num_bytes is None:
        assert wanted.limit is not None
        num_bytes = _bytes_for(swap, tables[deployment], wanted.limit, before)
    found = {name: recommend(name, DEPLOYMENTS[name], table, num_bytes) for name, table in tables.items()}
    chosen = found[deployment].allocation
    grown = swap.loss_of(chosen, sensitivity.by_default) - before
    said = [explain(each, tables[name], count) for name, each in found.items()]
    said.append(
        f"chosen for {deployment}: perplexity {100 * math.expm1(grown):+.2f} % measured on {len(checked)} windows "
        f"rounded without calibration, {100 * math.expm1(found[deployment].total[1]):+.2f} % expected of the sum"
    )
    return Choice(sensitivity.per_tensor(chosen, config), "\n".join(said))


def _windows(llm: "LLM", text: str | None, window: int, say: Say) -> "tuple[list[Window], list[Window]]":
    """What damage is measured on, and what the outcome: the beginning of the text, or what the model writes."""
    from lutra.engine import perplexity
    from lutra.engine.compare import written

    tokens, bos_id = llm.tokens_of(text or "")
    if text is None:
        say(f"writing {TOKENS} tokens to measure on, as there is no --calib", 0, 1)
        tokens = written(llm, TOKENS)
    held = max(HELD_LOGITS // llm.config.vocab_size, window)
    counts = min(TOKENS, held), CHECKED
    damaged, checked = (perplexity.cut(tokens[:count], bos_id, window) for count in counts)
    return damaged, checked


def _bytes_for(swap: "Swap", table: "Table", limit: float, before: float) -> float:
    """Fewest bytes whose measured growth of the loss stays below the limit.

    Errors only add up while they are small, so the sum that is aimed at is corrected by what was measured.
    Raises RequestError where even the best formats, or TRIES corrections, do not meet it.
    """
    from lutra.model.sensitivity import by_default
    from lutra.quantize.allocate import front

    points, aim = front(table), limit
    for _ in range(TRIES):
        point = points.reaching(max(aim, float(points.errors[-1])))
        grown = swap.loss_of(points.allocation(point), by_default) - before
        if grown <= limit:
            return float(points.costs[point])
        if point == len(points.costs) - 1:  # nothing is better
            break
        aim *= MARGIN * limit / grown
    raise RequestError(
        f"expected formats that keep the increase below {100 * math.expm1(limit):.3g} %, got "
        f"{100 * math.expm1(grown):.3g} % with weights of {points.costs[point] / 1e6:.2f} MB; allow more, or give "
        "better formats with --choose-from"
    )


def for_file(
    model: str, out: Path, text: str | None, threads: int, progress: Say, deployment: str,
    names: Sequence[str], conditions: Mapping[str, Any],
) -> Choice:  # fmt: skip
    """The choice for a file that is to be written, kept beside it as NAME.formats.json.

    Kernel times differ from run to run, so whoever asks for the same again gets what was chosen before: a quantisation
    that was interrupted goes on with the same formats.  `lutra quantize --per-layer` reads the file too.
    Raises as `allocate` does; FileError where the file cannot be written.
    """
    from lutra.engine.llm import LLM
    from lutra.files import open_model
    from lutra.files.door import refusal
    from lutra.files.identity import identity
    from lutra.model.config import config_from

    path = out.expanduser().with_suffix(".formats.json")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):  # said before minutes of measuring
        raise refusal(path, "file", "a folder that can be written to", str(path.parent), "make it or name another")
    file = open_model(model)
    digest = None if text is None else hashlib.sha256(text.encode()).hexdigest()
    question = {"model": identity(Path(model)), "text": digest, "deployment": deployment, "names": names, **conditions}
    known = _read(path)
    if known.get("_asked") == json.loads(json.dumps(question)):
        chosen = {name: str(value) for name, value in known.items() if not name.startswith("_")}
        head = {"head": str(known["_head"])} if known.get("_head") else {}
        return Choice({**chosen, **head}, str(known.get("_report", "")))
    wanted = condition(file, config_from(file), names, **conditions)
    llm = LLM.load(model, threads=threads, progress=progress)
    choice = allocate(llm, text, wanted, names, deployment, progress=progress)
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
