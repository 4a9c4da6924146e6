#!/bin/sh
# The way in: sets fasttune up where that is missing, then opens its menu.
#
#   sh docs/quick_start.sh                    the menu
#   sh docs/quick_start.sh linzhi             trains recipes/linzhi.toml; more arguments are those of `fasttune run`
#   sh docs/quick_start.sh doctor --quick     any other command of fasttune
#
# Paths are taken from the folder of the clone, wherever this is called from. It ends with the exit code of fasttune.
set -eu
cd "$(dirname "$0")/.."

if ! command -v make >/dev/null || ! command -v python3 >/dev/null; then
    echo "error: make or python3 is missing" >&2
    echo " hint: sudo apt update && sudo apt install -y build-essential python3-venv python3-dev" >&2
    exit 1
fi
make setup >&2 # takes no time where everything is there already

if [ $# -eq 0 ]; then
    set -- menu
elif [ -f "recipes/$1.toml" ]; then
    recipe="recipes/$1.toml"
    shift
    set -- run "$recipe" "$@"
fi
exec .venv/bin/fasttune "$@"
