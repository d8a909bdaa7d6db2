# What every script sources: the folders of config.sh, the project on Python's path, and `launch`.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # as for `sh run.sh`
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$project/config.sh"

# launch STAGE DATASET [METHOD] [IPC ...] [NAME ...] -- [METHOD] [IPC ...] [NAME ...] FLAGS...
# Become the Python that runs the stage with the recipe of a method and IPC, so that signals reach it and its exit status is
# the script's. Words behind -- stand in place of those before it: validate's IPCs and students, pretrain's teachers, the
# method and IPC of a script that names none. Flags behind them go to the stage and win over the recipe. Output goes to
# the terminal and to a log file. Where there are several GPUs a process for each of them shares the stage;
# FADRM_PROCESSES sets another number, also without GPUs.
launch() {
    local stage="$1" dataset="$2" method= ipcs=() names=() flags=() own=() count log run
    shift 2
    while [ $# -gt 0 ] && [ "$1" != -- ]; do own+=($1) && shift; done
    take_words "${own[@]}"
    [ $# -gt 0 ] && shift
    own=()
    while [ $# -gt 0 ] && [[ "$1" != -* ]]; do own+=($1) && shift; done
    take_words "${own[@]}"
    case "$stage" in pretrain | choose) ;; *)
        [ -n "$method" ] && [ ${#ipcs[@]} -gt 0 ] || stop "name a method and its IPC, for example: fadrm+ 10" || exit
        flags+=(--recipe "$method")
        ;;
    esac
    [ ${#ipcs[@]} -eq 0 ] || flags+=(--ipc "${ipcs[@]}")
    [ ${#names[@]} -eq 0 ] || flags+=(--model "${names[@]}")

    find_python || exit
    run=("$python" -m "$(module_of "$stage")" --dataset-name "$dataset" "${flags[@]}" "$@")
    count="${FADRM_PROCESSES:-}"
    case " $* " in *" --device cpu "*) count="${count:-1}" ;; esac
    count="${count:-$(count_gpus)}"
    [[ "$count" =~ ^[1-9][0-9]*$ ]] || stop "FADRM_PROCESSES=$count: it is a number of processes, 1 or more" || exit
    if [ "$count" -gt 1 ] && [ -z "${RANK:-}" ]; then
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + count - 1) / count))}"
        run=("$python" -m utils.run.torchrun --nproc-per-node "$count" "${run[@]:1}")
    fi
    case " $* " in *" --dry-run "*) exec "${run[@]}" ;; esac
    log="$(tr -s ' :' _ <<<"$stage $dataset $method ${ipcs[*]} ${names[*]}")"
    log="$Main_Data_Path/logs/$(cut -c 1-120 <<<"${log%_}").log"
    if ! { mkdir -p "${log%/*}" && echo "--- $(date '+%F %T')$(printf ' %q' "${run[@]}")" >>"$log"; } 2>/dev/null; then
        echo "note: $log cannot be written: this run has no log" >&2
        exec "${run[@]}"
    fi
    export PYTHONUNBUFFERED=1 TQDM_MININTERVAL="${TQDM_MININTERVAL:-0.5}" # a log takes every state of a bar
    exec "${run[@]}" > >(keep_log) 2> >(keep_log >&2)
}

# take_flags FLAGS...: sets `protocol` to --labels or --protocol with its values, which relabel and validate both take, and
# `draws` to --draw with its, which are of every stage.
take_flags() {
    protocol=($(grep -oE -- "--(labels|protocol)[ =][a-z]+( [a-z]+)*" <<<"$*"))
    draws=($(grep -oE -- "--draw[ =][0-9]+( [0-9]+)*" <<<"$*"))
}

# keep_log: copy what comes to the log too, until it ends, whatever signals come meanwhile.
keep_log() {
    trap "" INT TERM HUP
    exec tee -a "$log"
}

# take_words WORD...: sets method, ipcs and names of `launch` where the words have some.
take_words() {
    local word numbers=() others=()
    case "$stage" in pretrain | choose) ;; *)
        if [[ "${1:-}" =~ ^[^0-9] ]] && { [ -z "$method" ] || [ "$stage" != validate ]; }; then method="$1" && shift; fi
        ;;
    esac
    for word in "$@"; do
        if [[ "$word" =~ ^[0-9]+$ ]]; then numbers+=("$word"); else others+=("$word"); fi
    done
    [ ${#numbers[@]} -eq 0 ] || ipcs=("${numbers[@]}")
    [ ${#others[@]} -eq 0 ] || names=("${others[@]}")
}

module_of() {
    case "$1" in
    pretrain) echo models.pretrain ;;
    patches) echo recover.make_patches ;;
    choose) echo recover.choose_images ;;
    *) echo "$1.$1" ;;
    esac
}

# count_gpus: how many GPUs a process may see, at least 1.
count_gpus() {
    local found=(/dev/nvidia[0-9]*)
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        IFS=, read -ra found <<<"$CUDA_VISIBLE_DEVICES"
    elif ! [ -e "${found[0]}" ]; then
        found=()
    fi
    echo $((${#found[@]} > 1 ? ${#found[@]} : 1))
}
