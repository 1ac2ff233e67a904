#!/usr/bin/env bash
# Train on your own pairs: the same field blurred (or dim, or fast) and sharp (or bright, or slow).
#
#     examples/05_train_on_own_pairs.sh [FOLDER]
#
# A real run takes thousands of steps. This one takes six, to show the way.
set -euo pipefail
out=${1:-$(mktemp -d)}

# Stand-ins for your images: two folders, equal names. With your own data start at `mrbcr train`.
mrbcr simulate pairs -q -o "$out/pairs.zarr" --specimen vesicles --count 10 --patch 128 --seed 1
python3 - "$out" <<'PYTHON'
import sys
from pathlib import Path

import tifffile
import zarr

out = Path(sys.argv[1])
pairs = zarr.open_group(out / "pairs.zarr", mode="r")
for kind, name in (("blurred", "blurred"), ("sharp", "sharp")):
    (out / name).mkdir(exist_ok=True)
    for number in range(10):
        tifffile.imwrite(out / name / f"field{number}.tif", pairs[kind][number])
PYTHON

# From the embedded model on (--init): it knows blur already and needs far fewer of your images.
# Whole images are held out for validation, never parts of images that are trained on.
mrbcr train -o "$out/mine" --input-dir "$out/blurred" --target-dir "$out/sharp" --init widefield \
    --lr 5e-4 --steps 6 --batch 2 --patch 64 --every 3 --validation 0.2

# Stopped early? The same command goes on from the last checkpoint. curves.png shows the course.
ls "$out/mine"

# Use it like any model. Judge it on images that training has not seen: examples/06_evaluate.sh.
mrbcr deconvolve "$out/blurred/field0.tif" -o "$out/field0_sharp.tif" --model "$out/mine/best.safetensors"
