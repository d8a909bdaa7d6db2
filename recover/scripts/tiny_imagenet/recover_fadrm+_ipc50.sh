#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/../../../utils/launch.sh"
launch recover tiny_imagenet fadrm+ 50 -- "$@"
