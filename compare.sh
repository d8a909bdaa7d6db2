#!/usr/bin/env bash
# Every method and every way to choose real images, for one dataset and IPC, in one table.
#
#     bash compare.sh                        # the embedded dataset, IPC 10
#     bash compare.sh cifar100 10 ResNet18
#     bash compare.sh DATASET IPC STUDENT --seed 0 1 2
#
# Real images have the labels of fadrm+. What is made already is not made again; flags go to validate.

here="$(dirname "$(readlink -f "$0")")" && [ -e "$here/utils" ] || here="$SLURM_SUBMIT_DIR" # sbatch runs a copy
. "$here/utils/run/launch.sh" || exit

case " $* " in *" -h "* | *" --help "*) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;; esac
words=()
while [ $# -gt 0 ] && [[ "$1" != -* ]]; do words+=("$1") && shift; done
[ ${#words[@]} -le 3 ] || stop "'${words[*]}': there are DATASET IPC STUDENT, then flags" || exit
dataset="${words[0]:-fashion_mnist}" ipc="${words[1]:-10}" student="${words[2]:-}"

protocol_of "$@"
[[ "${protocol[*]}" != *own* ]] || stop "--protocol own is each method's own: compare by views, fixed or hard" || exit
for method in fadrm+ fadrm cv-dd sre2l++ edc g-vbsm rded; do
    bash "$project/run.sh" "$dataset" "$method" "$ipc" $student "$@" || exit
done
find_python || exit
export FADRM_PYTHON="$python"
for selector in easy medium herding k-centre coverage; do
    echo -e "\n=== real images: $selector"
    (launch choose "$dataset" "$ipc" -- --selector "$selector") || exit
    (launch relabel "$dataset" fadrm+ "$ipc" -- --images "$selector" "${protocol[@]}") || exit
    (launch validate "$dataset" fadrm+ "$ipc" $student -- --images "$selector" "$@") || exit
done
"$python" -m validate.report --methods "$dataset" "$ipc" $student
