#!/usr/bin/env bash
. "$(dirname "$(readlink -f "$0")")/../../../utils/run/launch.sh"
launch relabel cifar10 fadrm+ 1 -- "$@"
