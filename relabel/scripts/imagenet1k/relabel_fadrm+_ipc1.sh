#!/usr/bin/env bash
. "$(dirname "$(readlink -f "$0")")/../../../utils/run/launch.sh"
launch relabel imagenet1k fadrm+ 1 -- "$@"
