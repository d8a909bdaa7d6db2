#!/usr/bin/env bash
# All the tests, with their coverage. Sets up what they need; further arguments go to pytest (tests/utils --no-cov).
source "$(dirname "${BASH_SOURCE[0]}")/../utils/run/setup.sh"
cd "$project" || exit 2
setup_python requirements.txt tests/requirements.txt || exit 2
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # tests are small, and compare sums that more threads add up otherwise
exec "$python" -m pytest --numprocesses auto --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=90 "$@"
