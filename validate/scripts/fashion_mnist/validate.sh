#!/usr/bin/env bash
# METHOD [IPC ...] [STUDENT ...] FLAGS...
. "$(dirname "$(readlink -f "$0")")/../../../utils/run/launch.sh"
launch validate fashion_mnist -- "$@"
