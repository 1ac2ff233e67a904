#!/usr/bin/env bash
# One large image on many processes or machines. Here on this one; the lines for SLURM are beside it.
#
#     examples/03_cluster.sh [FOLDER]
#
# Whatever does the work, the pixels are the same. Ready batch scripts: examples/hpc.
set -euo pipefail
out=${1:-$(mktemp -d)}

# A "large" image: 4 planes. OME-Zarr is the format for what many write at once.
mrbcr simulate stack -q -o "$out/big.ome.zarr" --specimen mixed --shape 4 192 192 --preset 40x/1.2w --no-truth

# 1. Processes of this machine. With GPUs, one each.
mrbcr deconvolve "$out/big.ome.zarr" -o "$out/sharp_processes.ome.zarr" --cluster local --workers 2
#    SLURM:  mrbcr deconvolve big.ome.zarr -o sharp.ome.zarr --cluster slurm --jobs 16 --cores 8 --memory 32GB

# 2. Shards: every task does its share, in any order, on any machine that sees the disk. No scheduler process.
mrbcr deconvolve "$out/big.ome.zarr" -o "$out/sharp_shards.ome.zarr" --shard 1/2
mrbcr deconvolve "$out/big.ome.zarr" -o "$out/sharp_shards.ome.zarr" --shard 0/2
#    SLURM:  sbatch --array=0-15 --wrap 'mrbcr deconvolve big.ome.zarr -o sharp.ome.zarr --shard auto'

# When all shards are done, one short command completes the image. Exit code 3 names shards to run again.
mrbcr finish "$out/sharp_shards.ome.zarr"

# The pixels are the same, byte for byte.
diff -r "$out/sharp_processes.ome.zarr/0/c" "$out/sharp_shards.ome.zarr/0/c" && echo "the same pixels"
