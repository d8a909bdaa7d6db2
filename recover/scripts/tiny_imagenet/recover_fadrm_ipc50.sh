#!/usr/bin/env bash
. "$(dirname "$(readlink -f "$0")")/../../../utils/run/launch.sh"
launch recover tiny_imagenet fadrm 50 -- "$@"
