#!/usr/bin/env bash
# METHOD IPC FLAGS...
here="$(dirname "$(readlink -f "$0")")/../../.." && [ -e "$here/utils" ] || here="$SLURM_SUBMIT_DIR" # sbatch runs a copy
. "$here/utils/run/launch.sh" || exit
launch relabel imagenet1k -- "$@"
