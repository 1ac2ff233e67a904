"""Make tests/data/psf_references.json: PSF values by brute force, independent of the package.

`python -m tests.optics.make_references`. The integrals of Gibson & Lanni (1991) and Aguet (2009) as they are printed,
by Simpson's rule with 400,001 points over u, where theta = alpha (1 - (1 - u)^3) crowds points at the edge of the
aperture; Bessel functions of scipy. Nothing is cancelled by hand: thicknesses of 170 um enter as they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.integrate import simpson
from scipy.special import jv

CASES: dict[str, dict[str, Any]] = {
    "air_0.5": {"na": 0.5, "ni": 1.0, "ns": 1.0, "wavelength": 0.6},
    "water_1.1": {"na": 1.1, "ni": 1.33, "ns": 1.33, "wavelength": 0.525},
    "oil_1.42": {"na": 1.42, "ni": 1.515, "ns": 1.515, "wavelength": 0.6},
    "oil_1.3_into_water_8um": {"na": 1.3, "ni": 1.515, "ns": 1.33, "depth": 8.0, "wavelength": 0.5},
    "oil_1.45_into_water_1um": {"na": 1.45, "ni": 1.515, "ns": 1.36, "depth": 1.0, "wavelength": 0.58},
    "air_0.75_wrong_coverslip": {"na": 0.75, "ni": 1.0, "ns": 1.33, "depth": 5.0, "wavelength": 0.55, "tg": 150.0},
    "water_1.15_off_design_index": {"na": 1.15, "ni": 1.36, "ns": 1.38, "depth": 4.0, "wavelength": 0.61, "ni0": 1.33},
}
Z_UM = (-1.5, -0.6, 0.0, 0.35, 1.2)
R_UM = (0.0, 0.08, 0.21, 0.5, 1.1, 2.3)


def table(case: dict[str, Any], model: str) -> list[list[float]]:
    """Intensity at Z_UM x R_UM over its value at z = 0, r = 0."""
    na, ni, ns, k = case["na"], case["ni"], case["ns"], 2 * np.pi / case["wavelength"]
    tg, depth, ni0 = case.get("tg", 170.0), case.get("depth", 0.0), case.get("ni0", ni)
    u = np.linspace(0.0, 1.0, 400_001)
    theta = np.arcsin(na / ni) * (1 - (1 - u) ** 3)
    slope = np.arcsin(na / ni) * 3 * (1 - u) ** 2
    sin, cos = np.sin(theta), np.cos(theta)
    q = ni * sin
    root = {n: np.sqrt((n**2 - q**2).astype(complex)) for n in {ni, ns, ni0, 1.515}}
    ti = ni * (170.0 / 1.515 + 150.0 / ni0 - tg / 1.515) - depth * ni / ns
    values = []
    for z in (0.0, *Z_UM):
        path = (ti - z) * ni * cos + depth * root[ns] + tg * root[1.515] - 170.0 * root[1.515] - 150.0 * root[ni0]
        wave = np.exp(1j * k * path) * slope
        row = []
        for r in (0.0, *R_UM):
            if model == "scalar":
                row.append(abs(simpson(wave * cos * sin * jv(0, k * q * r), x=u)) ** 2)
                continue
            ki, kg, ks = ni * cos, root[1.515], root[ns]
            ts = (2 * ki / (ki + kg)) * (2 * kg / (kg + ks))
            tp = (2 * ni * cos / (1.515 * cos + ni * kg / 1.515)) * (2 * kg / (ns * kg / 1.515 + 1.515 * ks / ns))
            share = np.sqrt(cos) * sin * wave
            parts = (share * (ts + tp * ks / ns), share * tp * q / ns, share * (ts - tp * ks / ns))
            fields = [simpson(part * jv(n, k * q * r), x=u) for n, part in enumerate(parts)]
            row.append(abs(fields[0]) ** 2 + 2 * abs(fields[1]) ** 2 + abs(fields[2]) ** 2)
        values.append(row)
    scaled = np.array(values) / values[0][0]
    return [[float(f"{v:.10g}") for v in row] for row in scaled[1:, 1:]]


def main() -> None:
    """Write the file."""
    references = {
        name: {"case": case, **{model: table(case, model) for model in ("scalar", "vectorial")}}
        for name, case in CASES.items()
    }
    path = Path(__file__).resolve().parents[1] / "data" / "psf_references.json"
    path.write_text(json.dumps({"z_um": Z_UM, "r_um": R_UM, "sets": references}, indent=1) + "\n")
    print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
