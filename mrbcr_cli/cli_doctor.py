"""`mrbcr doctor`: the parser of the command; no logic.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from mrbcr_cli.cli_options import Debug, JsonFacts
from mrbcr_cli.errors import IncompleteError

EPILOG = """\
mrbcr doctor
mrbcr doctor > doctor.md  # to attach to a bug report"""


def doctor(as_json: JsonFacts = False, debug: Debug = False) -> None:
    """Report versions, devices, memory, folders and what is missing, and try a small deconvolution.

    For bug reports: home folders are shortened to ~, and no keys or tokens are shown. Exit 3 where something that mrbcr
    needs is missing or broken.
    """
    from mrbcr_cli.doctor.report import as_facts, as_text, examine, troubles_of

    findings = examine()
    if as_json:
        import json

        print(json.dumps(as_facts(findings), indent=2, default=str))
    else:
        print(as_text(findings), end="")
    needed, _ = troubles_of(findings)
    if needed:
        raise IncompleteError(f"{'; '.join(trouble.what for trouble in needed)}; what to do is said above")
