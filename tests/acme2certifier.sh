#!/bin/sh
# Makes the virtual environment that the tests' acme2certifier, a CA, runs in, if it is not there:
#
#   sh tests/acme2certifier.sh FOLDER [PYTHON]
#
# It is the CA's own, so that what it needs cannot be what the tests need in another version.
set -eu

if [ $# -lt 1 ]; then
    echo "usage: acme2certifier.sh FOLDER [PYTHON]" >&2
    exit 2
fi
packages="acme2certifier[django]==0.46.* gunicorn==23.*"
stamp=$1/.made-$(echo "$packages" | cksum | tr ' ' -)
if [ -e "$stamp" ] && "$1/bin/gunicorn" --version > /dev/null 2>&1; then
    exit 0
fi
echo "Making a virtual environment with acme2certifier"
"${2:-python3}" -m venv --clear "$1"
# shellcheck disable=SC2086  # a list
"$1/bin/pip" --quiet --disable-pip-version-check install $packages
: > "$stamp"
