"""The weights inside a BioImage Model Zoo package (a zip) that `mrbcr export` wrote.

Invariant: one member is read, the safetensors file, as the very bytes that were exported; nothing is unpacked to disk,
nothing is run, and no more is decompressed than a weights file may have.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from mrbcr_cli.errors import InputError

PACKAGE_SUFFIX = ".zip"
MEMBER_SUFFIX = ".safetensors"


def read_packaged(path: Path, most_bytes: int) -> bytes:
    """The weights file in a package.

    Raises InputError for what is no zip, holds no safetensors file or several, is damaged, or holds more than
    `most_bytes`.
    """
    try:
        with zipfile.ZipFile(path) as package:
            found = [member for member in package.infolist() if member.filename.endswith(MEMBER_SUFFIX)]
            if len(found) != 1:
                held = "none" if not found else f"{len(found)}"
                raise InputError(
                    f"{path}: a package of `mrbcr export` holds one {MEMBER_SUFFIX} file, this one {held}; "
                    "mrbcr runs no other models of the BioImage Model Zoo, and no pickles (torch.save)"
                )
            # What the directory of the archive claims is not believed: no more than this is decompressed.
            with package.open(found[0]) as member:
                data = member.read(most_bytes + 1)
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a zip archive, or damaged ({error})") from error
    if len(data) > most_bytes:
        raise InputError(f"{path}: its weights are larger than {most_bytes // 2**20} MiB, which no mrbcr network needs")
    return data
