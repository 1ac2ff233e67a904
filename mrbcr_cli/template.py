"""The commented YAML of `mrbcr init`: every option of a command, with its help, unit and default.

Invariant: no text is kept here twice: what an option does comes from its help on the command line, its value from the
settings, and the file that is printed means the defaults and what must be set, nothing else.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from mrbcr_cli.cli_help import help_text

WIDTH = 100
UNITS = {
    **{"PX": "px", "UM": "um", "NM": "nm", "SECONDS": "seconds", "MINUTES": "minutes", "SHARE": "share, 0 to 1"},
    **{"COUNTS": "counts", "PHOTONS": "photons", "ELECTRONS": "electrons", "AU": "Airy units", "RADIAN": "radian"},
    **{"BITS": "bits"},
}
"""What the metavars of numbers mean; N (how many), X, NA and INDEX have no unit."""


@dataclass(frozen=True)
class Template:
    """A command that takes --config: its words, its settings ("module:class"), and what has no default."""

    words: tuple[str, ...]
    settings: str
    usage: str
    needed: dict[str, Any] = field(default_factory=dict)


TEMPLATES = {
    "deconvolve": Template(
        ("deconvolve",), "mrbcr_cli.settings:DeconvolveSettings", "mrbcr deconvolve INPUT... -o OUTPUT -c run.yaml"
    ),
    "train": Template(
        ("train",),
        "mrbcr_cli.train.train_settings:TrainSettings",
        "mrbcr train -o FOLDER -c train.yaml",
        {"pairs": ["pairs.zarr"]},
    ),
    "simulate-pairs": Template(
        ("simulate", "pairs"),
        "mrbcr_cli.simulate.pairs_settings:PairsSettings",
        "mrbcr simulate pairs -o pairs.zarr -c pairs.yaml",
    ),
    "simulate-stack": Template(
        ("simulate", "stack"),
        "mrbcr_cli.simulate.stack_settings:StackSettings",
        "mrbcr simulate stack -o stack.ome.zarr -c stack.yaml",
        {"specimen": ["nuclei"], "shape": [16, 256, 256], "preset": "63x/1.4oil"},
    ),
    "simulate-psf": Template(
        ("simulate", "psf"),
        "mrbcr_cli.simulate.psf_file:PsfSettings",
        "mrbcr simulate psf -o psf.ome.tif -c psf.yaml",
        {"preset": "63x/1.4oil"},
    ),
}

EXAMPLES: dict[str, Any] = {
    **{"psf": "psf.tif", "psf_voxel_um": [0.2, 0.1, 0.1], "balance": 0.01, "channels": "0,2", "z": "4:20", "t": "0:10"},
    **{"axes": "ZYX", "series": 0, "range": [100, 4000], "percentiles": [0.1, 99.9], "output_dtype": "float32"},
    **{"output_format": "ome-tiff", "work_dir": "work", "tile_size": 1024, "tile_overlap": 128, "workers": 2},
    **{"cluster": "local", "block_timeout": 600, "walltime": "04:00:00", "queue": "gpu", "account": "lab"},
    **{"job_extra": ["--constraint=avx512"], "interface": "ib0"},
    **{"job_prologue": ["module load python", "source ~/mrbcr/bin/activate"]},
    **{"simulate": {"specimen": ["mixed"]}, "pairs": ["pairs.zarr"], "input_dir": "blurred", "target_dir": "sharp"},
    **{
        "npz": "pairs.npz",
        "init": "widefield",
        "minutes": 30,
        "patch": 128,
        "limits": {"fwhm_px": [2, 6]},
        "network": {"alpha": 8},
    },
    **{"domain": "widefield, PSF of 2 to 6 px", "trained_on": "my beads"},
    **{"source": ["sharp/*.tif"], "specimen": ["mixed"], "procedural": 0.5, "ni": 1.515, "ns": 1.38, "pixel": 0.1},
    **{"wavelength": 520, "wavelength_ex": 488, "na_illumination": 0.1, "zernike": {12: 0.05}, "photons": [20, 5000]},
    **{"microscope": "widefield", "preset": "63x/1.4oil", "like": "cells.ome.tif", "na": 1.4, "ni_design": 1.515},
    **{"ng_design": 1.515, "tg_design": 170, "z_step": 0.2, "shape": [33, 65, 65], "sampling": "pixel"},
    **{"centring": "voxel", "density": 1, "size": 1, "thickness": 5, "absorption": 0.3, "phase": 0.3},
    **{"truth": "truth.ome.zarr", "truth_fwhm": 0.2, "report": "report.html", "preview": "preview.png"},
}
"""Values for options whose default is none or found out: what could stand there."""
_EXAMPLES_OF = {"simulate-stack": {"source": "sharp.tif", "pixel": 0.1}}
_SHORT = {"intensity_range": "range"}
"""Where the name of a parameter is not that of its setting."""


def settings_class(template: Template) -> type[BaseModel]:
    """The settings of a command; what they need is imported now."""
    module, _, name = template.settings.partition(":")
    found: type[BaseModel] = getattr(import_module(module), name)
    return found


def yaml_template(name: str, command: Any) -> str:
    """The configuration of TEMPLATES[name], whose parser is `command` (typer's): comments and values."""
    template = TEMPLATES[name]
    fields = settings_class(template).model_fields
    panels: dict[str, list[str]] = {}
    parameters = {_SHORT.get(p.name, p.name): p for p in command.params}
    for setting, parameter in parameters.items():
        if setting in fields:
            panels.setdefault(parameter.rich_help_panel, []).append(setting)
    rest = [setting for setting in fields if setting not in parameters]
    lines = [
        f"# {template.usage}",
        "#",
        "# Every option with its default, or with an example where the default is none or found out. To set an option",
        '# remove the "#" before its name. Options on the command line win over this file.',
    ]
    for title, settings in [*panels.items(), *([("In a file only", rest)] if rest else [])]:
        lines += ["", f"# ---- {title.partition(';')[0]} ----"]
        for setting in settings:
            text = _text(parameters[setting]) if setting in parameters else _docstring(fields[setting])
            lines += ["", *textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")]
            given = template.needed.get(setting)
            value = given if given is not None else _value(name, setting, fields[setting])
            lines.append(f"{'' if given is not None else '#'}{setting.replace('_', '-')}: {_yaml(value)}")
    return "\n".join(lines) + "\n"


def _text(parameter: Any) -> str:
    text = help_text(parameter).removesuffix(" Required.")
    unit = UNITS.get(parameter.metavar or "")
    if parameter.is_flag and "Default:" not in text:
        text += " Default: no."
    return f"{text} Unit: {unit}." if unit else text


def _docstring(info: Any) -> str:
    return " ".join((info.description or "").split())


def _value(name: str, setting: str, info: Any) -> Any:
    default = info.get_default(call_default_factory=True)
    if default is PydanticUndefined or default in (None, (), {}, ""):
        return _EXAMPLES_OF.get(name, {}).get(setting, EXAMPLES.get(setting))
    if isinstance(default, tuple):
        # A range of one number is written as that number.
        return default[0] if len(default) == 2 and default[0] == default[1] else list(default)
    return default


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
