#!/usr/bin/env bash
here="$(dirname "$(readlink -f "$0")")/../../.." && [ -e "$here/utils" ] || here="$SLURM_SUBMIT_DIR" # sbatch runs a copy
. "$here/utils/run/launch.sh" || exit
launch recover tiny_imagenet fadrm 50 -- "$@"
