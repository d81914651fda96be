"""The `grapevine` command: its table of commands, and how errors reach the person who typed it.

Nothing on the way to `--help`, `id` or `status` may import torch, scikit-learn or networkx: each
command imports what it needs when it runs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Final

import typer

from node.cli.broker import broker
from node.cli.compose import compose
from node.cli.consortium import app as consortium_app
from node.cli.keys import identity, keygen
from node.cli.output import JsonOption, emit
from node.cli.process import start, status, stop
from node.cli.table import table
from node.cli.topology import topology
from node.errors import GrapevineError

HELP: Final = """Train one model together, each member on its own data, with no server.

\b
Try it:           grapevine demo
Found one:        keygen, id, consortium new, sign, seal, verify
Take part:        start, status, stop, compose, broker
Study:            run SCENARIO, table RESULTS, topology FILE

\b
Exit codes: 0 done, 1 an expectation failed, 2 usage or configuration,
3 the network or a peer, 4 disk or local state, 5 a bug of ours.
"""

app = typer.Typer(
    name="grapevine",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
NO_SCENARIOS: Final = (
    "this command needs the package 'scenarios', which the release image leaves out; use the "
    "scenario image, or install grapevine whole"
)
INTERRUPTED: Final = 130  # Ctrl-C, as shells say it: 128 + SIGINT
# Typer carries its own copy of click in newer releases; both name the class alike.
CLICK_ERROR: Final[Any] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)

_DELEGATED: Final[dict[str, Any]] = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}


@app.command(**_DELEGATED)
def demo(context: typer.Context) -> None:
    """Five hospitals train one model, on this machine.

    Real processes, real patients' data, no server; ends with a table, JSON and a report page.

    Example: grapevine demo --kill clinic-c@10
    """
    _delegate("demo", context)


@app.command(**_DELEGATED)
def run(context: typer.Context) -> None:
    """Run a scenario file and check what it expects.

    Example: grapevine run wan-partition.toml --on simulation --seed 7
    """
    _delegate("run", context)


app.command()(keygen)
app.command(name="id")(identity)
app.add_typer(consortium_app, name="consortium")
app.command()(start)
app.command()(stop)
app.command()(status)
app.command()(compose)
app.command()(broker)
app.command()(topology)
app.command()(table)


@app.command()
def version(as_json: JsonOption = False) -> None:
    """Say which grapevine this is.

    Example: grapevine version --json
    """
    from node.types.messages import VERSION

    number = metadata.version("grapevine")
    emit({"grapevine": number, "wire": VERSION}, as_json, f"grapevine {number} (wire {VERSION})")


def _delegate(name: str, context: typer.Context) -> None:
    """Hand the rest of the line to the command's own module, imported only now."""
    module = importlib.import_module(f"node.cli.{name}")
    sub = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    sub.command()(getattr(module, name))
    command = typer.main.get_command(sub)
    code = command.main(context.args, prog_name=f"grapevine {name}", standalone_mode=False)
    raise typer.Exit(code if isinstance(code, int) else 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code. Errors are one line on stderr."""
    command = typer.main.get_command(app)
    try:
        code = command.main(
            None if argv is None else list(argv), prog_name="grapevine", standalone_mode=False
        )
        sys.stdout.flush()
    except GrapevineError as error:
        return _fail(str(error), error.exit_code)
    except CLICK_ERROR as error:
        return _usage(error)
    except typer.Abort:
        return _fail("interrupted", INTERRUPTED)
    except (BrokenPipeError, SystemExit):
        # the reader of our output went away (`grapevine … | head`): typer's way to say so, or
        # Python's; nothing may flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("scenarios"):
            return _fail(NO_SCENARIOS, 2)
        if os.environ.get("GRAPEVINE_DEBUG") == "1":
            raise
        what = f"{type(error).__name__}: {error}"
        return _fail(f"{what} (a bug of ours; GRAPEVINE_DEBUG=1 shows where)", 5)
    if code == INTERRUPTED:  # as typer says it where a command of a command was interrupted
        return _fail("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _usage(error: Any) -> int:
    message = error.format_message()
    if not message:  # nothing was asked for: the help was shown
        return 0
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "grapevine"
    return _fail(f"{message.rstrip('.')} (see `{path} --help`)", 2)


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"grapevine: error: {line}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())
