"""The errors that the tool raises on purpose, each with the exit code it ends in.

Invariant: every foreseeable failure is a subclass of MrbcrError whose message is one or two lines (what, where,
what to do); anything else that reaches the top is a bug and exits 1.
"""

from __future__ import annotations


class MrbcrError(Exception):
    """Base of all foreseeable failures; `exit_code` is what the process returns."""

    exit_code = 1


class InputError(MrbcrError):
    """Usage or input is wrong; nothing has been written (exit 2)."""

    exit_code = 2


class IncompleteError(MrbcrError):
    """Some blocks or files failed; what is done is kept and a rerun resumes (exit 3)."""

    exit_code = 3


class FingerprintError(MrbcrError):
    """The output exists but belongs to another input, weights or settings (exit 4)."""

    exit_code = 4


class InterruptedRunError(MrbcrError):
    """The run was interrupted by a signal and can be resumed (exit 75, EX_TEMPFAIL)."""

    exit_code = 75


class MrbcrWarning(UserWarning):
    """What a user of the Python functions must see and may filter; the command line prints it."""


class DomainWarning(MrbcrWarning):
    """The image lies outside the domain that its model was made for."""
