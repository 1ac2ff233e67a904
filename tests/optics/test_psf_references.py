"""PSFs against independent programs (shared/psf, where it is here) and against brute force (committed)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mrbcr_cli.optics.measure import profile_fwhm, psf_fwhm_um
from mrbcr_cli.optics.microscope import Grid, Microscope, Objective
from mrbcr_cli.optics.psf import compute_psf
from mrbcr_cli.optics.radial import intensity_table

BRUTE = json.loads((Path(__file__).resolve().parents[1] / "data" / "psf_references.json").read_text())


@pytest.mark.parametrize("model", ["scalar", "vectorial"])
@pytest.mark.parametrize("name", list(BRUTE["sets"]))
def test_agrees_with_brute_force(name: str, model: Any) -> None:
    case = BRUTE["sets"][name]["case"]
    objective = Objective(
        na=case["na"],
        n_immersion=case["ni"],
        n_sample=case["ns"],
        depth_um=case.get("depth", 0.0),
        coverslip_um=case.get("tg", 170.0),
        coverslip_design_um=170.0,
        n_immersion_design=case.get("ni0"),
    )
    microscope = Microscope(objective, case["wavelength"], model=model)
    z, r = (torch.tensor(BRUTE[k], dtype=torch.float64) for k in ("z_um", "r_um"))
    ours = intensity_table(microscope, case["wavelength"], z, r)
    unit = intensity_table(microscope, case["wavelength"], torch.zeros(1), torch.zeros(1))
    expected = np.array(BRUTE["sets"][name][model])
    assert np.abs((ours / unit).numpy() - expected).max() < 1e-6 * max(expected.max(), 1.0)


def load(shared: Path, prefix: str) -> list[tuple[str, dict[str, Any], dict[str, np.ndarray]]]:
    """(set/program, parameters, arrays) of all sets that begin with `prefix`."""
    manifest = json.loads((shared / "psf" / "manifest.json").read_text())
    found = []
    for name, entry in manifest["sets"].items():
        if name.startswith(prefix):
            for program, file in entry["files"].items():
                with np.load(shared / "psf" / file["file"]) as arrays:
                    found.append((f"{name}/{program}", entry["params"], {k: arrays[k] for k in arrays.files}))
    return found


def differences(ours: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Largest difference at unit maximum, and RMS difference over RMS at unit sum."""
    a, b = (v.astype(np.float64) for v in (ours, reference))
    largest = float(np.abs(a / a.max() - b / b.max()).max())
    a, b = a / a.sum(), b / b.sum()
    return largest, float(np.sqrt(((a - b) ** 2).sum() / (b**2).sum()))


def psf(params: dict[str, Any], shape: tuple[int, ...], sampling: Any = "point", **more: Any) -> np.ndarray:
    """Our PSF for the parameters of a set."""
    objective = Objective(
        params.get("NA", params.get("NA_det", 1.0)), params["ni"], params["ns"], depth_um=params.get("pz", 0.0)
    )
    wavelength = params.get("wvl", params.get("wvl_em", 0.5))
    grid = Grid(tuple(int(n) for n in shape), params["dxy"], params["dz"], sampling)  # type: ignore[arg-type]
    return compute_psf(Microscope(objective, wavelength, **more), grid).numpy()


WIDEFIELD: dict[str, tuple[Any, dict[str, Any], float, float]] = {
    "arbiter/scalar_point": ("point", {"model": "scalar"}, 1e-4, 1e-4),
    "arbiter/scalar_pixel": ("pixel", {"model": "scalar"}, 1e-4, 1e-4),
    "arbiter/vectorial_point": ("point", {}, 1e-4, 1e-4),
    "arbiter/vectorial_pixel": ("pixel", {}, 1e-4, 1e-4),
    "arbiter/vectorial_nofresnel_point": ("point", {"fresnel": False}, 1e-4, 1e-4),
    "arbiter/scalar_aplanatic_point": ("point", {"model": "scalar", "aplanatic": True}, 1e-4, 1e-4),
    "arbiter/bornwolf_pixel": ("pixel", {"model": "born-wolf"}, 1e-4, 1e-4),
    "dw_bw/bornwolf": ("pixel", {"model": "born-wolf"}, 1e-3, 2e-3),
    "psf_generator/scalar_spherical": ("point", {"model": "scalar"}, 1e-3, 2e-3),
    "psf_generator/vectorial_spherical": ("point", {"fresnel": False}, 1e-3, 2e-3),
    "psfmodels/scalar_sf3": ("pixel", {"model": "scalar"}, 5e-3, 1.0),
    "psfmodels/vectorial_sf3": ("pixel", {}, 5e-3, 1.0),
    "microscpsf/scalar": ("point", {"model": "scalar"}, 1e-2, 1.5e-2),
}


def test_widefield_sets(shared: Path) -> None:
    """Every array of every widefield set within the tolerances of OPTICS.md; FWHM too."""
    compared = 0
    for name, params, arrays in load(shared, "W"):
        supercritical = params["NA"] > params["ns"]
        for array, reference in arrays.items():
            key = f"{name.split('/')[1]}/{array}"
            if key not in WIDEFIELD:
                continue
            if "microscpsf" in key and params["NA"] / params["wvl"] >= 2.4:
                continue  # its Bessel basis is incomplete there
            if "psf_generator" in key and supercritical and params["pz"] > 0:
                continue  # it drops the evanescent decay
            sampling, more, largest, rms = WIDEFIELD[key]
            if "psfmodels" in key and supercritical:
                largest = 1.5e-2
            ours = psf(params, reference.shape, sampling, **more)
            found = differences(ours, reference)
            assert found[0] <= largest and found[1] <= rms, f"{name} {array}: {found}"
            voxel = (params["dz"], params["dxy"], params["dxy"])
            limit = 0.01 if supercritical else 0.005
            if "arbiter" in key or "psf_generator" in key:
                for mine, theirs in zip(psf_fwhm_um(ours, voxel), psf_fwhm_um(reference, voxel), strict=True):
                    assert (mine is None) == (theirs is None)
                    assert mine is None or abs(mine / (theirs or 1.0) - 1) <= limit, f"{name} {array}"
            compared += 1
    assert compared >= 30


def test_confocal_and_two_photon_sets(shared: Path) -> None:
    models: dict[str, dict[str, Any]] = {
        "scalar": {"model": "scalar"},
        "vectorial": {},
        "vectorial_nofresnel": {"fresnel": False},
    }
    for name, params, arrays in [*load(shared, "C"), *load(shared, "T")]:
        if not name.endswith("arbiter"):
            continue
        kind = "confocal" if name.startswith("C") else "two-photon"
        for array, reference in arrays.items():
            more = models[array] | {"kind": kind, "wavelength_ex_um": params["wvl_ex"]}
            if kind == "confocal":
                more["pinhole_au"] = params["pinhole_au"]
            for zernike in ((), ((4, 0.0),)):  # radial tables, then the pupil
                ours = psf(params, reference.shape, "point", zernike_waves=zernike, **more)
                limit = 2e-3 if kind == "confocal" else 1e-3
                assert differences(ours, reference)[0] <= limit / 10, f"{name} {array} {zernike}"


def test_zernike_sets(shared: Path) -> None:
    from mrbcr_cli.optics.pupil import aberrated_intensity

    singles = {"tilt_y_j1": 1, "tilt_x_j2": 2, "astig_oblique_j3": 3, "defocus_j4": 4, "astig_vertical_j5": 5}
    singles |= {"coma_y_j7": 7, "coma_x_j8": 8, "spherical_j12": 12}
    mix = {3: 0.3, 5: -0.4, 7: 0.5, 8: 0.2, 12: 0.6}
    for name, params, arrays in load(shared, "Z"):
        if not name.endswith("arbiter"):
            continue
        microscope = Microscope(Objective(params["NA"], params["ni"], params["ns"]), params["wvl"], model="scalar")
        shape = next(iter(arrays.values())).shape
        grid = Grid(tuple(int(n) for n in shape), params["dxy"], params["dz"], "point")  # type: ignore[arg-type]
        axes = [grid.offsets_um(axis) for axis in range(3)]
        flat = aberrated_intensity(microscope, params["wvl"], *axes).max()
        for array, reference in arrays.items():
            stem, _, unit = array.rpartition("_")
            if unit != "rms":
                continue
            radians = mix if stem == "mix" else {singles[stem]: 1.0}
            waves = torch.tensor(list(radians.values()), dtype=torch.float64) / (2 * np.pi)
            ours = aberrated_intensity(microscope, params["wvl"], *axes, list(radians), waves) / flat
            assert float((ours - torch.from_numpy(reference)).abs().max()) <= 1e-3, f"{name} {array}"


def test_light_sheet_set(shared: Path) -> None:
    """The detection agrees; the product within what the reference's own sheet, swept over 5 um only, leaves open."""
    for _, params, arrays in load(shared, "L"):
        params = params | {"wvl": params["wvl_em"]}
        shape = arrays["detection"].shape
        assert differences(psf(params, shape, "pixel"), arrays["detection"])[0] <= 5e-3
        sheet = {"kind": "light-sheet", "wavelength_ex_um": params["wvl_ex"], "na_illumination": params["NA_ill"]}
        swept = psf(params, shape, "pixel", sheet="swept", **sheet)
        assert differences(swept, arrays["total"])[0] <= 5e-3
        gaussian = psf(params, shape, "pixel", **sheet)
        assert differences(gaussian, arrays["total"])[0] <= 4e-2


@pytest.mark.parametrize("na", [0.02, 0.1, 0.3])
def test_airy_pattern(na: float) -> None:
    """In focus, scalar: FWHM 0.5145 lambda / NA and first zero at 0.6098 lambda / NA, within 0.2 %."""
    microscope = Microscope(Objective(na, 1.0), 0.5, model="scalar")
    unit = 0.5 / na
    r = torch.linspace(0, unit, 2001, dtype=torch.float64)
    line = intensity_table(microscope, 0.5, torch.zeros(1), r)[0].numpy()
    both = np.concatenate([line[:0:-1], line])
    width = profile_fwhm(both, unit / 2000)
    assert width == pytest.approx(0.5145 * unit, rel=2e-3)
    zero = float(r[int(np.argmin(line[1000:1400])) + 1000])
    assert zero == pytest.approx(0.6098 * unit, rel=2e-3)
