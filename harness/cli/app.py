"""The `benchmark` command: mounts the verbs and turns user errors into one clear message."""

from __future__ import annotations

import sys

import typer

from petlbench.errors import PetlbenchError
from petlbench.harness.cli.breakdown import breakdown
from petlbench.harness.cli.cache import cache
from petlbench.harness.cli.check import check
from petlbench.harness.cli.compare_published import compare_published
from petlbench.harness.cli.data import data
from petlbench.harness.cli.evaluate import evaluate
from petlbench.harness.cli.export_backbone import export_backbone
from petlbench.harness.cli.gallery import gallery
from petlbench.harness.cli.leaderboard import leaderboard
from petlbench.harness.cli.ls import ls
from petlbench.harness.cli.new_method import new_method
from petlbench.harness.cli.plan import plan
from petlbench.harness.cli.results import results
from petlbench.harness.cli.run import run
from petlbench.harness.cli.search import search
from petlbench.harness.cli.transfer import transfer

app = typer.Typer(
    name="benchmark",
    help="Compare ways of fine-tuning a vision-language model for remote-sensing image-text retrieval.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("run")(run)
app.command("plan")(plan)
app.command("search")(search)
app.command("evaluate")(evaluate)
app.command("export-backbone")(export_backbone)
app.command("leaderboard")(leaderboard)
app.command("compare-published")(compare_published)
app.command("gallery")(gallery)
app.command("breakdown")(breakdown)
app.command("transfer")(transfer)
app.add_typer(results, name="results")
app.add_typer(ls, name="ls")
app.add_typer(data, name="data")
app.add_typer(cache, name="cache")
app.command("check")(check)
app.command("new-method")(new_method)


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from petlbench import __version__

        typer.echo(f"petlbench {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the console scripts; exit code 2 means that the user can mend what is wrong."""
    try:
        app(prog_name="benchmark")
    except PetlbenchError as error:
        _fail(str(error))
    except OSError as error:
        # A full or unwritable disk is the user's to mend; anything else of the system is told just as plainly.
        _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))


def _fail(message: str) -> None:
    typer.secho(f"error: {message}", fg="red", err=True)
    sys.exit(2)
