"""What `mrbcr simulate stack` will do, decided before anything is written: optics, specimen, kernel, blocks, records.

Invariant: a plan that exists can be carried out; the settings in its record are complete, so that they make the same
stack again without the image of --like, and its fingerprint names all that its pixels follow from.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrbcr_cli import __version__
from mrbcr_cli.capacity import available_memory_bytes, cpu_count
from mrbcr_cli.configuration import dump_yaml
from mrbcr_cli.errors import InputError
from mrbcr_cli.images import SourceSpec, find_source
from mrbcr_cli.images.base import OutputSpec
from mrbcr_cli.optics.brightfield import Transmission
from mrbcr_cli.optics.measure import FWHM_PER_SIGMA
from mrbcr_cli.simulate.optics_settings import Setup, set_up
from mrbcr_cli.simulate.psf_file import read_like
from mrbcr_cli.simulate.stack_blocks import Job
from mrbcr_cli.simulate.stack_grid import choose_grid, worker_bytes
from mrbcr_cli.simulate.stack_kernel import Imaging, make_imaging
from mrbcr_cli.simulate.stack_light import Light, SpecimenLight, Survey, VolumeLight, survey_volume
from mrbcr_cli.simulate.stack_settings import RUN_ONLY, StackSettings, check_size
from mrbcr_cli.specimens import chosen_style
from mrbcr_cli.workfolder import LocalTarget

DEFAULT_CONTRAST = {"absorption": 0.3, "phase": 0.3}
_LARGEST_BLUR_PX = 64
_DRIVER_BYTES = 450_000_000
"""The process that plans and writes the ledger, with torch."""


@dataclass(frozen=True, eq=False)
class StackPlan:
    """A decided stack."""

    settings: StackSettings
    """With everything that --like said or that was assumed."""
    setup: Setup
    imaging: Imaging
    job: Job
    spec: OutputSpec
    truth_spec: OutputSpec
    fingerprint: str
    specimen: dict[str, Any]
    """What is in it, JSON-able."""
    workers: int
    worker_bytes: int
    notes: tuple[str, ...]

    @property
    def expected_bytes(self) -> int:
        """Memory of the whole process tree at its peak."""
        return _DRIVER_BYTES + self.workers * self.worker_bytes


def source_of(settings: StackSettings) -> SourceSpec | None:
    """The user's volume; None for a specimen. Raises InputError where there is nothing to read."""
    return None if settings.source is None else find_source(str(settings.source))


def plan_stack(settings: StackSettings, source: SourceSpec | None, target: LocalTarget) -> StackPlan:
    """Decide everything. Raises InputError for what is impossible; writes nothing."""
    survey = None if source is None else survey_volume(source)
    recorded, scale = read_like(settings)
    if survey is not None:
        scale = tuple(a if a is not None else b for a, b in zip(survey.scale_zyx_um, scale, strict=True))
    setup = set_up(settings, recorded, scale)
    contrast = _contrast(settings, setup)
    given = {"na": recorded.na, "ni": recorded.n_immersion, "microscope": recorded.microscope} if recorded else {}
    if recorded is not None:
        given |= {"wavelength": recorded.emission_nm, "wavelength_ex": recorded.excitation_nm}
    told = {name: value for name, value in given.items() if value is not None and getattr(settings, name) is None}
    settings = settings.model_copy(
        update={**told, **contrast, "like": None, "pixel": setup.pixel_um, "z_step": setup.z_step_um}
    )
    shape = settings.shape if survey is None else survey.shape
    if shape is None:
        raise InputError("give --shape Z Y X, the size of the stack in voxels")
    check_size(shape)
    voxel = (setup.z_step_um, setup.pixel_um, setup.pixel_um)
    light, specimen = _light(settings, source, survey, shape, voxel)
    low, high = light.planes
    imaging = make_imaging(
        setup, max(shape[0] - 1 - low, high - 1), contrast.get("absorption", 0.0), contrast.get("phase", 0.0)
    )
    job = _job(settings, setup, imaging, light, shape, target)
    notes = [*setup.notes, *(survey.notes if survey is not None else ()), *imaging.notes]
    needed = worker_bytes(job.grid, imaging.kernel, light.planes, job.truth_store is not None)
    workers = _workers(settings, needed, len(job.grid))
    fingerprint = _fingerprint(settings, survey)
    record = {"tool": "mrbcr", "version": __version__, "fingerprint": fingerprint}
    spec, truth_spec = _specs(job, shape, voxel, target.path, record)
    return StackPlan(
        settings, setup, imaging, job, spec, truth_spec, fingerprint, specimen, workers, needed, tuple(notes)
    )


def _contrast(settings: StackSettings, setup: Setup) -> dict[str, float]:
    """What a brightfield specimen does to the light, with the defaults; empty for fluorescence."""
    if not isinstance(setup.optics, Transmission):
        for name in DEFAULT_CONTRAST:
            if getattr(settings, name) is not None:
                raise InputError(f"--{name} belongs to --microscope brightfield, this is {setup.kind}; leave it out")
        return {}
    chosen = {
        name: usual if getattr(settings, name) is None else float(getattr(settings, name))
        for name, usual in DEFAULT_CONTRAST.items()
    }
    if not any(chosen.values()):
        raise InputError("--absorption and --phase are both 0: the specimen is invisible; give one of them")
    return chosen


def _light(
    settings: StackSettings,
    source: SourceSpec | None,
    survey: Survey | None,
    shape: tuple[int, int, int],
    voxel: tuple[float, float, float],
) -> tuple[Light, dict[str, Any]]:
    if source is not None and survey is not None:
        facts = {
            "source": Path(source.label).name,
            "fingerprint": survey.fingerprint,
            "lowest": survey.lowest,
            "largest": survey.largest,
        }
        return VolumeLight(source, shape, 1 / survey.largest), facts
    thickness = settings.thickness if settings.thickness is not None else shape[0] * voxel[0]
    specimens = settings.specimens(thickness)
    listed = [
        {**asdict(s), "style": chosen_style(s), "light": light}
        for s, light in zip(specimens, settings.weights, strict=True)
    ]
    return SpecimenLight(specimens, settings.weights, shape[0], voxel, thickness), {"specimens": listed}


def _job(
    settings: StackSettings,
    setup: Setup,
    imaging: Imaging,
    light: Light,
    shape: tuple[int, int, int],
    target: LocalTarget,
) -> Job:
    sigma = (0.0, 0.0, 0.0)
    if settings.truth_fwhm is not None:
        z, y = (settings.truth_fwhm / FWHM_PER_SIGMA / step for step in (setup.z_step_um, setup.pixel_um))
        if max(z, y) > _LARGEST_BLUR_PX / FWHM_PER_SIGMA:
            raise InputError(f"--truth-fwhm {settings.truth_fwhm:g}: is more than {_LARGEST_BLUR_PX} voxels wide")
        sigma = (z if shape[0] > 1 else 0.0, y, y)
    return Job(
        light=light,
        kernel=imaging.kernel,
        grid=choose_grid(shape, imaging.kernel, light.planes),
        camera=settings.camera(),
        scmos=settings.scmos,
        seed=settings.seed,
        photons=settings.photons,
        background=settings.background,
        transmitted=isinstance(setup.optics, Transmission),
        truth_sigma_zyx=sigma,
        truth_dtype=settings.truth_dtype,
        store=target.store,
        truth_store=None if settings.no_truth else target.partial / "image.truth.ome.zarr",
        folder=target.partial,
    )


def _workers(settings: StackSettings, needed: int, blocks: int) -> int:
    """What the user says, else the cores that memory allows; never more than blocks."""
    if settings.workers is not None:
        return min(settings.workers, blocks)
    room = int(0.7 * available_memory_bytes()) - _DRIVER_BYTES
    return max(1, min(cpu_count(), room // needed, blocks))


def _fingerprint(settings: StackSettings, survey: Survey | None) -> str:
    """SHA-256 of the version, all settings that change a pixel, and the user's volume."""
    values = json.loads(settings.model_dump_json(exclude={*RUN_ONLY, "source"}))
    values |= {"version": __version__, "with_truth": not settings.no_truth}
    values["volume"] = None if survey is None else survey.fingerprint
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _specs(
    job: Job,
    shape: tuple[int, int, int],
    voxel: tuple[float, float, float],
    path: Path,
    record: dict[str, Any],
) -> tuple[OutputSpec, OutputSpec]:
    spec = OutputSpec(
        axes="ZYX",
        shape=shape,
        dtype=job.camera.dtype,
        stored_axes="ZYX",
        scale=voxel,
        units=("micrometer", "micrometer", "micrometer"),
        name=SourceSpec((str(path),), str(path)).stem,
        provenance=record,
    )
    return spec, replace(spec, dtype=np.dtype(job.truth_dtype), name=f"{spec.name} truth")


def settings_yaml(settings: StackSettings) -> str:
    """The settings that make the same pixels again, as YAML for -c."""
    shown = settings.model_copy(update={"truth": None, "workers": None})
    return dump_yaml(shown)


def provenance(plan: StackPlan, command: str, light_scale: dict[str, Any]) -> dict[str, Any]:
    """What the stack says of itself; JSON-able."""
    optics = plan.setup.optics
    return {
        **plan.spec.provenance,
        "command": command,
        "kind": "stack",
        "microscope": plan.setup.kind,
        "na": plan.setup.na,
        "wavelength_nm": round(1e3 * optics.wavelength_um, 6),
        "seed": plan.settings.seed,
        "specimen": plan.specimen,
        "optics": asdict(optics),
        "psf": {**plan.imaging.facts, "sampling": plan.imaging.sampling},
        "camera": {**asdict(plan.job.camera), "scmos": plan.job.scmos},
        "light": light_scale,
        "grid": plan.job.grid.to_dict(),
        "yaml": settings_yaml(plan.settings),
        "notes": list(plan.notes),
    }


def truth_meaning(plan: StackPlan) -> str:
    """In one sentence what the truth's numbers are, and at which resolution."""
    if plan.job.transmitted:
        contrast = plan.settings
        unit = (
            f"share of the densest column: times {contrast.absorption:g} the light absorbed, times {contrast.phase:g} "
            "the delay in radian"
        )
    else:
        unit = "photons that the voxel sends to the image plane it is brightest in"
    if plan.settings.truth_fwhm is None:
        return f"{unit}; resolution: the voxel"
    return f"{unit}; blurred by a Gaussian of {plan.settings.truth_fwhm:g} um FWHM along z, y and x"


def describe_plan(plan: StackPlan, target: LocalTarget, truth: Path | None) -> dict[str, Any]:
    """A plan as JSON-able facts, for --dry-run."""
    voxels = math.prod(plan.spec.shape)
    return {
        "output": str(target.path),
        "truth": None if truth is None else str(truth),
        "axes": "ZYX",
        "shape": list(plan.spec.shape),
        "dtype": plan.spec.dtype.name,
        "voxel_zyx_um": list(plan.spec.scale),
        "bytes": voxels * plan.spec.dtype.itemsize,
        "truth_bytes": 0 if truth is None else voxels * plan.truth_spec.dtype.itemsize,
        "blocks": len(plan.job.grid),
        "block_shape": list(plan.job.grid.block_shape),
        "workers": plan.workers,
        "expected_memory_bytes": plan.expected_bytes,
        "psf": plan.imaging.facts,
        "fingerprint": plan.fingerprint,
        "yaml": settings_yaml(plan.settings),
        "notes": list(plan.notes),
    }
