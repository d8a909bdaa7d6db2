#!/usr/bin/env bash
. "$(dirname "$(readlink -f "$0")")/../../../utils/run/launch.sh"
launch relabel imagenet-nette fadrm+ 10 -- "$@"
