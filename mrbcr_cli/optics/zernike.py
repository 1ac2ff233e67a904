"""Zernike polynomials over the pupil: OSA/ANSI single index, RMS-normalised.

Invariant: each polynomial but piston has mean 0 and variance 1 over the unit disc, so a coefficient is the RMS of its
aberration; the angle runs from +x (increasing column) to +y (increasing row).

Source: ANSI Z80.28; Thibos et al., J. Refract. Surg. 18:S652 (2002): j = (n (n + 2) + m) / 2; sine where m < 0.
"""

from __future__ import annotations

import math

import torch

from mrbcr_cli.errors import InputError

Tensor = torch.Tensor


def order(j: int) -> tuple[int, int]:
    """Return (n, m) of an OSA/ANSI index. Raises InputError for a negative one."""
    if j < 0:
        raise InputError(f"Zernike index {j} is negative; OSA/ANSI indices count from 0 (4 is defocus)")
    n = (math.isqrt(8 * j + 1) - 1) // 2
    return n, 2 * j - n * (n + 2)


def polynomial(j: int, rho: Tensor, phi: Tensor) -> Tensor:
    """Value of polynomial j at polar pupil coordinates (rho <= 1), of their shape and dtype."""
    n, m = order(j)
    a = abs(m)
    radial = torch.zeros_like(rho)
    for s in range((n - a) // 2 + 1):
        share = math.comb(n - s, s) * math.comb(n - 2 * s, (n - a) // 2 - s) * (-1) ** s
        radial = radial + share * rho ** (n - 2 * s)
    norm = math.sqrt((n + 1) * (1 if m == 0 else 2))
    return norm * radial * (torch.cos(a * phi) if m >= 0 else torch.sin(a * phi))


def parse_zernike(text: str) -> tuple[tuple[int, float], ...]:
    """Parse "4=0.1,11=-0.05" into (OSA/ANSI index, RMS waves) pairs. Raises InputError, naming what is wrong."""
    pairs = []
    for part in text.split(","):
        index, equals, value = part.partition("=")
        try:
            if not equals:
                raise ValueError
            pairs.append((int(index), float(value)))
        except ValueError:
            raise InputError(
                f"--zernike must look like 4=0.1,11=-0.05 (OSA/ANSI index = RMS waves), not {part.strip()!r}"
            ) from None
    return tuple(pairs)
