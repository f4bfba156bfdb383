"""The `keras-vae` command: its subcommands, how a command line is run, and what the exit status means."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from keras_vae._version import __version__
from keras_vae.cli.commands import data, deploy, evaluate, images, start, train
from keras_vae.cli.options import Command
from keras_vae.support.errors import InputError, RunError, StoppedError

app = typer.Typer(
    name="keras-vae",
    help="Train variational autoencoders that make sharp images, and ship their decoders.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# In the order in which --help lists them.
for command in (
    start.demo,
    start.doctor,
    train.train,
    evaluate.evaluate,
    evaluate.score,
    images.sample,
    images.reconstruct,
    images.interpolate,
    images.edit,
    images.traverse,
    evaluate.attributes,
    evaluate.map,
    evaluate.compare,
    deploy.explore,
    deploy.export,
    deploy.verify,
):
    app.command(cls=Command)(command)
app.add_typer(data.app)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"keras-vae {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Runs the command line.

    Exit status: 0 on success, 2 for wrong use or bad input, 130 for Ctrl-C, 128 plus its number for another signal, 1
    for anything else.
    """
    signal.signal(signal.SIGTERM, _terminated)  # training has its own way to stop
    sys.exit(run(sys.argv[1:]))


def _terminated(number: int, frame: object) -> None:
    # An exception, so that temporary files are removed on the way out.
    raise StoppedError("stopped", number)


def run(arguments: list[str]) -> int:
    """Runs a command line in this process and returns its exit status."""
    try:
        return int(app(arguments, prog_name="keras-vae", standalone_mode=False) or 0)
    except InputError as error:
        return _fail(error, 2)
    except RunError as error:
        return _fail(error, 1)
    except StoppedError as error:
        return _fail(error, 128 + error.signal)
    except typer.TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "keras-vae")
        return _fail(f"{error.format_message()} (see {command} --help)", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):  # a half-written file is not put in place
        return _fail("interrupted", 130)
    except Exception as error:
        if os.environ.get("KERAS_VAE_TRACEBACK"):
            raise
        return _fail(f"{type(error).__name__}: {error} (KERAS_VAE_TRACEBACK=1 shows where)", 1)


def _fail(message: object, status: int) -> int:
    print("keras-vae: " + " ".join(str(message).split()), file=sys.stderr)
    return status
