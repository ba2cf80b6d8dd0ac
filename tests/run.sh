#!/bin/sh
# Sets up all that the tests need, and runs them:
#
#   sh tests/run.sh [ARGUMENTS FOR TOX]
#
# Only python3 (with venv) and openssl are installed, by apt-get, and only where they are missing.
# Servers and tools are Debian packages that are unpacked into the folder .tools (or the folder that
# LETSACME_TOOLS names). The first run takes some minutes more than later ones.
set -eu
cd "$(dirname "$0")/.."
mkdir -p "${LETSACME_TOOLS:=.tools}"
LETSACME_TOOLS=$(cd "$LETSACME_TOOLS" && pwd)
export LETSACME_TOOLS

# Sets the Python for the tests' own tools, and the list of the Debian packages that must be
# installed and are not. The python3 that comes first may be an old one, to test under.
look() {
    missing=" python3 python3-venv"
    check='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))'
    for python in python3 python3.13 python3.12 python3.11 python3.10 python3.9 /usr/bin/python3; do
        if "$python" -c "$check" 2> /dev/null; then
            missing=""
            break
        fi
    done
    command -v openssl > /dev/null || missing="$missing openssl"
    command -v setpriv > /dev/null || missing="$missing util-linux"
}

# Installs what is missing, or says what it is and how to get it.
install_missing() {
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        echo "Installing$missing"
        apt-get -qq update
        # shellcheck disable=SC2086  # a list
        DEBIAN_FRONTEND=noninteractive \
            apt-get -qq install --no-install-recommends $missing > /dev/null
        look
    fi
    if [ -n "$missing" ]; then
        echo "Missing (python3 must be 3.9 or later):$missing"
        echo "On Debian 12 or later, as root: apt-get update && apt-get install$missing"
        exit 1
    fi >&2
}

# Makes a program in .tools that starts an unpacked one with the libraries that lie beside it.
# Arguments: the program to make, the folder of the unpacked one, its path there, more to set.
wrap() {
    [ -e "$2/$3" ] || return 0 # not unpacked, since it is installed
    mkdir -p "$(dirname "$LETSACME_TOOLS/$1")"
    cat > "$LETSACME_TOOLS/$1" << EOF
#!/bin/sh
export LD_LIBRARY_PATH="$(echo "$2"/usr/lib/*-linux-*)"
${4:-}
exec "$2/$3" "\$@"
EOF
    chmod +x "$LETSACME_TOOLS/$1"
}

# Unpacks servers and tools into .tools.
fetch_tools() {
    old=$LETSACME_TOOLS/bullseye
    sh tests/packages.sh "$LETSACME_TOOLS" forky pebble caddy
    sh tests/packages.sh "$LETSACME_TOOLS" here \
        nginx apache2 lighttpd curl faketime libnss-wrapper pypy3 shellcheck systemd iproute2
    sh tests/packages.sh "$old" bullseye openssl libssl1.1 \
        python2.7 python2.7-minimal libpython2.7-stdlib libpython2.7-minimal libffi7
    wrap wrapped/pypy3 "$LETSACME_TOOLS" usr/bin/pypy3
    wrap wrapped/python2.7 "$old" usr/bin/python2.7
    wrap wrapped/ip "$LETSACME_TOOLS" usr/bin/ip
    systemd=$(echo "$LETSACME_TOOLS"/usr/lib/*-linux-*/systemd)
    wrap wrapped/systemd-analyze "$LETSACME_TOOLS" usr/bin/systemd-analyze \
        "LD_LIBRARY_PATH=\"\$LD_LIBRARY_PATH:$systemd\"
export SYSTEMD_UNIT_PATH=\"\$SYSTEMD_UNIT_PATH$LETSACME_TOOLS/usr/lib/systemd/system:\""
    wrap openssl-1.1.1/openssl "$old" usr/bin/openssl
}

# Where there are no Debian packages, all must be there already.
check_tools() {
    for file in bin/pebble bin/pebble-challtestsrv bin/caddy sbin/nginx sbin/apache2 sbin/lighttpd \
        bin/curl bin/shellcheck bin/systemd-analyze bin/ip 'lib/*/libnss_wrapper.so' \
        'lib/*/faketime/libfaketime.so.1'; do
        # shellcheck disable=SC2086  # a pattern
        find "$LETSACME_TOOLS"/usr/$file /usr/$file 2> /dev/null | grep -q . ||
            command -v "${file##*/}" > /dev/null || missing="$missing ${file##*/}"
    done
    [ -e "$LETSACME_TOOLS/openssl-1.1.1/openssl" ] || missing="$missing openssl-1.1.1/openssl"
    if [ -n "$missing" ]; then
        echo "Debian's apt-get is not here to fetch what is missing:$missing"
        echo "Install these, or put them into $LETSACME_TOOLS, laid out as Debian's packages are."
        exit 1
    fi >&2
}

# Makes the virtual environment that tox runs in.
make_venv() {
    if ! "$LETSACME_TOOLS/venv/bin/tox" --version > /dev/null 2>&1; then
        echo "Making a virtual environment with tox"
        "$python" -m venv --clear "$LETSACME_TOOLS/venv"
        "$LETSACME_TOOLS/venv/bin/pip" --quiet --disable-pip-version-check install tox
    fi
}

look
[ -z "$missing" ] || install_missing
if command -v apt-get > /dev/null; then
    fetch_tools
else
    check_tools
fi
make_venv
if command -v pyenv > /dev/null; then # all of its Pythons, the present one first
    PYENV_VERSION=$( (pyenv version-name | tr : '\n'; pyenv versions --bare) | paste -sd :)
    export PYENV_VERSION
fi

export LETSACME_SUMMARY="$LETSACME_TOOLS/summary"
: > "$LETSACME_SUMMARY"
status=0
"$LETSACME_TOOLS/venv/bin/tox" "$@" || status=$?
echo
echo "letsacme.py was run under:"
sed 's/^/  /' "$LETSACME_SUMMARY"
exit $status
