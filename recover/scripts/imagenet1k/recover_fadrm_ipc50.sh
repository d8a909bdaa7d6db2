#!/usr/bin/env bash
. "$(dirname "$(readlink -f "$0")")/../../../utils/run/launch.sh"
launch recover imagenet1k fadrm 50 -- "$@"
