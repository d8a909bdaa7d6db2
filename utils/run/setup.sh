# Which Python runs the project, and the environment to make where none has what it needs.
# `source utils/run/setup.sh` gives the functions; `bash utils/run/setup.sh` sets up.
# FADRM_PYTHON: take this Python as it is. FADRM_VENV: the folder of the virtual environment (default .venv).

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
venv="${FADRM_VENV:-$project/.venv}"
export PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}" # scripts work from any folder...
export PYTHONSAFEPATH=1                                 # ...whatever modules lie in that folder

stop() {
    echo "error: $1" >&2
    return 2
}

# satisfies PYTHON REQUIREMENTS...: whether it is 3.11 or later and has the versions that these files pin.
satisfies() {
    "$1" -c '
import sys
from importlib.metadata import version
pins = [line.split("#")[0].strip() for name in sys.argv[1:] for line in open(name)]
found = all(version(pin.split("==")[0]).split("+")[0] == pin.split("==")[1] for pin in pins if pin)
sys.exit(not found or sys.version_info < (3, 11))' "${@:2}" 2>/dev/null
}

# find_python: sets `python` to FADRM_PYTHON, else that of the environment that was set up, else the active one.
find_python() {
    local needed="torch torchvision numpy PIL tqdm timm safetensors matplotlib"
    for python in "${FADRM_PYTHON:-}" "$venv/bin/python" python python3; do
        [ -n "$python" ] && "$python" -c "import importlib.util, sys
sys.exit(sys.version_info < (3, 11) or not all(map(importlib.util.find_spec, '$needed'.split())))" 2>/dev/null && return
        [ -z "${FADRM_PYTHON:-}" ] || stop "FADRM_PYTHON=$FADRM_PYTHON is no Python 3.11 that has $needed" || return
    done
    stop "no Python 3.11 that has $needed was found: run 'bash $project/utils/run/setup.sh', or set FADRM_PYTHON"
}

# setup_python REQUIREMENTS...: sets `python` to one that satisfies these files: FADRM_PYTHON as it is, else the active
# Python, else the virtual environment, which is made or completed where needed.
setup_python() {
    local base share= file options=()
    python="${FADRM_PYTHON:-}"
    if [ -n "$python" ]; then
        [ -n "$(command -v "$python")" ] || stop "FADRM_PYTHON=$python is no program: name a Python, or unset it"
        return
    fi
    for python in python python3 "$venv/bin/python"; do
        satisfies "$python" "$@" && return
    done
    for base in python python3 python3.{11..19} ""; do satisfies "$base" && break; done
    [ -n "$base" ] || stop "no Python 3.11 or later was found: install one, or set FADRM_PYTHON to it" || return
    if ! [ -x "$venv/bin/pip" ]; then
        [ -e "$venv/pyvenv.cfg" ] || [ -z "$(ls -A "$venv" 2>/dev/null)" ] ||
            stop "$venv has files, but is no virtual environment: remove it, or name another in FADRM_VENV" || return
        # Where the active Python has all but what the tests need, only that is installed, on top of it.
        satisfies "$base" "$project/requirements.txt" && share=--system-site-packages
        echo "setup: making $venv with $("$base" -V)" >&2
        "$base" -m venv ${share:-} "$venv" || stop "'$base -m venv $venv' failed: mend what it says" || return
    fi
    echo "setup: installing the requirements into $venv" >&2
    for file in "$@"; do options+=(-r "$file"); done
    python="$venv/bin/python"
    "$python" -m pip install --disable-pip-version-check "${options[@]}" >&2 ||
        stop "pip could not install into $venv (its messages are above): mend that, then run the same command"
}

if [[ "$project" == *:* ]]; then
    stop "the path $project has a colon, which Python's search path cannot have: move the project" || exit 2
fi
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    setup_python "$project/requirements.txt" && echo "setup: ready, with $python"
fi
