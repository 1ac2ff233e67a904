"""`mrbcr simulate psf` as a user runs it: files, figures, metadata, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from mrbcr_cli.cli import run
from mrbcr_cli.images.ome_optics import read_optics
from mrbcr_cli.optics.microscope import Grid, Microscope, Objective
from mrbcr_cli.optics.psf import compute_psf
from mrbcr_cli.psf_files import load_psf

WATER = ("--na", "1.2", "--ni", "1.33", "--pixel", "0.065", "--z-step", "0.2", "--shape", "9", "21", "21")

OME = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
 <Instrument ID="Instrument:0"><Objective ID="Objective:0" LensNA="0.75" Immersion="Air"/>
  <Objective ID="Objective:1" LensNA="1.2" Immersion="Water"/></Instrument>
 <Image ID="Image:0"><ObjectiveSettings ID="Objective:1" RefractiveIndex="1.34"/>
  <Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="16" SizeY="16" SizeZ="3" SizeC="2" SizeT="1"
   PhysicalSizeX="0.09" PhysicalSizeY="0.09" PhysicalSizeZ="0.3">
   <Channel ID="Channel:0" EmissionWavelength="525" SamplesPerPixel="1" AcquisitionMode="WideField"/>
   <Channel ID="Channel:1" EmissionWavelength="0.61" EmissionWavelengthUnit="µm" ExcitationWavelength="561"
    AcquisitionMode="SpinningDiskConfocal" SamplesPerPixel="1"/>
   <TiffData/></Pixels></Image>
</OME>"""


def psf(*arguments: object) -> int:
    return run(["simulate", "psf", *map(str, arguments)])


def events(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_every_format_holds_the_same_psf(tmp_path: Path) -> None:
    for name in ("p.ome.tif", "p.ome.zarr", "p.npz"):
        assert psf("-o", tmp_path / name, *WATER) == 0
    expected = compute_psf(Microscope(Objective(1.2, 1.33), 0.52), Grid((9, 21, 21), 0.065, 0.2)).numpy()
    assert np.array_equal(tifffile.imread(tmp_path / "p.ome.tif"), expected)
    assert np.array_equal(zarr.open_group(tmp_path / "p.ome.zarr", mode="r")["0"][:], expected)  # type: ignore[index]
    with np.load(tmp_path / "p.npz") as stored:
        assert np.array_equal(stored["psf"], expected) and stored["scale_zyx_um"].tolist() == [0.2, 0.065, 0.065]


def test_deconvolution_takes_the_file(tmp_path: Path) -> None:
    """Voxel size, centre and values come back through the reader that --psf uses."""
    assert psf("-o", tmp_path / "p.ome.tif", *WATER) == 0
    read = load_psf(tmp_path / "p.ome.tif", image_scale_zyx_um=(0.2, 0.065, 0.065), is_3d=True, background=0.0)
    assert read.values_zyx.sum() == pytest.approx(1.0, abs=1e-5)
    middle = tuple(n // 2 for n in read.values_zyx.shape)
    assert np.unravel_index(read.values_zyx.argmax(), read.values_zyx.shape) == middle


def test_provenance_makes_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--microscope", "confocal", "--wavelength-ex", "488", "--zernike", "7=0.05,12=-0.02", *WATER)
    assert psf("-o", tmp_path / "p.ome.tif", "--json", *arguments) == 0
    facts = events(capsys)
    from mrbcr_cli.images import read_provenance

    provenance: Any = read_provenance(tmp_path / "p.ome.tif")
    assert provenance["psf"]["optics"] == json.loads(json.dumps(facts["optics"]))
    stored = provenance["psf"]
    optics = stored["optics"]
    microscope = Microscope(
        **{
            **optics,
            "objective": Objective(**optics["objective"]),
            "zernike_waves": tuple((int(j), w) for j, w in optics["zernike_waves"]),
        }
    )
    z, y, _ = stored["voxel_zyx_um"]
    again = compute_psf(microscope, Grid(tuple(stored["shape_zyx"]), y, z, stored["sampling"]))
    assert np.array_equal(tifffile.imread(tmp_path / "p.ome.tif"), again.numpy())


def test_yaml_is_the_same_as_options(tmp_path: Path) -> None:
    (tmp_path / "psf.yaml").write_text(
        "na: 1.2\nni: 1.33\npixel: 0.065\nz-step: 0.2\nshape: [9, 21, 21]\nzernike: {4: 0.1}\nsampling: point\n"
    )
    assert psf("-o", tmp_path / "a.npz", "-c", tmp_path / "psf.yaml") == 0
    assert psf("-o", tmp_path / "b.npz", *WATER, "--zernike", "4=0.1", "--sampling", "point") == 0
    assert psf("-o", tmp_path / "c.npz", "-c", tmp_path / "psf.yaml", "--na", "1.0") == 0
    a, b, c = (np.load(tmp_path / f"{name}.npz")["psf"] for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_optics_from_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "cells.ome.tif"
    tifffile.imwrite(
        image, np.zeros((2, 3, 16, 16), np.uint8), description=OME.encode(), metadata=None, photometric="minisblack"
    )
    assert psf("-o", tmp_path / "p.npz", "--like", image, "--shape", "5", "15", "15", "--json") == 0
    facts = events(capsys)
    assert facts["optics"]["objective"]["na"] == 1.2 and facts["optics"]["objective"]["n_immersion"] == 1.34
    assert facts["optics"]["wavelength_um"] == 0.525 and facts["voxel_zyx_um"] == [0.3, 0.09, 0.09]
    assert psf("-o", tmp_path / "q.npz", "--like", image, "--channel", 1, "--shape", "5", "15", "15", "--json") == 0
    facts = events(capsys)
    assert facts["microscope"] == "confocal" and facts["optics"]["wavelength_um"] == pytest.approx(0.61)
    assert psf("-o", tmp_path / "r.npz", "--like", image, "--na", "0.9", "--shape", "5", "15", "15", "--json") == 0
    assert events(capsys)["optics"]["objective"]["na"] == 0.9
    assert psf("-o", tmp_path / "s.npz", "--like", image, "--channel", 5) == 2
    assert "has 2 channels" in capsys.readouterr().err


def test_metadata_that_say_little() -> None:
    bare = read_optics("<OME><Image><Pixels/></Image></OME>", path="x")
    assert bare.na is None and bare.emission_nm is None and bare.microscope is None
    odd = OME.replace('LensNA="1.2"', 'LensNA="-3"').replace('EmissionWavelength="525"', 'EmissionWavelength="abc"')
    seen = read_optics(odd, path="x")
    assert seen.na is None and seen.emission_nm is None


def test_figure_and_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert psf("-o", tmp_path / "p.npz", *WATER, "--figure", tmp_path / "p.png") == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "p.npz")
    assert "FWHM: lateral 0.2437 um" in said.err and "Nyquist: pixel 0.1083 um" in said.err
    assert "wavelength 520 nm assumed" in said.err


def test_warnings_on_sampling_and_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coarse = ("--na", "1.4", "--pixel", "0.2", "--z-step", "0.5", "--shape", "11", "15", "15")
    assert psf("-o", tmp_path / "p.npz", *coarse) == 0
    said = capsys.readouterr().err
    assert "undersampled: the pixel of 0.2 um" in said and "undersampled: the z step of 0.5 um" in said
    assert "the volume cuts the PSF off" in said
    assert psf("-o", tmp_path / "q.npz", "--na", "1.2", "--ni", "1.33", "--shape", "9", "151", "151") == 0
    assert "warning" not in capsys.readouterr().err


def test_default_volume_holds_the_psf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("10x/0.3", "63x/1.4oil"):
        assert psf("-o", tmp_path / "p.npz", "--preset", name, "--overwrite") == 0
        assert "warning" not in capsys.readouterr().err


def test_brightfield_has_two_signed_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--microscope", "brightfield", "--na", "0.75", "--na-illumination", "0.5", "--shape", "7", "21", "21")
    assert psf("-o", tmp_path / "b.ome.tif", *arguments, "--figure", tmp_path / "b.png") == 0
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as tif:
        assert tif.series[0].axes == "CZYX"
        absorption, phase, absorption_tf, phase_tf = tif.asarray()
    assert absorption_tf[3, 10, 10] == pytest.approx(2.0, abs=1e-5) and np.abs(phase_tf[3]).max() < 1e-6
    assert np.allclose(absorption_tf, absorption_tf[::-1], atol=1e-5) and np.allclose(
        phase_tf, -phase_tf[::-1], atol=1e-5
    )
    assert absorption[3, 10, 10] == np.abs(absorption).max() * np.sign(absorption[3, 10, 10])
    assert np.abs(phase[3]).max() < 1e-6 < np.abs(phase[1]).max()
    assert "not an intensity PSF" in capsys.readouterr().err


def test_psf_from_beads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beads that our own PSF made come back as that PSF; the file says how many were used."""
    microscope = Microscope(Objective(1.0, 1.33), 0.55)
    truth = compute_psf(microscope, Grid((21, 33, 33), 0.1, 0.25)).numpy()
    field = np.zeros((41, 160, 160), np.float32)
    rng = np.random.default_rng(0)
    for y in (25, 80, 135):
        for x in (25, 80, 135):
            z = 20 + int(rng.integers(-2, 3))
            field[z - 10 : z + 11, y - 16 : y + 17, x - 16 : x + 17] += truth / truth.max() * 800
    image = rng.poisson(field + 50).astype(np.uint16)
    scale = {"axes": "ZYX", "spacing": 0.25, "unit": "um"}
    tifffile.imwrite(tmp_path / "beads.tif", image, imagej=True, metadata=scale, resolution=(10, 10))
    assert psf("-o", tmp_path / "p.ome.tif", "--from-beads", tmp_path / "beads.tif", "--json") == 0
    facts = events(capsys)
    assert facts["used"] == 9 and facts["voxel_zyx_um"] == pytest.approx([0.25, 0.1, 0.1])
    assert facts["fwhm_zyx_um"][1] == pytest.approx(0.30, rel=0.05)
    measured = tifffile.imread(tmp_path / "p.ome.tif")
    assert measured.sum() == pytest.approx(1.0, abs=1e-4)
    half = [n // 2 for n in measured.shape]
    inner = truth[10 - min(half[0], 10) : 11 + min(half[0], 10), 10:23, 10:23]
    ours = measured[half[0] - min(half[0], 10) : half[0] + min(half[0], 10) + 1, half[1] - 6 : half[1] + 7,
                    half[2] - 6 : half[2] + 7]  # fmt: skip
    assert np.corrcoef(inner.ravel(), ours.ravel())[0, 1] > 0.995


BAD = [
    (("--na", "1.4", "--ni", "1.33"), "not below the immersion index"),
    (("--na", "-1"), "NA must be positive"),
    (("--na", "1.0", "--pixel", "0"), "--pixel: must be a positive length"),
    (("--na", "1.0", "--pixel", "-0.1"), "--pixel"),
    (("--na", "1.0", "--pixel", "65"), "in nm"),
    (("--na", "1.0", "--z-step", "-1"), "--z-step"),
    (("--na", "1.0", "--z-step", "200"), "in nm"),
    (("--na", "1.0", "--shape", "8", "16", "16"), "even"),
    (("--na", "1.0", "--shape", "0", "16", "16"), "at least 1"),
    (("--na", "1.0", "--wavelength", "0.52"), "another unit"),
    (("--na", "1.0", "--wavelength", "52000"), "another unit"),
    (("--na", "1.0", "--microscope", "confocal", "--wavelength-ex", "488", "--pinhole-au", "0"), "pinhole"),
    (("--na", "1.0", "--microscope", "confocal"), "--wavelength-ex"),
    (("--na", "1.0", "--microscope", "sted"), "--microscope"),
    (("--preset", "60x/1.2"), "40x/1.2w"),
    (("--na", "1.0", "--zernike", "-1=0.1"), "negative"),
    (("--na", "1.0", "--zernike", "4:0.1"), "must look like"),
    ((), "give the numerical aperture"),
    (("--na", "1.0", "--depth", "-2"), "depth"),
    (("--na", "1.0", "--bead-diameter", "0.1"), "--from-beads"),
    (("--na", "1.0", "--normalize", "area"), "--normalize"),
    (("--na", "1.0", "--wavelength", "0"), "between 250 and 1400 nm"),
    (("--na", "1.0", "--zernike", "100000=0.1"), "is above 495"),
    (("--na", "1.0", "--shape", "2001", "2001", "2001"), "of memory"),
    (("--na", "1.0", "--like", "nosuch.tif"), "no such file"),
    (("--from-beads", "nosuch.tif"), "no such file"),
    (("-o", "x" * 300 + ".tif", "--na", "1.0"), "too long"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str) -> None:
    """Exit 2, one line, nothing written."""
    assert psf("-o", tmp_path / "p.ome.tif", *arguments) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out
    assert not list(tmp_path.iterdir())


def test_what_is_read_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "beads.tif"
    image.write_bytes(b"raw data")
    for option in ("--from-beads", "--like"):
        assert psf("-o", image, option, image, "--overwrite") == 2
        assert "is the image that is read" in capsys.readouterr().err and image.read_bytes() == b"raw data"


def test_names_are_checked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "p.npz"
    taken.write_bytes(b"mine")
    assert psf("-o", taken, *WATER) == 2 and taken.read_bytes() == b"mine"
    assert "--overwrite" in capsys.readouterr().err
    assert psf("-o", tmp_path / "p.png", *WATER) == 2
    assert psf("-o", taken / "below.npz", *WATER) == 2
    assert psf("-o", tmp_path / "q.npz", *WATER, "--figure", tmp_path / "q.jpg") == 2
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr" / "thesis.txt").write_text("x")
    assert psf("-o", tmp_path / "folder.zarr", *WATER, "--overwrite") == 2
    assert psf("-o", taken, *WATER, "--overwrite") == 0 and taken.read_bytes() != b"mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.zarr", "p.npz"]
