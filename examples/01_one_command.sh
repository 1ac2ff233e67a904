#!/usr/bin/env bash
# Your own data in one command.
#
#     examples/01_one_command.sh [FOLDER]      # results go to FOLDER, or to a temporary folder
#
# Put your own file in the place of cells.ome.tif: TIFF, OME-TIFF, ImageJ hyperstack or OME-Zarr.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(mktemp -d)}

# What is in the file? Axes, pixel size, channels. It is worth a look before a long run.
mrbcr info "$here/data/cells.ome.tif"

# The one command. The name of the output decides the format: .ome.tif, or .ome.zarr for large images.
mrbcr deconvolve "$here/data/cells.ome.tif" -o "$out/cells_sharp.ome.tif"

# The same command again finds nothing left to do. After Ctrl-C it would go on where it stopped.
mrbcr deconvolve "$here/data/cells.ome.tif" -o "$out/cells_sharp.ome.tif"

# The result has the axes, the pixel size and the units of its input.
mrbcr info "$out/cells_sharp.ome.tif"
echo "Look at it: $out/cells_sharp.ome.tif opens in Fiji and napari."
