"""`mrbcr schema`: the JSON Schema of what --json prints.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from mrbcr_cli import cli_options as o

EPILOG = "mrbcr schema > mrbcr-events.schema.json"


def schema(debug: o.Debug = False) -> None:
    """Print the JSON Schema of the events that --json writes, one object a line, for programs that read them."""
    import json

    from mrbcr_cli.events import event_schema

    print(json.dumps(event_schema(), indent=2))
