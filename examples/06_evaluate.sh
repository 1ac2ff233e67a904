#!/usr/bin/env bash
# Is the result nearer to the truth? Scores with confidence intervals, against methods that know the PSF.
#
#     examples/06_evaluate.sh [FOLDER]
set -euo pipefail
out=${1:-$(mktemp -d)}

# 1. A model on simulated pairs, where the truth is known. All three go to the split "test".
mrbcr simulate pairs -q -o "$out/test.zarr" --count 3 --patch 96 --splits 0 0 1 --seed 7
mrbcr evaluate --pairs "$out/test.zarr" -m widefield -o "$out/scores.json" --report "$out/scores.md"
# Richardson-Lucy and Wiener are given the true PSF and background. Three pairs are few: see the intervals.

# 2. Images of your own with their truth (a long exposure, another microscope): files, or folders.
mrbcr simulate stack -q -o "$out/raw.ome.tif" --specimen filaments --shape 1 192 192 --preset 20x/0.75 \
    --photons 150 --truth "$out/truth.ome.tif" --truth-fwhm 0.25
mrbcr deconvolve -q "$out/raw.ome.tif" -o "$out/sharp.ome.tif"
mrbcr evaluate "$out/sharp.ome.tif" --truth "$out/truth.ome.tif" --input "$out/raw.ome.tif" --figures "$out/figures"
ls "$out/figures"
