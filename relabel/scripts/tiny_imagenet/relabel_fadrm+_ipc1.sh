#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/../../../utils/launch.sh"
launch relabel tiny_imagenet fadrm+ 1 -- "$@"
