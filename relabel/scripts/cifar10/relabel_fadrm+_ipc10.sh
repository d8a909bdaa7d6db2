#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/../../../utils/launch.sh"
launch relabel cifar10 fadrm+ 10 -- "$@"
