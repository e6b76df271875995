"""`lutra inspect` and `lutra doctor`: what is inside a model, a kernel, a format, this computer."""

import click

from lutra.cli.model import load
from lutra.cli.options import head_option, kv_option


@click.group()
def inspect() -> None:
    """Look inside a model, a kernel or a format."""


@inspect.command("model")
@click.argument("model", required=False)
@kv_option
@head_option
def inspect_model(model: str | None, kv: str, head: str | None) -> None:
    """Print the shape of MODEL and how each of its tensors is stored and computed."""
    click.echo(load(model, kv=kv, head=head).describe())


@inspect.command("kernel")
@click.argument("name", required=False)
@click.option("--stage", "stages", multiple=True, type=click.Choice(["ir", "llvm", "asm"]), help="Only this stage.")
def inspect_kernel(name: str | None, stages: tuple[str, ...]) -> None:
    """Print what became of the kernel NAME: traced IR, LLVM text, assembly, counts, compile time.

    Without NAME, list the kernels in the cache.
    """
    from lutra.cli import kernels

    click.echo(kernels.describe_kernel(name, stages or kernels.STAGES) if name else kernels.list_kernels())


@inspect.command("format")
@click.argument("name", required=False)
def inspect_format(name: str | None) -> None:
    """Print what the bits of the format NAME mean; without NAME, list the formats in use."""
    from lutra.formats import catalog, vectors

    if name is None:
        every = {**catalog.SOURCES, **dict.fromkeys(vectors.NAMES, vectors.SOURCE)}
        click.echo("\n".join(f"{known:24} {source}" for known, source in every.items()))
    else:
        found = vectors.find(name)
        click.echo(catalog.describe(name) if found is None else vectors.draw(found))


@click.command()
@click.pass_context
def doctor(context: click.Context) -> None:
    """Print what this machine can do, and run one kernel on every instruction set it has."""
    from lutra import machine

    click.echo(machine.report())
    results = machine.self_test()
    for isa, ok, detail in results:
        click.echo(f"{isa:10} {'ok' if ok else 'WRONG':6} {detail}")
    context.exit(0 if all(ok for _, ok, _ in results) else 1)
