"""Write an image that is in memory: OME-TIFF, OME-Zarr, or (PSFs) .npz, whole or not at all.

Invariant: the file appears under its name by one rename, so a killed run leaves nothing that looks finished; an
existing file is replaced only when asked for.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import IncompleteError, InputError
from mrbcr_cli.images import TIFF_SUFFIXES
from mrbcr_cli.images.base import OutputSpec

_LONGEST_NAME = 200
"""Bytes; file systems take 255, and working names are longer than the output's."""
SUFFIXES = (*TIFF_SUFFIXES, ".zarr", ".npz")


def check_free(path: Path, *, overwrite: bool, suffixes: tuple[str, ...] = SUFFIXES) -> None:
    """Refuse a name that cannot be written: unknown suffix, taken, or below a file. Raises InputError."""
    if not path.name.lower().endswith(suffixes):
        raise InputError(f"{path}: the name must end in {', '.join(suffixes)}; it says what is written")
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise InputError(f"{path.name[:40]}...: is too long for a file name; make it shorter")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists; use --overwrite to replace it, or another --output")
    if path.is_dir() and any(path.iterdir()) and not (path / "zarr.json").exists() and not (path / ".zgroup").exists():
        raise InputError(f"{path}: is a folder that holds no Zarr; move it away, it is not overwritten")
    for parent in path.parents:
        if parent.exists():
            if not parent.is_dir():
                raise InputError(f"{parent}: is not a folder, so {path.name} cannot be written there")
            if not os.access(parent, os.W_OK):
                raise InputError(f"{parent}: is not writable")
            break


def _put_in_place(partial: Path, path: Path) -> None:
    """Rename a finished file or folder to its name; an older folder steps aside first and is removed last."""
    if not path.is_dir():
        partial.replace(path)
        return
    former = path.with_name(f".{path.name}.replaced")
    _remove(former)
    path.rename(former)
    partial.replace(path)
    _remove(former)


def write_array(path: Path, spec: OutputSpec, array: NDArray[Any]) -> None:
    """Write `array` (shape and dtype of `spec`, canonical axes) to `path` by its suffix.

    Raises IncompleteError where the disk does not take it; nothing is left then.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        _write(partial, path.name.lower(), spec, array)
        _put_in_place(partial, path)
    except OSError as error:
        _remove(partial)
        raise IncompleteError(f"{path}: cannot be written ({error.strerror or error})") from error


def _write(partial: Path, name: str, spec: OutputSpec, array: NDArray[Any]) -> None:
    if name.endswith(".npz"):
        z, y, x = (spec.scale[spec.axes.index(a)] if a in spec.axes else None for a in "ZYX")
        with partial.open("wb") as file:
            scale = np.array([z or y, y, x], np.float64)
            if spec.channel_names:
                np.savez_compressed(file, psf=array, scale_zyx_um=scale, channels=np.array(spec.channel_names))
            else:
                np.savez_compressed(file, psf=array, scale_zyx_um=scale)
    elif name.endswith(".zarr"):
        from mrbcr_cli.images.omezarr_write import create_level0, finish, open_level0, plan_layout

        layout = plan_layout(spec, spec.shape, "0.5")
        create_level0(partial, spec, layout, "0.5")
        open_level0(partial).write(tuple(slice(0, n) for n in spec.shape), array)
        finish(partial, spec, layout, "0.5")
    else:
        from mrbcr_cli.images.tiff_write import write_ome_tiff

        write_ome_tiff(partial, spec, lambda region: array[region])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
