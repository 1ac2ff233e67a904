"""The command line: parse, call, map errors to exit codes; no logic.

Invariant: every foreseeable failure leaves as one or two lines on stderr with its exit code (0 done, 1 unexpected,
2 bad input, 3 incomplete, 4 another run's output, 75 interrupted); heavy imports happen inside the command that needs
them.
"""

from __future__ import annotations

import gc
import sys
from typing import Annotated, Any

import typer

from mrbcr_cli import __version__
from mrbcr_cli.cli_deconvolve import EPILOG as DECONVOLVE_EPILOG
from mrbcr_cli.cli_deconvolve import deconvolve
from mrbcr_cli.cli_doctor import EPILOG as DOCTOR_EPILOG
from mrbcr_cli.cli_doctor import doctor
from mrbcr_cli.cli_evaluate import EPILOG as EVALUATE_EPILOG
from mrbcr_cli.cli_evaluate import ManyValues, evaluate
from mrbcr_cli.cli_export import EPILOG as EXPORT_EPILOG
from mrbcr_cli.cli_export import export
from mrbcr_cli.cli_finish import EPILOG as FINISH_EPILOG
from mrbcr_cli.cli_finish import finish
from mrbcr_cli.cli_help import teach
from mrbcr_cli.cli_info import EPILOG as INFO_EPILOG
from mrbcr_cli.cli_info import info
from mrbcr_cli.cli_init import EPILOG as INIT_EPILOG
from mrbcr_cli.cli_init import init
from mrbcr_cli.cli_report import EPILOG as REPORT_EPILOG
from mrbcr_cli.cli_report import report
from mrbcr_cli.cli_schema import EPILOG as SCHEMA_EPILOG
from mrbcr_cli.cli_schema import schema
from mrbcr_cli.cli_simulate import simulate_app
from mrbcr_cli.cli_train import EPILOG as TRAIN_EPILOG
from mrbcr_cli.cli_train import train
from mrbcr_cli.cli_weights import weights_app
from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import InterruptedRunError, MrbcrError

app = typer.Typer(
    name="mrbcr",
    help="Deconvolve light-microscopy stacks of any size with the m-rBCR network.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=DECONVOLVE_EPILOG)(deconvolve)
app.command(epilog=INFO_EPILOG)(info)
app.add_typer(weights_app, name="weights")
app.add_typer(simulate_app, name="simulate")
app.command("evaluate", cls=ManyValues, epilog=EVALUATE_EPILOG)(evaluate)
app.command(epilog=TRAIN_EPILOG)(train)
app.command(epilog=FINISH_EPILOG)(finish)
app.command(epilog=SCHEMA_EPILOG)(schema)
app.command(epilog=EXPORT_EPILOG)(export)
app.command(epilog=REPORT_EPILOG)(report)
app.command(epilog=INIT_EPILOG)(init)
app.command(epilog=DOCTOR_EPILOG)(doctor)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"mrbcr {__version__}")
        raise typer.Exit


teach(app)  # whatever was registered above
_TYPER_INTERRUPTED = 130
_OBJECTS_BETWEEN_LOOKS = 50_000

_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""Base of what the parser raises: typer's own copy of click from 0.26 on, click's class before."""


def main(argv: list[str] | None = None) -> None:
    """Run the tool and exit with its code; the entry point of `mrbcr`.

    Python looks for cycles after every few hundred new objects, and through all there are when it ends. Importing
    torch and dask makes hundreds of thousands that stay: looking less often, and past them at the end, saves a command
    that needs them half a second to a second.
    """
    gc.set_threshold(_OBJECTS_BETWEEN_LOOKS)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path that is no UTF-8 is printed byte for byte
    code = run(argv)
    gc.freeze()
    sys.exit(code)


def run(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    reporter = Reporter()
    try:
        code: Any = typer.main.get_command(app)(args=arguments, prog_name="mrbcr", standalone_mode=False)
        if code == _TYPER_INTERRUPTED:  # typer swallows KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except _UsageError as error:
        said = " ".join(error.format_message().split()).rstrip(".")
        if said:  # no arguments at all: the help was printed instead
            reporter.error(f"{said}; see --help")
        return 2
    except (typer.Abort, KeyboardInterrupt):
        reporter.error("interrupted; run the same command to resume")
        return InterruptedRunError.exit_code
    except MrbcrError as error:
        _trace(arguments)
        reporter.error(str(error))
        return error.exit_code
    except BrokenPipeError:
        return 1  # the reader of our stdout has gone
    except Exception as error:  # the last resort: anything that is a bug
        _trace(arguments)
        reporter.error(f"unexpected {type(error).__name__}: {error}; run again with --debug and report it")
        return 1


def _trace(arguments: list[str]) -> None:
    if "--debug" in arguments:
        import traceback

        traceback.print_exc()
