#!/usr/bin/env bash
ipc=10 model=ConvNetBN_W32 # to edit, or to give as the first two arguments
source "$(dirname "${BASH_SOURCE[0]}")/../../../utils/launch.sh"
launch validate fashion_mnist fadrm "$ipc" "$model" -- "$@"
