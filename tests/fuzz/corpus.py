"""The small valid files that are mutated; each is a dictionary of relative path -> bytes.

Invariant: every file here is accepted as it is (test_fuzz.py holds it), so that a mutation starts from what works.
"""

from __future__ import annotations

import functools
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

from tests.helpers import spots, tiny_weights

Files = dict[str, bytes]

CONFIGURATIONS = {
    "deconvolve": """\
tile_size: 64
tile-overlap: 16
channels: 0
z: 0:1
t: 0
range: [100, 2000]
percentiles: [0.1, 99.9]
nan_policy: zero
output_dtype: float32
output_format: ome-zarr
compression: deflate
batch_size: 1
precision: fp32
workers: 1
device: cpu
overwrite: false
resume: true
domain_check: false
""",
    "pairs": """\
count: 4
patch: 32
seed: 1
splits: [0.5, 0.25, 0.25]
specimen: [beads, nuclei]
na: [0.5, 1.4]
wavelength: [450, 680]
fwhm: 2:6
aberration: [0, 0.06]
thickness: [1, 10]
haze: [0, 0.6]
photons: [20, 5000]
background: 0.1
read_noise: [0, 4]
scmos: 0.2
target_resolution: 0.5
""",
    "stack": """\
specimen: [beads]
shape: [4, 32, 32]
preset: 40x/1.2w
wavelength: 520
photons: 500
seed: 3
""",
    "train": """\
name: mine
limits: {fwhm_px: [2, 6], photons: [20, 5000]}
network: {alpha: 2, kt_pairs: [[1, 1], [1], [1]], b_pairs: [[1, 1], [1], [1]]}
steps: 10
batch: 2
patch: 32
field: 64
lr: 1e-3
loss: log
precision: fp32
every: 5
pool: 4
validation_pairs: 2
simulate: &shared
  patch: 32
  specimen: [beads]
  na: [0.5, 1.4]
  fwhm: [2, 6]
  photons: [20, 5000]
""",
}


@functools.cache
def tiffs() -> dict[str, Files]:
    """TIFFs of every kind that tifffile writes: classic, BigTIFF, OME, ImageJ, tiled, compressed, pyramidal."""
    stack, plane = spots((3, 32, 48)), spots((40, 48))
    grey: dict[str, Any] = {"photometric": "minisblack"}
    made = {
        "strips": _tiff(stack, **grey, metadata=None, rowsperstrip=8),
        "big-endian": _tiff(stack, byteorder=">", **grey, metadata=None, compression="lzw", predictor=True),
        "tiles": _tiff(plane, **grey, metadata=None, tile=(16, 16), compression="zlib"),
        "bigtiff": _tiff(stack, bigtiff=True, **grey, metadata=None, compression="zstd"),
        "shaped": _tiff(stack, **grey, metadata={"axes": "ZYX", "unit": "um", "spacing": 0.5}, resolution=(10, 10)),
        "float": _tiff(plane.astype(np.float32), **grey, compression="zlib", predictor=True),
        "packbits": _tiff((plane // 16).astype(np.uint8), **grey, compression="packbits"),
        "jpeg": _tiff((plane // 16).astype(np.uint8), **grey, compression="jpeg"),
        "jpeg2000": _tiff(plane, **grey, compression="jpeg2000", tile=(16, 16)),
        "imagej": _tiff(
            spots((3, 2, 32, 48)), imagej=True, resolution=(10, 10),
            metadata={"axes": "ZCYX", "spacing": 0.3, "unit": "um", "finterval": 2.0, "Labels": ["a"] * 6},
        ),
        "ome": _tiff(
            spots((2, 3, 32, 48)), ome=True, **grey, compression="zlib",
            metadata={
                "axes": "CZYX", "PhysicalSizeX": 0.1, "PhysicalSizeXUnit": "µm", "PhysicalSizeZ": 0.3,
                "Channel": {"Name": ["a", "b"]},
            },
        ),
    }  # fmt: skip
    single = {name: {"in.ome.tif" if name == "ome" else "in.tif": data} for name, data in made.items()}
    return single | {"pyramid": {"in.ome.tif": _pyramid()}, "two-files": _two_files()}


def _tiff(data: np.ndarray[Any, Any], **how: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, data, **how)
    return buffer.getvalue()


def _pyramid() -> bytes:
    buffer, data = io.BytesIO(), spots((64, 64))
    with tifffile.TiffWriter(buffer, ome=True) as tif:
        tif.write(data, subifds=2, tile=(16, 16), photometric="minisblack", metadata={"axes": "YX"})
        for step in (2, 4):
            tif.write(data[::step, ::step], subfiletype=1, tile=(16, 16), photometric="minisblack")
    return buffer.getvalue()


def _two_files() -> Files:
    """An OME-TIFF whose two planes are in two files."""
    blocks = "".join(
        f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{c}</UUID></TiffData>'
        for c, name in enumerate(("in.ome.tif", "other.ome.tif"))
    )
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="48" SizeY="32" '
        f'SizeC="2" SizeZ="1" SizeT="1" PhysicalSizeX="0.1">{blocks}</Pixels></Image></OME>'
    )
    return {
        name: _tiff(spots((32, 48), seed), metadata=None, description=xml, photometric="minisblack")
        for seed, name in enumerate(("in.ome.tif", "other.ome.tif"))
    }


@functools.cache
def zarrs() -> dict[str, Files]:
    """Stores of both versions: images, bare arrays, sharded, a plate and a container."""
    found: dict[str, Files] = {}
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        top = Path(name)
        _image(top / "v2", 2)
        _image(top / "v3", 3)
        _image(top / "sharded", 3, chunks=(1, 1, 16, 16), shards=(1, 2, 32, 32))
        zarr.create_array(top / "bare2", data=spots((32, 48)), zarr_format=2, chunks=(16, 16))
        zarr.create_array(top / "bare3", data=spots((2, 32, 48)), zarr_format=3, chunks=(1, 16, 16))
        plate = zarr.create_group(top / "plate", zarr_format=2)
        plate.attrs["plate"] = {"wells": [{"path": "A/1"}], "rows": [{"name": "A"}], "columns": [{"name": "1"}]}
        plate.create_group("A/1").attrs["well"] = {"images": [{"path": "0"}]}
        _image(top / "plate" / "A" / "1" / "0", 2)
        container = zarr.create_group(top / "container", zarr_format=2)
        container.attrs["bioformats2raw.layout"] = 3
        container.create_group("OME").attrs["series"] = ["0"]
        (top / "container" / "OME" / "METADATA.ome.xml").write_text('<?xml version="1.0"?><OME/>')
        _image(top / "container" / "0", 2)
        for store in sorted(top.iterdir()):
            found[store.name] = {
                f"in.zarr/{file.relative_to(store)}": file.read_bytes() for file in store.rglob("*") if file.is_file()
            }
    return found


def _image(folder: Path, zarr_format: int, **how: Any) -> None:
    how.setdefault("chunks", (1, 1, 16, 24))
    group = zarr.create_group(folder, zarr_format=zarr_format)  # type: ignore[arg-type]
    group.create_array("0", data=spots((1, 2, 32, 48)), **how)
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    scale = [{"type": "scale", "scale": [1.0, 0.3, 0.1, 0.1]}]
    ome: dict[str, Any] = {
        "multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}],
        "omero": {"channels": [{"label": "a", "color": "FF0000"}]},
    }
    if zarr_format == 3:
        group.attrs["ome"] = {"version": "0.5", **ome}
    else:
        ome["multiscales"][0]["version"] = "0.4"
        group.attrs.update(ome)


@functools.cache
def weights() -> Files:
    """The file of a tiny network."""
    with tempfile.TemporaryDirectory() as folder:
        return {"w.safetensors": tiny_weights(Path(folder) / "w.safetensors").read_bytes()}


@functools.cache
def psfs() -> dict[str, Files]:
    """PSF files of numpy."""
    y, x = np.mgrid[-7:8, -7:8] / 2.0
    psf = np.exp(-(x**2) - y**2).astype(np.float32)

    def saved(save: Callable[..., None], **more: Any) -> bytes:
        buffer = io.BytesIO()
        save(buffer, psf, **more)
        return buffer.getvalue()

    npz = io.BytesIO()
    np.savez_compressed(npz, psf=psf, scale_zyx_um=np.array([0.3, 0.1, 0.1]))
    return {"npy": {"psf.npy": saved(np.save)}, "npz": {"psf.npz": npz.getvalue()}}


def plain_image() -> Files:
    """An image that is never mutated, for cases whose subject is another file."""
    return {"image.tif": _tiff(spots((2, 64, 64)), photometric="minisblack", metadata={"axes": "ZYX"})}
