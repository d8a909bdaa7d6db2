#!/usr/bin/env bash
# From real images to a student's accuracy: bash run.sh [DATASET] [METHOD] [IPC] [STUDENT]
# Sets up what it needs; what is complete is not made again.
source "$(dirname "${BASH_SOURCE[0]}")/utils/launch.sh"
setup_python "$project/requirements.txt" || exit 2
exec "$python" -m utils.pipeline "$@"
