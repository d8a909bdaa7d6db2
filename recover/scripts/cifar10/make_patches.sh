#!/usr/bin/env bash
. "$(dirname "$(readlink -f "$0")")/../../../utils/run/launch.sh"
launch patches cifar10 fadrm+ 50 -- "$@"
