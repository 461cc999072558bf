#!/bin/sh
# Make a virtual environment with the first Python here that is new enough and really runs, and install the package into it.
#
#     sh scripts/bootstrap.sh VENV EXTRAS      EXTRAS: comma-separated extras of pyproject.toml, or nothing
#
# `python3` is tried first. Version managers leave stubs that exist but fail, so every candidate has to prove itself.
set -eu
venv=$1
extras=$2

runs() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14 \
        "$HOME"/.pyenv/versions/*/bin/python3; do
        if runs "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "setup needs Python 3.11 or newer with venv and pip; none was found. Install one, or name it: make setup PYTHON=/path/to/python3" >&2
    exit 2
}

if [ ! -x "$venv/bin/python" ] || ! runs "$venv/bin/python"; then
    python=$(find_python)
    echo "making $venv with $python ($("$python" -c 'import platform; print(platform.python_version())'))"
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi
# A new pip is worth its second: old ones resolve dependencies far slower.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}"
