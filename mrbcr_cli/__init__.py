"""mrbcr: deconvolve light-microscopy stacks of any size with the m-rBCR network.

>>> from mrbcr_cli import deconvolve, list_models

`help(mrbcr_cli.deconvolve)` has examples. Nothing heavy is imported before one of these is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrbcr_cli.api import Options, deconvolve, list_models
    from mrbcr_cli.errors import DomainWarning, InputError, MrbcrError, MrbcrWarning

__version__ = "0.1.0"
__all__ = [
    "DomainWarning",
    "InputError",
    "MrbcrError",
    "MrbcrWarning",
    "Options",
    "__version__",
    "deconvolve",
    "list_models",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mrbcr_cli import api, errors

    return getattr(api if hasattr(api, name) and name != "InputError" else errors, name)


def __dir__() -> list[str]:
    return sorted(__all__)
