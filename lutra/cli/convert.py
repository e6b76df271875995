"""`lutra pack` and `lutra export`: the same weights in another file."""

from pathlib import Path

import click

from lutra.cli.model import resolve
from lutra.cli.options import head_option
from lutra.cli.show import LoadProgress


@click.command()
@click.argument("model")
@click.argument("out", type=click.Path(dir_okay=False))
@click.option("--order", default="auto", show_default=True, help="Order of the weights; a wrong one lists them all.")
@head_option
def pack(model: str, out: str, order: str, head: str | None) -> None:
    """Write MODEL as one file OUT.lutra that is mapped and used in place: it loads at once, and processes share it.

    The same file runs on every CPU.  See docs/packed.md.
    """
    path = resolve(model) or model
    from lutra.model.pack import pack as write

    with LoadProgress(lines=True) as progress:
        said = write(path, out, order, progress, head)
    click.echo(said)


@click.command()
@click.argument("model")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
def export(model: str, out: Path) -> None:
    """Write MODEL as a GGUF file OUT that llama.cpp and others read, without rounding anything.

    Formats that no GGUF type holds are refused; the message lists those that one does.
    """
    path = resolve(model) or model
    from lutra.model.to_gguf import export as write

    write(path, out)
    click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
