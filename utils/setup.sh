# Which Python runs the project, and the environment to make where none has what it needs.
# `source utils/setup.sh` gives the functions; `bash utils/setup.sh` sets up.
# FADRM_PYTHON: take this Python as it is. FADRM_VENV: the folder of the virtual environment (default .venv).

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${FADRM_VENV:-$project/.venv}"
unfinished="$venv/setup-unfinished"                     # there while a new environment is being made
export PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}" # scripts work from any folder...
export PYTHONSAFEPATH=1                                 # ...whatever modules lie in that folder

# recent_python NAME...: sets `python` to the first of these commands that is Python 3.11 or later.
recent_python() {
    for python in "$@"; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    done
    return 1
}

# venv_python: sets `python` to that of the virtual environment, if that was made to the end.
venv_python() {
    python="$venv/bin/python"
    [ -x "$python" ] && ! [ -e "$unfinished" ]
}

# find_python: sets `python` to FADRM_PYTHON, else the environment that was set up, else the active Python.
find_python() {
    python="${FADRM_PYTHON:-}"
    [ -n "$python" ] || venv_python || recent_python python python3 ||
        stop "no Python 3.11 or later is active: run 'bash $project/utils/setup.sh', or set FADRM_PYTHON"
}

# setup_python REQUIREMENTS...: sets `python` to one that satisfies these files: FADRM_PYTHON as it is, else the active
# Python, else the virtual environment, which is made or completed where needed.
setup_python() {
    python="${FADRM_PYTHON:-}"
    [ -n "$python" ] && return
    recent_python python python3 && "$python" -m utils.pins "$@" && return
    venv_python && "$python" -m utils.pins "$@" && return
    venv_python || make_venv || return
    echo "setup: installing the requirements into $venv" >&2
    local file options=()
    for file in "$@"; do options+=(-r "$file"); done
    "$python" -m pip install --disable-pip-version-check "${options[@]}" >&2 ||
        stop "pip could not install into $venv (its messages are above): mend that, then run the same command" || return
    rm -f "$unfinished"
}

# make_venv: a new virtual environment, empty, in place of a half-made one; sets `python` to its Python.
make_venv() {
    local share=
    recent_python python python3 python3.{11..19} ||
        stop "no Python 3.11 or later was found: install one, or set FADRM_PYTHON to it" || return
    if ! [ -e "$unfinished" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
        stop "$venv has files, but is no virtual environment: remove it, or name another folder in FADRM_VENV" || return
    fi
    # Where the active Python has all but what the tests need, only that is installed, on top of it.
    "$python" -m utils.pins "$project/requirements.txt" && share=--system-site-packages
    echo "setup: making $venv with $("$python" -V)" >&2
    # Marked as unfinished before anything is there and again after --clear, which removes the mark: whenever this
    # is killed, the next call begins anew.
    mkdir -p "$venv" && touch "$unfinished" && "$python" -m venv --clear --without-pip "$venv" && touch "$unfinished" &&
        "$python" -m venv ${share:-} "$venv" ||
        stop "'$python -m venv $venv' failed: mend what it says, or set FADRM_PYTHON to a Python to take as it is" || return
    python="$venv/bin/python"
}

stop() {
    echo "error: $1" >&2
    return 2
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    setup_python "$project/requirements.txt" && echo "setup: ready, with $python"
fi
