#!/usr/bin/env bash
. "$(dirname "$(readlink -f "$0")")/../../../utils/run/launch.sh"
launch recover fashion_mnist fadrm 50 -- "$@"
