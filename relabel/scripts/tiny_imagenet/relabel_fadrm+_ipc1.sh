#!/usr/bin/env bash
. "$(dirname "$(readlink -f "$0")")/../../../utils/run/launch.sh"
launch relabel tiny_imagenet fadrm+ 1 -- "$@"
