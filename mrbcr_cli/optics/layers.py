"""The path of light through sample, coverslip and immersion: phase and transmission against the angle in the pupil.

Invariant: everything is a function of q = n sin(theta), which all layers share (Snell), so it serves the radial and the
pupil integrals alike; beyond the critical angle of the sample the wave decays and its root is imaginary, never cut.
"""

from __future__ import annotations

import math

import torch

from mrbcr_cli.optics.microscope import Microscope, Objective

Tensor = torch.Tensor


def _root(index: float, q2: Tensor) -> Tensor:
    """n cos(theta) in a layer: sqrt(n^2 - q^2), on the branch that decays; complex128."""
    return torch.sqrt(torch.complex(index**2 - q2, torch.zeros_like(q2)))


def _thickness_term(thickness_um: float, index: float, design_um: float, design_index: float, q2: Tensor) -> Tensor:
    """t sqrt(n^2 - q^2) - t0 sqrt(n0^2 - q^2), written so that equal layers cancel to the last bit."""
    actual, design = _root(index, q2), _root(design_index, q2)
    by_index = (index**2 - design_index**2) / (actual + design) if index != design_index else torch.zeros_like(actual)
    return thickness_um * by_index + (thickness_um - design_um) * design


def fixed_path_um(objective: Objective, q: Tensor) -> Tensor:
    """Optical path difference in um at the nominal focus, complex128 of q's shape; the stage adds -s * axial_root(q).

    Gibson and Lanni (1991), eq. 9, with the immersion layer so thick that a paraxial ray from the emitter is in focus
    (Aguet, PhD thesis, EPFL 2009, eq. 3.8): ti = ti0' - depth ni / ns, ti0' = ni (tg0/ng0 + ti0/ni0 - tg/ng).
    An imaginary part is the decay of supercritical light between emitter and coverslip.
    """
    q2 = q.double() ** 2
    ni, ns, ng = objective.n_immersion, objective.ns, objective.n_coverslip
    ni0, ng0, tg0 = objective.design
    tg, ti0 = objective.coverslip_um, objective.working_distance_um
    path = torch.zeros_like(q2, dtype=torch.complex128)
    if objective.depth_um > 0:
        path = path + objective.depth_um * (_root(ns, q2) - (ni / ns) * _root(ni, q2))
    immersion_um = ni * (tg0 / ng0 + ti0 / ni0 - tg / ng)
    path = path + _thickness_term(tg, ng, tg0, ng0, q2)
    return path + _thickness_term(immersion_um, ni, ti0, ni0, q2)


def axial_root(microscope: Microscope, q: Tensor) -> Tensor:
    """What a stage shift of 1 um adds to the path (negative): n cos(theta) in the immersion, float64.

    Born and Wolf's paraxial model has n - q^2 / (2 n) in its place.
    """
    n = microscope.objective.n_immersion
    if microscope.model == "born-wolf":
        return n - q**2 / (2 * n)
    return torch.sqrt((n**2 - q**2).clamp_min(0.0))


def transmissions(microscope: Microscope, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ts, tp, cos, sin): Fresnel transmission through both faces of the coverslip and the angle in the sample.

    Complex128 of q's shape, light going from the immersion into the sample (Aguet 2009, eqs. 3.22 to 3.25; emission is
    the same by reciprocity). Without `fresnel` both are 1.
    """
    objective = microscope.objective
    q2 = q.double() ** 2
    ni, ng, ns = objective.n_immersion, objective.n_coverslip, objective.ns
    ki, kg, ks = _root(ni, q2), _root(ng, q2), _root(ns, q2)
    cos_s, sin_s = ks / ns, torch.complex(q.double() / ns, torch.zeros_like(q2))
    if not microscope.fresnel:
        one = torch.ones_like(ks)
        return one, one, cos_s, sin_s
    ts = 2 * ki / (ki + kg) * 2 * kg / (kg + ks)
    tp = 2 * ki / (ki * ng / ni + kg * ni / ng) * 2 * kg / (kg * ns / ng + ks * ng / ns)
    return ts, tp, cos_s, sin_s


def critical_angles(objective: Objective) -> list[float]:
    """Angles in the immersion where light becomes evanescent in a layer: the integrands have a kink there."""
    largest = math.asin(objective.na / objective.n_immersion)
    found = {
        math.asin(index / objective.n_immersion)
        for index in (objective.ns, objective.n_coverslip)
        if index < objective.n_immersion
    }
    return sorted(angle for angle in found if angle < largest)
