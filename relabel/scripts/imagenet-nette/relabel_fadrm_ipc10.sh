#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/../../../utils/launch.sh"
launch relabel imagenet-nette fadrm 10 -- "$@"
