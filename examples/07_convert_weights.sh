#!/usr/bin/env bash
# The authors' own weights (TensorFlow checkpoints of m-rBCR and DeBCR), converted once, used like any model.
#
#     examples/07_convert_weights.sh [CHECKPOINT_DIR [FOLDER]]
#
# CHECKPOINT_DIR holds checkpoint, *.index and *.data-*. Without one a stand-in with random weights is made.
# Needs TensorFlow for the conversion alone: pip install 'mrbcr[convert]'
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
checkpoint=${1:-}
out=${2:-$(mktemp -d)}

if ! python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("tensorflow") is None)'; then
    echo "Nothing converted: TensorFlow is not here. pip install 'mrbcr[convert]', and run this again."
    exit 0
fi

if [ -z "$checkpoint" ]; then
    checkpoint="$out/their_checkpoint"
    python3 - "$checkpoint" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from mrbcr_cli.network.published import Published
from mrbcr_cli.weights_convert import checkpoint_keys

folder = Path(sys.argv[1])
folder.mkdir(parents=True)
shapes = {name: tuple(value.shape) for name, value in Published().state_dict().items()}
rng = np.random.default_rng(0)
names, tensors = [], []
for role, key in checkpoint_keys().items():
    shape = shapes[role]
    layout = (shape[2], shape[3], shape[1], shape[0]) if len(shape) == 4 else shape  # PyTorch's to TensorFlow's
    names.append(key)
    tensors.append(tf.constant(0.02 * rng.standard_normal(layout), tf.float32))
tf.raw_ops.SaveV2(prefix=str(folder / "ckpt-1"), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
(folder / "checkpoint").write_text('model_checkpoint_path: "ckpt-1"\n')
PYTHON
fi

# A safetensors file comes out: opening one never runs code.
mrbcr weights convert "$checkpoint" -o "$out/theirs.safetensors" --name theirs

# Their network, exactly. The card says what is known of it; the licence is the authors'.
mrbcr weights show "$out/theirs.safetensors"
mrbcr deconvolve "$here/data/cells.ome.tif" -o "$out/cells_theirs.ome.tif" -m "$out/theirs.safetensors" --channels 0
