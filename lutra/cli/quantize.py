"""What `lutra quantize` is given, and what it prints."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lutra.cli.conditions import FORMATS, parse_size
from lutra.cli.conditions import OPTIONS as CONDITIONS
from lutra.cli.ending import check_ending
from lutra.cli.input import read_text
from lutra.cli.model import resolve
from lutra.cli.options import options
from lutra.cli.show import LoadProgress
from lutra.errors import FileError, LutraError, RequestError

if TYPE_CHECKING:
    from lutra.cli.allocate import Choice
    from lutra.model.quantize import Summary
    from lutra.model.recipe import Recipe

SPEED_CONTEXT = 128  # tokens of room for measuring the result
FLOATS = ("F64", "F32", "F16", "BF16")
MAX_DB = 300  # more: the weights are the same
LONG_ROW, PADDED = 1 << 16, 1.1  # a row without padding; times its bytes that are worth a note
# what adds bytes, or changes formats, that no condition counts
UNCOUNTED = {"lorc": "--lorc", "head": "--head-format", "keep": "--keep", "per_layer": "--per-layer"}


def quantize(
    model: str, out: str, calib: Any, keep: tuple[str, ...], per_layer: str | None, threads: int | None, speed: bool,
    budget: str | None, bpw: float | None, max_ppl_increase: str | None, choose_from: str | None, deployment: str,
    **asked: Any,
) -> str:  # fmt: skip
    """Quantise; return the summary that is to be printed."""
    from lutra.files.door import check_apart
    from lutra.machine import usable_cores
    from lutra.model import quantize as quantizer
    from lutra.model.recipe import Recipe, parse_keep, read_allocation

    conditions = {"budget": budget, "bpw": bpw, "max_ppl_increase": max_ppl_increase}
    is_chosen = any(value is not None for value in conditions.values())
    if is_chosen == (asked["format"] is not None):
        given = "both; leave one out" if is_chosen else "none; give one"
        raise click.UsageError(f"expected --format, or one of --budget, --bpw and --max-ppl-increase, got {given}")
    names = choose_from.split(",") if choose_from else FORMATS
    check_ending(out, names if is_chosen else [asked["format"]])
    check_apart(Path(model), Path(out))
    check_counted(conditions, {**asked, "keep": keep, "per_layer": per_layer})
    kept = (read_allocation(Path(per_layer)) if per_layer else ()) + parse_keep(keep)
    recipe = Recipe(keep=kept, **{**asked, "format": asked["format"] or ""})
    recipe.words()  # a wrong method is said before anything takes long
    text = None if calib is None else read_text(calib, calib.name)
    threads, report = threads or usable_cores(), ""
    note_quantised(model)
    if is_chosen:
        from lutra.cli import allocate

        with LoadProgress(lines=True) as progress:
            choice = allocate.for_file(model, Path(out), text, threads, progress, deployment, names, conditions)
        recipe, report = with_choice(recipe, choice), choice.report + "\n"
    if text is not None and recipe.method is None:
        recipe = Recipe(**{**vars(recipe), "method": "gptq+clip"})
    with LoadProgress(lines=True) as progress, unfinished(quantizer.work_folder(out)):
        summary = quantizer.quantize(model, out, recipe, text, threads, progress)
    lines = [*excess(summary, budget, bpw), *speeds(summary, threads if speed else 0)]
    return "\n".join([report + describe(summary), *lines])


def check_counted(conditions: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse what a condition is not kept beside.  Raises RequestError."""
    given = [f"--{name.replace('_', '-')}" for name, value in conditions.items() if value is not None]
    beside = [option for name, option in UNCOUNTED.items() if asked[name]]
    if given and beside:
        raise RequestError(
            f"expected {given[0]} to choose every format, got {' and '.join(beside)} beside it, whose bytes and "
            "errors it does not count; leave that out, or give --format"
        )


def with_choice(recipe: "Recipe", choice: "Choice") -> "Recipe":
    """A recipe with the formats that were chosen."""
    from lutra.model.recipe import Recipe

    formats = dict(choice.formats)
    head = formats.pop("head", None)
    return Recipe(**{**vars(recipe), "format": choice.usual, "head": head, "keep": tuple(formats.items())})


def note_quantised(model: str) -> None:
    """Say on stderr that weights are rounded a second time."""
    from lutra.files import open_model
    from lutra.files.names import LINEARS

    tensors = open_model(model).tensors
    types = {t.stored_type for name, t in tensors.items() if name.rsplit(".", 1)[-1] in LINEARS} - set(FLOATS)
    if types:
        click.echo(f"note: {model} is quantised already ({', '.join(sorted(types))}), and errors add up; "
                   "a model of floats gives better ones", err=True)  # fmt: skip


@contextmanager
def unfinished(folder: Path) -> Iterator[None]:
    """Say where the work lies that is done, if it is interrupted or the disk is full."""
    try:
        yield
    except (KeyboardInterrupt, FileError):
        if folder.is_dir():
            layers = len(list(folder.glob("layer-*")))
            click.echo(f"unfinished: layers done: {layers}, in {folder}; the same command goes on behind them, "
                       "and removing the folder gives them up", err=True)  # fmt: skip
        raise


def describe(summary: "Summary") -> str:
    """Sizes and errors."""
    from lutra.files import open_model
    from lutra.formats import catalog, vectors

    weight_bytes = sum(row[1] for row in summary.weights.values())
    formats = ", ".join(f"{count} x {name}" for name, count in summary.formats().items())
    errors = "  ".join(f"{kind} {'none' if db > MAX_DB else f'{db:.1f}'}" for kind, db in summary.sqnr_db().items())
    lines = [
        f"{summary.path}: {summary.file_bytes / 1e6:.2f} MB",
        f"weights    {formats}: {summary.bits_per_weight:.3f} bits each, {weight_bytes / 1e6:.2f} MB",
        f"signal to noise of weights, dB    {errors}",
    ]
    tensors = open_model(summary.path).tensors
    rows = [(catalog.find(row[0]), row[2], tensors[name].shape[1]) for name, row in summary.weights.items()
            if vectors.find(row[0]) is None]  # those have books, no groups  # fmt: skip
    padded = sum(form.bits_per_weight(k) * count for form, count, k in rows)  # without what stands beside weights
    nominal = sum(form.bits_per_weight(LONG_ROW) * count for form, count, _ in rows)
    if padded > PADDED * nominal:
        times = padded / nominal
        lines.append(f"note       rows are padded to whole groups, {times:.1f} times the bytes; take shorter groups")
    return "\n".join(lines)


def excess(summary: "Summary", budget: str | None, bpw: float | None) -> Iterator[str]:
    """Say by how much a file is larger than asked: what is no weight is estimated before it is written."""
    over = 0.0 if budget is None else summary.file_bytes - parse_size(budget)
    if over > 0:
        yield f"note       {over / 1e6:.4f} MB more than --budget {budget} allows; ask for that much less"
    if bpw is not None and summary.bits_per_weight > bpw:
        yield f"note       {summary.bits_per_weight - bpw:.3f} bits more than --bpw {bpw:g}; ask for that much less"


def speeds(summary: "Summary", threads: int) -> Iterator[str]:
    """The most that memory allows, by its bandwidth, and what decoding some tokens takes now; 0 threads: not that."""
    from lutra.engine.compare import speeds as measured
    from lutra.engine.llm import LLM
    from lutra.machine import limits

    rate = limits.roof().gb_per_s * 1e9
    yield (
        f"speed      estimated {rate / summary.token_bytes:.0f} tok/s: a token reads "
        f"{summary.token_bytes / 1e6:.2f} MB, this computer {rate / 1e9:.1f} GB/s from memory"
    )
    if not threads:
        return
    try:
        with LoadProgress(lines=True) as progress:
            llm = LLM.load(summary.path, threads=threads, context=SPEED_CONTEXT, progress=progress)
            found = measured([llm], 1, progress)[0].decode[0]
        yield f"           measured {found:.0f} tok/s, decoding with {threads} threads"
    except LutraError as error:  # the file is whole: what keeps it from running now is said, and no more
        yield f"           not measured: {error}"


OPTIONS = [
    click.option("--format", help="Of the layers' weights; `lutra inspect format` lists them."),
    *CONDITIONS,
    click.option("--method", help="rtn, clip, hlq, gptq+clip, awq+clip, ...; default: what suits the format."),
    click.option("--calib", type=click.File("rb"), help="Text to calibrate on (UTF-8; - is stdin)."),
    click.option("--calib-windows", "windows", type=click.IntRange(min=1), default=64, show_default=True),
    click.option("--calib-tokens", "length", type=click.IntRange(min=8), default=512, show_default=True,
                 help="Tokens of a window."),
    click.option("--head-format", "head", help="Of the head; default: as stored.  The embedding stays as stored."),
    click.option("--keep", multiple=True, metavar="PATTERN=FORMAT",
                 help="Another format, or as-stored, for weights as layers.*.down; the last that fits counts."),
    click.option("--per-layer", type=click.Path(dir_okay=False), help="JSON {weight: format}, by bit allocation."),
    click.option("--damp", type=click.FloatRange(min=0), default=0.01, show_default=True, help="Of GPTQ."),
    click.option("--act-order", is_flag=True, help="GPTQ takes the columns with the largest inputs first."),
    click.option("--static-groups", is_flag=True, help="GPTQ finds the scales of all groups first."),
    click.option("--sequential", is_flag=True, help="GPTQ meets the inputs that quantised layers make."),
    click.option("--lorc", type=click.IntRange(min=0), default=0, metavar="RANK",
                 help="Put a low-rank term of floats beside every weight, of what rounding lost: LoRC."),
    click.option("--speed/--no-speed", default=True, help="Decode some tokens with the result for the summary."),
    click.option("--threads", type=click.IntRange(min=1), help="Default: the cores this process may use."),
]  # fmt: skip


@click.command("quantize")
@click.argument("model")
@click.argument("out", type=click.Path(dir_okay=False))
@options(*OPTIONS)
def command(model: str, out: str, **arguments: Any) -> None:
    """Write MODEL with weights of fewer bits as one file OUT.safetensors, which every other command takes as a model.

    \b
    lutra quantize model.gguf out.safetensors --format planes4-g32-mins
    lutra quantize org/repo out.safetensors --format planes1x2-g64-mins --method gptq+hlq --calib text.txt
    lutra quantize model out.safetensors --format planes3-g64-mins --keep "layers.*.down=planes4-g64-mins"

    Interrupted, the same command goes on where it was, and writes the same file.
    """
    click.echo(quantize(resolve(model) or model, out, **arguments))
