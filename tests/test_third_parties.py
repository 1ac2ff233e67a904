"""What `mrbcr deconvolve` writes, opened by the libraries that others will open it with.

Invariant: each finds the same pixels, axes, physical scale, channel names (not all of them ASCII) and pyramid.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.outputs import CHANNELS, SCALE_ZYX_UM, SHAPE_CZYX, ZARRS, Outputs, level_scale, level_shapes


def test_the_example_is_what_it_should_be(outputs: Outputs) -> None:
    """Sharded where it says so, and really deconvolved."""
    import zarr

    level = zarr.open_group(outputs.zarr["0.5"], mode="r")["0"]
    assert isinstance(level, zarr.Array)
    assert level.shards is not None
    assert outputs.wanted.shape == SHAPE_CZYX
    assert np.ptp(outputs.wanted) > 500


def test_tifffile(outputs: Outputs) -> None:
    with tifffile.TiffFile(outputs.tiff) as tif:
        assert tif.is_ome
        (series,) = tif.series
        assert (series.axes, series.shape) == ("CZYX", SHAPE_CZYX)
        assert np.array_equal(series.asarray(), outputs.wanted)


def test_ome_types(outputs: Outputs) -> None:
    import ome_types

    (image,) = ome_types.from_tiff(outputs.tiff).images
    found = image.pixels
    assert (found.size_c, found.size_z, found.size_y, found.size_x) == SHAPE_CZYX
    assert [c.name for c in found.channels] == CHANNELS
    sizes = (found.physical_size_z_quantity, found.physical_size_y_quantity, found.physical_size_x_quantity)
    assert [size.to("micrometer").magnitude for size in sizes] == pytest.approx(SCALE_ZYX_UM)
    # The document beside the pixels of an OME-Zarr, that Bio-Formats reads.
    document = (outputs.zarr["0.5"] / "OME" / "METADATA.ome.xml").read_text(encoding="utf-8")
    assert [c.name for c in ome_types.from_xml(document).images[0].pixels.channels] == CHANNELS


@pytest.mark.parametrize("version", ZARRS)
def test_yaozarrs(outputs: Outputs, version: str) -> None:
    import yaozarrs

    yaozarrs.validate_zarr_store(str(outputs.zarr[version]))
    image = yaozarrs.open_group(str(outputs.zarr[version])).ome_metadata()
    assert image is not None
    assert [axis.name for axis in image.multiscales[0].axes] == ["c", "z", "y", "x"]
    assert [channel.label for channel in image.omero.channels] == CHANNELS


@pytest.mark.parametrize("version", ZARRS)
def test_ome_zarr_py(outputs: Outputs, version: str) -> None:
    """The reader of napari-ome-zarr as well."""
    pytest.importorskip("ome_zarr", reason="ome-zarr is not installed")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    location = parse_url(str(outputs.zarr[version]))
    assert location is not None
    (node,) = Reader(location)()
    assert [tuple(level.shape) for level in node.data] == level_shapes()
    assert np.array_equal(np.asarray(node.data[0]), outputs.wanted)
    assert [axis["name"] for axis in node.metadata["axes"]] == ["c", "z", "y", "x"]
    assert node.metadata["channel_names"] == CHANNELS
    for level, transforms in enumerate(node.metadata["coordinateTransformations"]):
        assert transforms[0]["scale"] == pytest.approx([1, *level_scale(level)])


@pytest.mark.parametrize("version", ZARRS)
def test_ngff_zarr(outputs: Outputs, version: str) -> None:
    ngff_zarr = pytest.importorskip("ngff_zarr", reason="ngff-zarr is not installed")
    found = ngff_zarr.from_ngff_zarr(str(outputs.zarr[version]))
    assert [tuple(image.data.shape) for image in found.images] == level_shapes()
    assert np.array_equal(np.asarray(found.images[0].data), outputs.wanted)
    assert [channel.label for channel in found.metadata.omero.channels] == CHANNELS
    for level, image in enumerate(found.images):
        assert tuple(image.dims) == ("c", "z", "y", "x")
        assert [image.scale[axis] for axis in "zyx"] == pytest.approx(level_scale(level))
        assert {image.axes_units[axis] for axis in "zyx"} == {"micrometer"}
        # The centre of the first coarse pixel lies between the fine ones.
        shift = [(new - old) / 2 for new, old in zip(level_scale(level), SCALE_ZYX_UM, strict=True)]
        assert [image.translation[axis] for axis in "zyx"] == pytest.approx(shift)


@pytest.mark.parametrize("version", ZARRS)
def test_bioio_ome_zarr(outputs: Outputs, version: str) -> None:
    bioio = pytest.importorskip("bioio", reason="bioio is not installed")
    plugin = pytest.importorskip("bioio_ome_zarr", reason="bioio-ome-zarr is not installed")
    found = bioio.BioImage(outputs.zarr[version], reader=plugin.Reader)
    _same_as_bioio(found, outputs)
    assert list(found.resolution_level_dims.values()) == level_shapes()


def test_bioio_ome_tiff(outputs: Outputs) -> None:
    bioio = pytest.importorskip("bioio", reason="bioio is not installed")
    plugin = pytest.importorskip("bioio_ome_tiff", reason="bioio-ome-tiff is not installed")
    with warnings.catch_warnings():
        # bioio-ome-tiff 1.4 hands ome-types an argument that it no longer wants.
        warnings.filterwarnings("ignore", "As of version 0.4.0, the parser argument", DeprecationWarning)
        _same_as_bioio(bioio.BioImage(outputs.tiff, reader=plugin.Reader), outputs)


def _same_as_bioio(found: Any, outputs: Outputs) -> None:
    assert np.array_equal(found.get_image_data("CZYX"), outputs.wanted)
    assert list(map(str, found.channel_names)) == CHANNELS
    assert tuple(found.physical_pixel_sizes) == pytest.approx(SCALE_ZYX_UM)
