#!/usr/bin/env bash
# METHOD [IPC ...] [STUDENT ...] FLAGS...
here="$(dirname "$(readlink -f "$0")")/../../.." && [ -e "$here/utils" ] || here="$SLURM_SUBMIT_DIR" # sbatch runs a copy
. "$here/utils/run/launch.sh" || exit
launch validate tiny_imagenet -- "$@"
