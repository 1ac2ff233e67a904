#!/usr/bin/env bash
# A whole folder, and a folder of planes that is one stack.
#
#     examples/02_whole_folder.sh [FOLDER]
set -euo pipefail
out=${1:-$(mktemp -d)}
mkdir -p "$out/day1"

# Three images to work on. Skip this with data of your own.
for seed in 1 2 3; do
    mrbcr simulate stack -q -o "$out/day1/image$seed.ome.tif" --specimen nuclei --shape 1 128 128 \
        --preset 20x/0.75 --seed "$seed" --no-truth
done

# Each image is a run of its own. With several inputs the output is a folder.
mrbcr deconvolve "$out"/day1/*.ome.tif -o "$out/sharp" --output-format ome-tiff

# One of them fails? The others are done, the exit code is 3, and the same command does the rest.
# So it is safe to add images to day1 and to run the line above again: what is finished is skipped.
mrbcr deconvolve "$out"/day1/*.ome.tif -o "$out/sharp" --output-format ome-tiff

# Planes in single files (plane1.tif, plane2.tif, ...) are one stack: name the folder, or quote the pattern.
mkdir -p "$out/planes"
cp "$out/day1/image1.ome.tif" "$out/planes/plane1.tif"
cp "$out/day1/image2.ome.tif" "$out/planes/plane2.tif"
mrbcr deconvolve "$out/planes/*.tif" -o "$out/planes_sharp.ome.zarr"

ls "$out/sharp"
