#!/usr/bin/env bash
ipc=10 model=ResNet18 # to edit, or to give as arguments: 1 10 ResNet18 ResNet50 are four runs
here="$(dirname "$(readlink -f "$0")")/../../.." && [ -e "$here/utils" ] || here="$SLURM_SUBMIT_DIR" # sbatch runs a copy
. "$here/utils/run/launch.sh" || exit
launch validate tiny_imagenet fadrm+ "$ipc" "$model" -- "$@"
