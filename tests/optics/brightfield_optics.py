"""The two brightfield microscopes of the tests: a dry and an oil objective, each with a condenser narrower than itself.

They are those of the reference files.
"""

from __future__ import annotations

from mrbcr_cli.optics.brightfield import Transmission

DRY = Transmission(na=0.75, na_illumination=0.5, wavelength_um=0.55, immersion_index=1.0)
OIL = Transmission(na=1.4, na_illumination=0.9, wavelength_um=0.55, immersion_index=1.515)
