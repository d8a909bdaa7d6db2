#!/usr/bin/env bash
ipc=10 model=ResNet18 # to edit, or to give as the first two arguments
source "$(dirname "${BASH_SOURCE[0]}")/../../../utils/launch.sh"
launch validate cifar10 fadrm+ "$ipc" "$model" -- "$@"
