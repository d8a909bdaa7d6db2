#!/usr/bin/env bash
# From real images to a student's accuracy, beside that on random real images.
#
#     bash run.sh                                        # the embedded dataset, FADRM+, IPC 10
#     bash run.sh imagenet1k fadrm+ 10 ResNet18          # one cell of the paper's table
#     bash run.sh DATASET METHOD IPC STUDENT --seed 0 1 2 --draw 0 1 2 --labels views fixed hard
#
# Sets up what it needs. Every step is a command of its own, which skips what it has made already.

here="$(dirname "$(readlink -f "$0")")" && [ -e "$here/utils" ] || here="$SLURM_SUBMIT_DIR" # sbatch runs a copy
. "$here/utils/run/launch.sh" || exit

case " $* " in *" -h "* | *" --help "*) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;; esac
cell=() # DATASET METHOD IPC STUDENT; what follows are flags of validate
while [ $# -gt 0 ] && [[ "$1" != -* ]]; do cell+=("$1") && shift; done
dataset="${cell[0]:-fashion_mnist}" method="${cell[1]:-fadrm+}" ipc="${cell[2]:-10}" student="${cell[3]:-}"
[ ${#cell[@]} -le 4 ] || stop "'${cell[*]}': there are DATASET METHOD IPC STUDENT, then flags" || exit

take_flags "$@"

case " $* " in *" --dry-run "*) stop "--dry-run is of a stage: give it to the stage's script" || exit ;; esac
setup_python "$project/requirements.txt" || exit
export FADRM_PYTHON="$python"

# step NAME COMMAND...: run it in a process group of its own, to which signals go on; end with its status if it fails.
step() {
    local child status signal stopped=0
    echo -e "\n=== $1"
    set -m
    ("${@:2}") &
    child=$!
    set +m
    for signal in INT:130 TERM:143 HUP:129; do
        trap "stopped=${signal#*:}; kill -${signal%:*} -- -$child 2>/dev/null" "${signal%:*}"
    done
    while :; do
        wait "$child" && status=0 || status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    trap - INT TERM HUP
    [ "$status" -ne 0 ] || status=$stopped
    [ "$status" -eq 0 ] || exit "$status"
}

"$python" -m validate.report --check "$dataset" "$method" "$ipc" $student "$@" || exit
step data "$python" -m utils.data.prepare "$dataset"
step teachers launch pretrain "$dataset" -- --recipe "$method"
step patches launch patches "$dataset" "$method" "$ipc"
step recover launch recover "$dataset" "$method" "$ipc" -- "${draws[@]}"
step relabel launch relabel "$dataset" "$method" "$ipc" -- "${draws[@]}" "${protocol[@]}"
step validate launch validate "$dataset" "$method" "$ipc" $student -- "$@"
if [[ " ${protocol[*]} " == *" hard "* ]]; then # beside the whole set, at the cost of the cell's student
    step "whole set" launch pretrain "$dataset" $student -- --recipe "$method" --like-ipc "$ipc"
fi
[ ${#draws[@]} -gt 0 ] || draws=(--draw 0 1 2) # so that the baseline's spread has that of its images
step "random images" launch choose "$dataset" "$ipc" -- "${draws[@]}"
step "random images: relabel" launch relabel "$dataset" "$method" "$ipc" -- --images random "${draws[@]}" "${protocol[@]}"
step "random images: validate" launch validate "$dataset" "$method" "$ipc" $student -- --images random "${draws[@]}" "$@"
"$python" -m validate.report "$dataset" "$method" "$ipc" $student
