"""The command `tandem`. Heavy packages are imported only by the commands that need them."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from components.dataset.errors import UserError, ValidationStoppedError
from pipelines.commands import cluster, data, features, monitoring, registry, runs, schedule, serving

app = typer.Typer(
    name="tandem",
    help="Train click-through-rate models that have learnt from a language model, and serve them without it.\n\n"
    "Begin with: tandem run --dataset sample",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Help shows the commands in this order.
for commands in (runs, cluster, features, data, serving, monitoring):
    app.add_typer(commands.app)
app.add_typer(schedule.app, name="schedule")
app.add_typer(registry.app, name="registry")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"tandem {version('tandem-ctr')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options that stand before a command."""


def main() -> None:
    """Run the command line and leave with the exit code that fits."""
    try:
        app()
    except UserError as error:
        _leave(f"error: {error}", 2)
    except ValidationStoppedError as error:
        _leave(f"validation stopped the run: {error}", 3)
    except Exception as error:  # the last resort: a message, and the traceback for those who want it
        if os.environ.get("TANDEM_DEBUG"):
            traceback.print_exc()
        _leave(f"failed: {error} (set TANDEM_DEBUG=1 for the traceback)", 1)


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
