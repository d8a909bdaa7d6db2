#!/usr/bin/env bash
ipc=10 model=ResNet18 # to edit, or to give as arguments: 1 10 ResNet18 ResNet50 are four runs
. "$(dirname "$(readlink -f "$0")")/../../../utils/run/launch.sh"
launch validate imagewoof fadrm "$ipc" "$model" -- "$@"
