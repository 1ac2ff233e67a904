"""What an image's OME-XML says of the microscope that took it.

Invariant: pure functions from text to values; what the file does not state, or states without sense, is None.
Source: OME schema 2016-06 (Objective, ObjectiveSettings, Channel).
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.tiff_meta import local, parse_xml, positive, unit_name
from mrbcr_cli.images.tiff_ome import um_per_unit

_MODES = {
    "WideField": "widefield",
    "LaserScanningConfocalMicroscopy": "confocal",
    "SpinningDiskConfocal": "confocal",
    "SlitScanConfocal": "confocal",
    "MultiPhotonMicroscopy": "two-photon",
    "SecondHarmonicGenerationImaging": "two-photon",
    "SPIM": "light-sheet",
    "BrightField": "brightfield",
}
_IMMERSION = {
    "air": 1.0,
    "water": 1.33,
    "waterdipping": 1.33,
    "oil": 1.515,
    "glycerol": 1.46,
    "multi": None,
}


@dataclass(frozen=True)
class RecordedOptics:
    """Optics of one channel, as far as the file tells."""

    na: float | None = None
    n_immersion: float | None = None
    emission_nm: float | None = None
    excitation_nm: float | None = None
    microscope: str | None = None
    channel: str = ""


def read_optics(ome_xml: str, *, path: str, series: int = 0, channel: int = 0) -> RecordedOptics:
    """Return the optics of one channel of one image. Raises InputError for broken XML or a channel it does not have."""
    root = parse_xml(ome_xml, path=path)
    images = [e for e in root if local(e.tag) == "Image"]
    if series >= len(images):
        raise InputError(f"{path}: its OME-XML describes {len(images)} images, there is no number {series}")
    image = images[series]
    channels = [e for e in image.iter() if local(e.tag) == "Channel"]
    if channels and channel >= len(channels):
        raise InputError(f"{path}: has {len(channels)} channels, there is no channel {channel}")
    this = channels[channel] if channels else None
    settings = next((e for e in image if local(e.tag) == "ObjectiveSettings"), None)
    objective = _objective(root, settings)
    immersion = objective.get("Immersion", "") if objective is not None else ""
    index = positive(settings.get("RefractiveIndex")) if settings is not None else None
    return RecordedOptics(
        na=positive(objective.get("LensNA")) if objective is not None else None,
        n_immersion=index if index is not None and index >= 1.0 else _IMMERSION.get(immersion.lower()),
        emission_nm=_wavelength_nm(this, "EmissionWavelength"),
        excitation_nm=_wavelength_nm(this, "ExcitationWavelength"),
        microscope=None if this is None else _MODES.get(this.get("AcquisitionMode", "")),
        channel="" if this is None else this.get("Name", ""),
    )


def _objective(root: ElementTree.Element, settings: ElementTree.Element | None) -> ElementTree.Element | None:
    """The objective that the settings name; the only one of the file where they name none."""
    found = [e for e in root.iter() if local(e.tag) == "Objective"]
    if settings is None:
        return found[0] if len(found) == 1 else None
    return next((e for e in found if e.get("ID") == settings.get("ID")), None)


def _wavelength_nm(channel: ElementTree.Element | None, name: str) -> float | None:
    if channel is None:
        return None
    value, factor = positive(channel.get(name)), um_per_unit(unit_name(channel.get(f"{name}Unit"), "nanometer"))
    return value * factor * 1e3 if value is not None and factor is not None else None
