#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/../../../utils/launch.sh"
launch recover cifar10 fadrm+ 1 -- "$@"
