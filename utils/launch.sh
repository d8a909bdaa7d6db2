# What every script sources: the folders of config.sh, the project on Python's path, and `launch`.

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$project/config.sh"

# launch STAGE DATASET METHOD IPC [STUDENT] -- FLAGS...: become the Python that runs the stage (utils/launch.py), so that
# signals reach it and its exit status is the script's.
launch() {
    find_python || exit 2
    exec "$python" -m utils.launch "$@"
}
