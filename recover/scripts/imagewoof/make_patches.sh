#!/usr/bin/env bash
. "$(dirname "$(readlink -f "$0")")/../../../utils/run/launch.sh"
launch patches imagewoof fadrm+ 50 -- "$@"
