"""How the command line is explained: panels, units, examples, `--help-all`, and what a shell completes.

Invariant: everything that is said of an option stands once, where the option is declared; help, shell completion and
`mrbcr init` read it from there. Nothing heavy is imported, so that help and completion answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

MESSAGES = "Messages"
METHODS = ("network", "richardson-lucy", "wiener", "blind")
OUTPUT_FORMATS = ("ome-zarr", "ome-zarr-0.4", "ome-tiff")
COMPRESSIONS = ("zstd", "deflate", "none")
PRECISIONS = ("fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda", "cuda:0")
DTYPES = ("uint8", "uint16", "int16", "float32")
MICROSCOPES = ("widefield", "confocal", "two-photon", "light-sheet", "brightfield")
KINDS = ("beads", "filaments", "membranes", "vesicles", "nuclei", "cytoplasm", "targets", "mixed")
PRESETS = ("10x/0.3", "20x/0.75", "40x/1.2w", "63x/1.4oil", "100x/1.49tirf")

Words = Sequence[str] | Callable[[str], Sequence[str]]


def option(panel: str, *names: str, help: str, complete: Words = (), rare: bool = False, **more: Any) -> Any:
    """An option of a panel. `metavar` names the unit of a number; `complete` is what a shell offers for its value.

    A `rare` one is shown by --help-all alone.
    """
    if complete:
        more["autocompletion"] = complete if callable(complete) else lambda incomplete: list(complete)
    return typer.Option(*names, help=help, rich_help_panel=panel, hidden=rare, show_default=False, **more)


def complete_model(incomplete: str) -> list[str]:
    """Embedded models, and the weights files and folders that a path begins; after "C=" the same for one channel."""
    from mrbcr_cli.weights import SUFFIX, list_weights

    channel, equals, begun = incomplete.rpartition("=")
    folder = Path(begun).parent if begun and not begun.endswith("/") else Path(begun or ".")
    found = list(list_weights())
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        inside = []
    for path in inside:
        if path.suffix == SUFFIX:
            found.append(str(path))
        elif path.is_dir() and begun and str(path).startswith(begun):
            found.append(f"{path}/")
    return [f"{channel}{equals}{name}" for name in found]


class Taught(TyperCommand):
    """A command with compact help: a panel a group, a line an option, and its examples on lines of their own.

    An epilog has one example a line; two spaces and "#" begin a comment.
    """

    def get_help_option(self, ctx: Any) -> Any:
        """--help, as one of the messages."""
        found: Any = super().get_help_option(ctx)
        if found is not None:
            found.rich_help_panel = MESSAGES
        return found

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print usage, what it does, panels and examples; typer's own panels take half as many lines again."""
        from rich.console import Console, Group
        from rich.padding import Padding
        from rich.panel import Panel
        from rich.text import Text

        shown = [p for p in self.get_params(ctx) if not getattr(p, "hidden", False)]
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in shown:
            of_argument = parameter.param_type_name == "argument"
            title = "Arguments" if of_argument else getattr(parameter, "rich_help_panel", None) or "Options"
            panels.setdefault(title, []).append((option_text(parameter), help_text(parameter)))
        width = max(len(names) for rows in panels.values() for names, _ in rows)
        arguments = " ".join(str(p.metavar) for p in shown if p.param_type_name == "argument")
        console = Console(highlight=False)
        paragraphs = [" ".join(text.split()) for text in (self.help or "").split("\n\n")]
        console.print(
            Padding(Text(f"Usage: {ctx.command_path} [OPTIONS] {arguments}".rstrip(), style="bold"), (1, 1)),
            *(Padding(Text.from_markup(text), (0, 1, 1, 1)) for text in paragraphs),
            *(
                Panel(_table(rows, width), title=title, title_align="left", border_style="dim")
                for title, rows in panels.items()
            ),
            sep="",
            end="",
        )
        if self.epilog:
            lines = [Padding(_example(line), (0, 1, 0, 3)) for line in self.epilog.splitlines()]
            console.print(Group(Text(" Examples:", style="bold"), *lines))


def teach(app: typer.Typer) -> None:
    """Give every command of an app, and of the groups in it, the help of `Taught`; called when all are registered."""
    for command in app.registered_commands:
        if command.cls is None or not issubclass(command.cls, Taught):
            command.cls = Taught
    for group in app.registered_groups:
        if group.typer_instance is not None:
            teach(group.typer_instance)


def option_text(parameter: Any) -> str:
    """How an option is written: "-o, --output FILE", "--[no-]resume"; of an argument its metavar."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name)
    names = sorted(parameter.opts, key=len)
    others = parameter.secondary_opts
    if others and others[0] == names[-1].replace("--", "--no-", 1):
        names = [names[-1].replace("--", "--[no-]", 1)]
    elif others:
        names = ["/".join([*names, *others])]
    value = "" if getattr(parameter, "is_flag", False) else f" {parameter.metavar or 'VALUE'}"
    return ", ".join(names) + value


def help_text(parameter: Any) -> str:
    """What is said of a parameter, on one line."""
    text = " ".join((parameter.help or "").split()).replace("\\[", "[")  # which markup would need
    return f"{text} Required." if parameter.required else text


def _table(rows: Sequence[tuple[str, str]], width: int) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=width, style="cyan", no_wrap=True)
    table.add_column()
    for names, said in rows:
        text = Text(said)
        text.highlight_regex(r"Default: .*$", "dim")
        text.highlight_regex(r"Required\.$", "red")
        table.add_row(Text(names), text)
    return table


def _example(line: str) -> Any:
    from rich.text import Text

    command, mark, comment = line.partition("  #")
    text = Text(command, overflow="fold")
    text.append(mark + comment, style="dim")
    return text


def _show_all(ctx: typer.Context, value: bool) -> None:
    if value:
        for parameter in ctx.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]  # of options, which is what is hidden
        print(ctx.get_help(), end="")  # rich has printed it; nothing is left, or plain text without rich
        raise typer.Exit


HelpAll = Annotated[
    bool,
    option(MESSAGES, "--help-all", help="Show all options, also the rare ones.", is_eager=True, callback=_show_all),
]
