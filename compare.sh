#!/usr/bin/env bash
# Every method and every way to choose real images, for one dataset and IPC, three draws of each, in one table.
#
#     bash compare.sh                        # the embedded dataset, IPC 10
#     bash compare.sh cifar100 10 ResNet18
#     bash compare.sh DATASET IPC STUDENT --rows "fadrm rded coverage" --labels fixed hard --seed 0 --draw 0 1 2
#
# Real images have the labels of fadrm+. What is made already is not made again; flags go to validate.

here="$(dirname "$(readlink -f "$0")")" && [ -e "$here/utils" ] || here="$SLURM_SUBMIT_DIR" # sbatch runs a copy
. "$here/utils/run/launch.sh" || exit

case " $* " in *" -h "* | *" --help "*) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;; esac
rows="fadrm++ fadrm+ fadrm cv-dd sre2l++ edc g-vbsm rded easy medium herding k-centre coverage balanced" words=() flags=()
while [ $# -gt 0 ] && [[ "$1" != -* ]]; do words+=("$1") && shift; done
[ ${#words[@]} -le 3 ] || stop "'${words[*]}': there are DATASET IPC STUDENT, then flags" || exit
dataset="${words[0]:-fashion_mnist}" ipc="${words[1]:-10}" student="${words[2]:-}"
while [ $# -gt 0 ]; do
    if [ "$1" = --rows ]; then
        rows="${2:-}" && shift
        [ -n "$rows" ] || stop "--rows: name methods and selectors behind it, in one word: --rows \"fadrm coverage\"" || exit
    else
        flags+=("$1")
    fi
    shift
done

take_flags "${flags[@]}"
[[ "${protocol[*]}" != *own* ]] || stop "--protocol own is each method's own: compare by views, fixed, hard or plain" || exit
[ ${#draws[@]} -gt 0 ] || { draws=(--draw 0 1 2) && flags+=("${draws[@]}"); }
find_python || exit
export FADRM_PYTHON="$python"
for row in $rows; do
    case "$row" in
    easy | medium | hard | herding | k-centre | coverage | balanced | cad-prune | r-cad)
        echo -e "\n=== real images: $row"
        (launch choose "$dataset" "$ipc" -- --selector "$row" "${draws[@]}") || exit
        (launch relabel "$dataset" fadrm+ "$ipc" -- --images "$row" "${draws[@]}" "${protocol[@]}") || exit
        (launch validate "$dataset" fadrm+ "$ipc" $student -- --images "$row" "${flags[@]}") || exit
        ;;
    *) bash "$project/run.sh" "$dataset" "$row" "$ipc" $student "${flags[@]}" || exit ;;
    esac
done
"$python" -m validate.report --methods "$dataset"
