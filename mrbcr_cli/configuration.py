"""Settings in YAML: read a file, lay the options of the command line over it, check the whole, write it back.

Invariant: no YAML tag can make an object (safe loader), numbers mean what they look like (no base 60), and whatever is
wrong is one InputError that names the file and the option.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mrbcr_cli.errors import InputError

Settings = TypeVar("Settings", bound=BaseModel)


MAX_FILE_BYTES = 256 * 2**10
MAX_NODES = 20_000
"""Values of a configuration, those of aliases counted wherever they stand: a page of aliases can stand for 10^9."""


class _PlainLoader(yaml.SafeLoader):
    """YAML 1.1 without its base-60 numbers, which would read the planes 4:20 as 260, and with 1e3 as a number."""


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, dashes in its keys as underscores. Raises InputError."""
    try:
        if not path.is_file():
            raise InputError(f"{path}: cannot read the configuration; it is missing or not a regular file")
        with path.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise InputError(f"{path}: larger than {MAX_FILE_BYTES // 1024} KiB; that is no configuration of mrbcr")
        loaded = _load(text.decode("utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the configuration ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # What PyYAML's own constructors raise on a date, number or binary that is none.
        raise InputError(f"{path}: a value in it is none that YAML can read ({_short(error)}); quote it") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise InputError(f"{path}: the configuration must be a mapping of option names to values")
    return {str(key).replace("-", "_"): value for key, value in (loaded or {}).items()}


def _load(text: str, path: Path) -> Any:
    """The one document in the text. Raises InputError where its aliases make it endless, YAMLError and others."""
    loader = _PlainLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _nodes_in(node, {}) > MAX_NODES:
            raise InputError(f"{path}: has more than {MAX_NODES} values, counting aliases; write them out")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _nodes_in(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values in a tree of nodes, an alias counted as all that it stands for; within itself it is endless."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES + 1  # until it is known: met again on the way down, it holds itself
        below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []
        below = node.value if isinstance(node, yaml.SequenceNode) else below
        known[id(node)] = 1 + sum(_nodes_in(child, known) for child in below)
    return known[id(node)]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def load_configuration(kind: type[Settings], path: Path | None, overrides: dict[str, Any], command: str) -> Settings:
    """Read a YAML file (if any), lay `overrides` over it and check the whole; `command` is named in messages.

    Raises InputError in one line: what is wrong and with which option.
    """
    values = {} if path is None else read_yaml(path)
    try:
        return kind(**{**values, **overrides})
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"][:1]).replace("_", "-")
        message = first["msg"].removeprefix("Value error, ")
        where = f"{path}: " if path is not None and first["loc"] and first["loc"][0] in values else ""
        if first["type"] == "extra_forbidden":
            raise InputError(f"{where}unknown option {option!r}; see {command} --help") from error
        raise InputError(f"{where}{'--' + option + ': ' if option else ''}{message}") from error


def dump_yaml(settings: BaseModel) -> str:
    """The settings as YAML, in the order of their fields, without those that are None by default."""
    fields = type(settings).model_fields
    values = {
        name: value
        for name, value in settings.model_dump(mode="json").items()
        if value is not None or fields[name].default is not None
    }
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True)
