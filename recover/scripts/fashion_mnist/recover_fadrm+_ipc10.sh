#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/../../../utils/launch.sh"
launch recover fashion_mnist fadrm+ 10 -- "$@"
