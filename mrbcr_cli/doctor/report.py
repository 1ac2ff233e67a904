"""All examinations, as text to paste into a bug report, or as JSON.

Invariant: the report is whole whatever is broken: an examination that fails is a trouble of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mrbcr_cli.console import plain
from mrbcr_cli.doctor.findings import Findings, Trouble, said


def examine(*, with_self_test: bool = True) -> list[Findings]:
    """Look at everything; takes a few seconds, most of them to load torch."""
    from mrbcr_cli.doctor import machine, software
    from mrbcr_cli.doctor.self_test import self_test

    asked = software.requirements()
    steps: list[tuple[str, Callable[[], Findings]]] = [
        ("Versions", lambda: software.versions(asked)),
        ("Optional extras", lambda: software.extras(asked)),
        ("Processor", machine.cores),
        ("Memory", machine.memory),
        ("Devices", machine.devices),
        ("Codecs", software.codecs),
        ("Folders", machine.folders),
        ("Cluster", machine.schedulers),
        ("Environment", machine.environment),
        ("Embedded models", software.models),
    ]
    if with_self_test:
        steps.append(("Self-test", self_test))
    return [_guarded(title, step) for title, step in steps]


def _guarded(title: str, step: Callable[[], Findings]) -> Findings:
    try:
        return step()
    except Exception as error:  # a doctor that falls over helps nobody
        what = f"{title} could not be examined ({type(error).__name__}: {said(error)})"
        return Findings(title, {}, (Trouble(what, "report it, with this text", needed=False),))


def troubles_of(findings: Sequence[Findings]) -> tuple[list[Trouble], list[Trouble]]:
    """(what is needed and is not there, what is optional or only worth knowing)."""
    found = [trouble for part in findings for trouble in part.troubles]
    return [t for t in found if t.needed], [t for t in found if not t.needed]


def as_text(findings: Sequence[Findings]) -> str:
    """Markdown that also reads well in a terminal."""
    lines = ["## mrbcr doctor"]
    for part in findings:
        lines += ["", f"### {part.title}", ""]
        for name, value in part.facts.items():
            values = value if isinstance(value, list) else [value]
            lines.append(f"- {name}: {'; '.join(plain(str(v)) for v in values)}")
        if not part.facts:
            lines.append("- nothing to report")
    needed, optional = troubles_of(findings)
    lines += ["", "### What is missing", ""]
    lines += [f"- **needed**: {plain(t.what)}: {plain(t.cure)}" for t in needed]
    lines += [f"- {plain(t.what)}: {plain(t.cure)}" for t in optional]
    if not needed:
        lines.append("- of what mrbcr needs: nothing")
    return "\n".join(lines) + "\n"


def as_facts(findings: Sequence[Findings]) -> dict[str, Any]:
    """The same for --json."""
    needed, optional = troubles_of(findings)
    return {
        **{part.title: part.facts for part in findings},
        "missing": [{"what": t.what, "cure": t.cure, "needed": t.needed} for t in (*needed, *optional)],
    }
