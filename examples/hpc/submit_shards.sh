#!/bin/bash
# One large image on N array tasks, and what completes it once they are done:
#   examples/hpc/submit_shards.sh big.ome.zarr big_sharp.ome.zarr 16 --model confocal
# Submit again after a failure: what is done is not done again.
set -eu
input=${1:?give the image}
output=${2:?give the result, .ome.zarr}
shards=${3:?give the number of array tasks}
shift 3
here=$(cd "$(dirname "$0")" && pwd)
array=$(sbatch --parsable --array="0-$((shards - 1))" "$here/shards.sbatch" "$input" "$output" "$@")
array=${array%%;*} # "id;cluster" on federated systems
sbatch --dependency="afterok:$array" "$here/finish.sbatch" "$output"
