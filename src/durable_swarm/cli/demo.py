"""`demo`: programs that come with the package. To add one, add a function here that calls its `main`."""

from __future__ import annotations

import click

from durable_swarm.cli.options import Settings, common


@click.group(invoke_without_command=True)
@common
@click.pass_context
def demo(context: click.Context) -> int | None:
    """See the package at work in a small program. No key needed."""
    if context.invoked_subcommand is not None:
        return None
    click.echo(context.get_help())
    return 2


@demo.command()
@click.option("--name", metavar="NAME", help="Your name, for the agent. Asked for if left out.")
@click.option(
    "--model", metavar="MODEL", help="Model to ask, with $OPENAI_API_KEY set. Without a key a script answers."
)
@common
@click.pass_obj
def refund(settings: Settings, name: str | None, model: str | None) -> int:
    """An agent refunds an item; kill it half way and start it again."""
    from durable_swarm.demos import refund as program

    return program.main(name=name, database=settings.database, model=model)


@demo.command()
@click.option("--name", metavar="NAME", help="The customer's name.")
@common
@click.pass_obj
def approval(settings: Settings, name: str | None) -> int:
    """A refund over 100 waits for your approval.

    Approve it from another terminal, whether this program runs or was killed.
    """
    from durable_swarm.demos import approval as program

    return program.main(name=name, database=settings.database)
