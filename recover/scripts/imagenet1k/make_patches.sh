#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/../../../utils/launch.sh"
launch patches imagenet1k fadrm+ 50 -- "$@"
