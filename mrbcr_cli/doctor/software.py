"""Versions, optional extras, codecs and embedded models of this installation.

Invariant: what is needed and what is optional is read from the package's own metadata, so that there is one list of it.
"""

from __future__ import annotations

import base64
import platform
import sys
from collections.abc import Iterable
from importlib import metadata

from packaging.requirements import Requirement

from mrbcr_cli import __version__
from mrbcr_cli.doctor.findings import Findings, Trouble, said, short
from mrbcr_cli.errors import MrbcrError

PACKAGE = "mrbcr"
NOT_FOR_USERS = ("test",)
TIFF_CODECS = ("ZSTD", "DEFLATE", "ZLIB", "LZW", "LZMA", "PACKBITS", "JPEG", "JPEG2K", "JPEGXL", "WEBP", "LERC", "PNG")
ZARR_CODECS = ("ZstdCodec", "BloscCodec", "GzipCodec", "ShardingCodec", "Crc32cCodec")
NEEDED_CODECS = ("ZSTD", "DEFLATE", "ZstdCodec", "ShardingCodec", "Crc32cCodec")
"""What mrbcr writes with."""


def requirements() -> list[Requirement]:
    """What the installed package asks for; empty where it is not installed as a package."""
    try:
        return [Requirement(line) for line in metadata.requires(PACKAGE) or []]
    except metadata.PackageNotFoundError:
        return []


def versions(asked: Iterable[Requirement]) -> Findings:
    """Python, the platform, and every package that is needed, with its version."""
    facts = {
        "mrbcr": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()}), {short(sys.executable)}",
        "platform": f"{platform.platform()}, {platform.machine()}",
    }
    troubles: list[Trouble] = []
    core = [r for r in asked if r.marker is None]
    if not core:
        cure = "pip install mrbcr, or pip install . in its repository"
        troubles.append(Trouble("mrbcr runs, but is not installed as a package", cure, needed=False))
    for requirement in core:
        found, trouble = _version(requirement)
        facts[requirement.name] = found
        if trouble:
            troubles.append(Trouble(trouble, f"pip install '{requirement}'", needed=True))
    return Findings("Versions", facts, tuple(troubles))


def _version(requirement: Requirement) -> tuple[str, str | None]:
    """(the version for the report, what is wrong with it or None)."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "missing", f"{requirement.name} is not installed"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{found}, but {requirement.specifier} is needed", f"{requirement.name} {found} is not {requirement}"
    return found, None


def extras(asked: Iterable[Requirement]) -> Findings:
    """Which optional parts are there; of the others how to get them."""
    by_extra: dict[str, list[Requirement]] = {}
    for requirement in asked:
        if requirement.marker is None:
            continue
        for extra in _extras():
            if extra not in NOT_FOR_USERS and requirement.marker.evaluate({"extra": extra}):
                by_extra.setdefault(extra, []).append(requirement)
    facts, troubles = {}, []
    for extra, parts in by_extra.items():
        missing = [part.name for part in parts if _version(part)[1]]
        if missing:
            facts[extra] = f"missing: {', '.join(missing)}"
            troubles.append(
                Trouble(f"optional extra {extra} is not there", f"pip install '{PACKAGE}[{extra}]'", needed=False)
            )
        else:
            facts[extra] = ", ".join(f"{part.name} {_version(part)[0]}" for part in parts)
    return Findings("Optional extras", facts, tuple(troubles))


def _extras() -> list[str]:
    try:
        return metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []


def codecs() -> Findings:
    """Compressions that TIFF and Zarr files may have."""
    present: dict[str, list[str]] = {}
    missing: dict[str, list[str]] = {}
    troubles = []
    for kind, names in (("TIFF", TIFF_CODECS), ("Zarr", ZARR_CODECS)):
        try:
            there = _tiff_codecs() if kind == "TIFF" else _zarr_codecs()
        except (ImportError, OSError) as error:
            library = "imagecodecs" if kind == "TIFF" else "zarr"
            troubles.append(
                Trouble(f"{library} does not load ({said(error)})", f"pip install --force-reinstall {library}", True)
            )
            continue
        for name in names:
            label = name.removesuffix("Codec").lower()
            (present if name in there else missing).setdefault(kind, []).append(label)
            if name not in there and name in NEEDED_CODECS:
                library = "imagecodecs" if kind == "TIFF" else "zarr"
                troubles.append(Trouble(f"no {label} of {kind}", f"pip install --upgrade {library}", needed=True))
    facts = {kind: ", ".join(names) for kind, names in present.items()}
    facts |= {f"{kind}, missing": ", ".join(names) for kind, names in missing.items()}
    return Findings("Codecs", facts, tuple(troubles))


def _tiff_codecs() -> set[str]:
    import imagecodecs

    return {name for name in TIFF_CODECS if getattr(getattr(imagecodecs, name, None), "available", False)}


def _zarr_codecs() -> set[str]:
    import zarr.codecs

    return {name for name in ZARR_CODECS if hasattr(zarr.codecs, name)}


def models() -> Findings:
    """The embedded models: are they whole, and as they were when the package was made?"""
    from mrbcr_cli.weights import list_weights, load_weights

    recorded = _recorded_hashes()
    facts, troubles = {}, []
    again = f"pip install --force-reinstall --no-deps {PACKAGE}"
    for name in list_weights():
        try:
            loaded = load_weights(name)
        except MrbcrError as error:
            facts[name] = f"damaged: {said(error)}"
            troubles.append(Trouble(f"the model {name} is damaged", again, needed=True))
            continue
        record = recorded.get(name)
        agrees = {True: "verified", False: "NOT what was installed"}
        verdict = "read; no record to verify it by" if record is None else agrees[record == loaded.sha256]
        facts[name] = f"sha256 {loaded.sha256}, {verdict}"
        if record not in (None, loaded.sha256):
            troubles.append(Trouble(f"the model {name} is not the one that was installed", again, needed=True))
    if not facts:
        troubles.append(Trouble("no embedded model is there", again, needed=True))
    return Findings("Embedded models", facts, tuple(troubles))


def _recorded_hashes() -> dict[str, str]:
    """SHA-256 (hex) of each model, as pip wrote it down; an editable installation has none."""
    from mrbcr_cli.weights import SUFFIX

    try:
        listed = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return {}
    found = {}
    for file in listed:
        if file.name.endswith(SUFFIX) and file.hash is not None and file.hash.mode == "sha256":
            digest = base64.urlsafe_b64decode(file.hash.value + "=" * (-len(file.hash.value) % 4))
            found[file.name.removesuffix(SUFFIX)] = digest.hex()
    return found
