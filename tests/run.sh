#!/usr/bin/env bash
# All the tests, with their coverage; sets up what they need. Further arguments go to pytest (tests/utils --no-cov).
# With --gpu, on a machine with a CUDA device: the tests that need one, and the benchmark at 224 pixels (some five
# minutes). What they print is also in outputs/gpu_report.txt.
source "$(dirname "${BASH_SOURCE[0]}")/../utils/run/setup.sh"
cd "$project" || exit 2
setup_python requirements.txt tests/requirements.txt || exit 2
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # tests are small, and compare sums that more threads add up otherwise
if [ "${1:-}" != --gpu ]; then
    exec "$python" -m pytest --numprocesses auto --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=90 "$@"
fi

"$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" ||
    stop "--gpu: this machine has no CUDA device that PyTorch can use" || exit
mkdir -p outputs
{
    "$python" -m torch.utils.collect_env | grep -iE "^(pytorch|os|python|cuda runtime|gpu|nvidia driver|cudnn|model name)"
    "$python" -m pytest -m gpu --numprocesses 4 --dist worksteal --durations 12 "${@:2}"
    status=$?
    "$python" -m tests.benchmark --size 224 --device cuda --repeats 3 --no-memory || status=$?
    exit "$status"
} 2>&1 | tee outputs/gpu_report.txt
exit "${PIPESTATUS[0]}"
