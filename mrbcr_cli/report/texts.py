"""Sentences of a page: the method, what an image was found to be, and what to cite.

Invariant: pure functions of an output's provenance; what it does not hold is not said.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

_MRBCR = (
    "R. Li, M. Kudryashev, A. Yakimovich. Solving the inverse problem of microscopy deconvolution with a residual "
    "Beylkin-Coifman-Rokhlin neural network. ECCV 2024, LNCS 15133, doi 10.1007/978-3-031-73226-3_22 (the network)."
)
_RICHARDSON = (
    "W. H. Richardson. Bayesian-based iterative method of image restoration. J. Opt. Soc. Am. 62:55-59, 1972; "
    "L. B. Lucy. An iterative technique for the rectification of observed distributions. Astron. J. 79:745-754, 1974 "
    "(Richardson-Lucy)."
)
_TV = (
    "N. Dey et al. Richardson-Lucy algorithm with total variation regularization for 3D confocal microscope "
    "deconvolution. Microsc. Res. Tech. 69:260-266, 2006 (total variation)."
)
_WIENER = (
    "N. Wiener. Extrapolation, Interpolation, and Smoothing of Stationary Time Series. Wiley, 1949 (Wiener filter)."
)
_KOHO = (
    "S. Koho et al. Fourier ring correlation simplifies image restoration in fluorescence microscopy. "
    "Nat. Commun. 10:3103, 2019 (ring correlation of one image, and its calibration)."
)
_NAMES = {"richardson-lucy": "Richardson-Lucy", "wiener": "Wiener filter", "blind": "blind Richardson-Lucy"}


def _channels(record: Json) -> list[Json]:
    return [c for c in record.get("channels") or () if isinstance(c, dict)]


def method_words(record: Json) -> str:
    """The methods of an output in a few words."""
    found = []
    for channel in _channels(record):
        method = str(channel.get("method", ""))
        found.append(f"network {channel.get('model')}" if method == "network" else _NAMES.get(method, method))
    return ", ".join(dict.fromkeys(found))


def citations(record: Json) -> list[str]:
    """References of what made the output and measured it."""
    methods = {str(c.get("method")) for c in _channels(record)}
    found = [_MRBCR] if "network" in methods else []
    if methods & {"richardson-lucy", "blind"}:
        found.append(_RICHARDSON)
        if any(c.get("tv") for c in _channels(record)):
            found.append(_TV)
    if "wiener" in methods:
        found.append(_WIENER)
    version = record.get("version")
    return [*found, _KOHO, f"The software: mrbcr {version}; name the model and its SHA-256, both in the table above."]


def domain_words(estimate: Json) -> str:
    """What `domain.DomainEstimate` found, in words."""
    kinds = {
        "noise": "no structure above the noise",
        "constant": "constant",
        "labels": "looks like labels or a mask",
        "unknown": "too small to tell",
    }
    content = str(estimate.get("content"))
    parts = [kinds[content]] if content in kinds else []
    width, least, most = (estimate.get(key) for key in ("fwhm_px", "fwhm_least_px", "fwhm_most_px"))
    if width is not None:
        between = f" (between {least:.2g} and {most:.2g})" if least is not None and most is not None else ""
        parts.append(f"blur about {width:.2g} px FWHM{between}")
    if estimate.get("photons_peak") is not None:
        parts.append(f"about {_two_digits(estimate['photons_peak']):,.0f} photons at the peak")
    if estimate.get("snr_peak") is not None:
        parts.append(f"peak over noise {estimate['snr_peak']:.2g}")
    if estimate.get("saturated_share"):
        parts.append(f"{100 * estimate['saturated_share']:.2g} % at the largest value")
    return ", ".join(parts) or "nothing could be told"


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
