#!/usr/bin/env bash
# METHOD IPC FLAGS...
. "$(dirname "$(readlink -f "$0")")/../../../utils/run/launch.sh"
launch relabel cifar100 -- "$@"
