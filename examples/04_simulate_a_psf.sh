#!/usr/bin/env bash
# A point spread function from the numbers of an objective, and Richardson-Lucy with it.
#
#     examples/04_simulate_a_psf.sh [FOLDER]
#
# The networks need no PSF. Take an explicit method where you know yours and want no learned prior.
set -euo pipefail
out=${1:-$(mktemp -d)}

# The numbers stand on the objective (20x/0.75, dry) and in the protocol: emission, pixel, distance of planes.
# Of an oil objective you would also say the index of the sample and the depth: --ns 1.33 --depth 5.
optics=(--preset 20x/0.75 --wavelength 520 --pixel 0.16 --z-step 0.7)
mrbcr simulate psf -o "$out/psf.ome.tif" "${optics[@]}" --shape 9 81 81 --figure "$out/psf.png"

# An image that this objective would take, 16 planes, with its truth beside it (as fine as one may hope for).
mrbcr simulate stack -q -o "$out/cells.ome.tif" --specimen filaments --shape 16 96 96 "${optics[@]}" \
    --truth "$out/truth.ome.tif" --truth-fwhm 0.3

# Deconvolve in 3-D: the PSF has a depth, so planes are no longer taken one by one. The background is what no
# structure emits: the camera's offset of 100 counts, and 20 photons a pixel at 0.8 electrons and 2 counts each.
mrbcr deconvolve "$out/cells.ome.tif" -o "$out/cells_rl.ome.tif" --method richardson-lucy \
    --psf "$out/psf.ome.tif" --iterations 15 --background 132

# How much nearer to the truth? Compare the rows "fit", which forgive the unit of the truth.
mrbcr evaluate "$out/cells_rl.ome.tif" --truth "$out/truth.ome.tif" --input "$out/cells.ome.tif"
