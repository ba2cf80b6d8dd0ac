#!/bin/sh
# Sets up what the tests need, and runs them:
#
#   sh tests/run.sh [ARGUMENTS FOR TOX]
#   sh tests/run.sh -e quick
#
# What is here already, in the folder .tools (or the one that LETSACME_TOOLS names) or on the
# machine, is taken. What is not is fetched once, as Debian packages that are unpacked into that
# folder: servers, tools, a Python or two. Only python3 (with venv) and openssl are installed, by
# apt-get, and only where they are missing. The environments quick and lint need no servers.
set -eu
cd "$(dirname "$0")/.."
mkdir -p "${LETSACME_TOOLS:=.tools}/wrapped"
LETSACME_TOOLS=$(cd "$LETSACME_TOOLS" && pwd)
export LETSACME_TOOLS
debian=$(grep -s '^ID=debian' /etc/os-release || true)

# Sets the Python for the tests' own tools, and the list of the Debian packages that must be
# installed and are not. The python3 that comes first may be an old one, to test under.
look() {
    missing=" python3 python3-venv"
    check='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))'
    for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 \
        /usr/bin/python3; do
        if "$python" -c "$check" 2> /dev/null; then
            missing=""
            break
        fi
    done
    command -v openssl > /dev/null || missing="$missing openssl"
}

# Installs what is missing, or says what it is and how to get it.
install_missing() {
    if [ -n "$debian" ] && [ "$(id -u)" = 0 ]; then
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

# Is a program (its name) or a library (lib/ and its path) here, in .tools or on the machine?
is_here() {
    case $1 in
    lib/*) find "$LETSACME_TOOLS/usr/lib" /usr/lib /usr/lib64 -path "*/${1#lib/}" 2> /dev/null |
        grep -q . ;;
    *) (
        PATH=$LETSACME_TOOLS/wrapped:$LETSACME_TOOLS/usr/bin:$LETSACME_TOOLS/usr/sbin:$PATH
        PATH=$PATH:/usr/sbin:/sbin
        command -v "$1" > /dev/null
    ) ;;
    esac
}

# Prints the packages of the programs that are not here. Arguments: pairs PROGRAM:PACKAGE.
needed() {
    for pair; do
        is_here "${pair%:*}" || echo "${pair#*:}"
    done | sort -u
}

# Fetches packages; on another system than Debian, says that they are missing.
# Arguments: the packages of the next Debian, those of the machine's.
# shellcheck disable=SC2086  # lists
fetch() {
    if [ -z "$1$2" ]; then
        return
    elif [ -z "$debian" ]; then
        echo "Missing:" $1 $2
        echo "Install these, or put them into $LETSACME_TOOLS, laid out as Debian's packages are."
        exit 1
    fi
    [ -z "$1" ] || sh tests/packages.sh "$LETSACME_TOOLS" forky $1
    [ -z "$2" ] || sh tests/packages.sh "$LETSACME_TOOLS" here $2
}

# Makes a program in .tools that starts an unpacked one, if there is one.
# Arguments: the program to make; the folder of the unpacked one; its path there; the lines that
# start it; a folder of Python modules, to be compiled as an installation would have done (without
# that, each start takes half a second).
wrap() {
    if [ ! -e "$2/$3" ] || [ -e "$LETSACME_TOOLS/$1" ]; then
        return
    fi
    mkdir -p "$(dirname "$LETSACME_TOOLS/$1")"
    printf '#!/bin/sh\n%s\n' "$4" > "$LETSACME_TOOLS/$1.new"
    chmod +x "$LETSACME_TOOLS/$1.new"
    if [ -n "${5:-}" ]; then
        "$LETSACME_TOOLS/$1.new" -m compileall -q "$5" > "$LETSACME_TOOLS/compileall.log" || true
    fi
    mv "$LETSACME_TOOLS/$1.new" "$LETSACME_TOOLS/$1"
}

# Prints the lines that start an unpacked program with the libraries that lie beside it.
# Arguments: its folder, its path there, another folder of libraries.
with_libraries() {
    # shellcheck disable=SC2016  # the dollar is for the program that is made
    printf 'export LD_LIBRARY_PATH="%s"\nexec "%s" "$@"' \
        "$(echo "$1"/usr/lib/*-linux-*)${3:+:$3}" "$1/$2"
}

# Sets up the servers and what goes with them. The tests do not do without any of these.
set_up_servers() {
    fetch "$(needed pebble:pebble pebble-challtestsrv:pebble caddy:caddy)" \
        "$(needed nginx:nginx apache2:apache2 lighttpd:lighttpd curl:curl shellcheck:shellcheck \
            ip:iproute2 systemd-analyze:systemd setpriv:util-linux unshare:util-linux \
            lib/libnss_wrapper.so:libnss-wrapper lib/faketime/libfaketime.so.1:faketime)"
    wrap wrapped/ip "$LETSACME_TOOLS" usr/bin/ip "$(with_libraries "$LETSACME_TOOLS" usr/bin/ip)"
    wrap wrapped/systemd-analyze "$LETSACME_TOOLS" usr/bin/systemd-analyze \
        "export SYSTEMD_UNIT_PATH=\"\$SYSTEMD_UNIT_PATH$LETSACME_TOOLS/usr/lib/systemd/system:\"
$(with_libraries "$LETSACME_TOOLS" usr/bin/systemd-analyze \
            "$(echo "$LETSACME_TOOLS"/usr/lib/*-linux-*/systemd)")"
    sh tests/acme2certifier.sh "$LETSACME_TOOLS/a2c-venv" "$python"
}

# Sets up what the script is tested with beside the Pythons and the openssl of the machine. What
# cannot be had is left out, and the closing summary says so.
set_up_interpreters() {
    pypy=$LETSACME_TOOLS/pypy3
    new=$LETSACME_TOOLS/python3.14
    old=$LETSACME_TOOLS/bullseye
    [ -n "$debian" ] || return 0
    if ! is_here pypy3; then
        sh tests/packages.sh "$pypy" here pypy3 || true
        wrap wrapped/pypy3 "$pypy" usr/bin/pypy3 "$(with_libraries "$pypy" usr/bin/pypy3)" \
            "$(echo "$pypy"/usr/lib/pypy3*)"
    fi
    if ! is_here python3.14; then
        # The next Debian's. It brings a C library and its loader for itself alone: the openssl that
        # it starts is the machine's. It looks for its modules in lib beside the wrapper.
        sh tests/packages.sh "$new" forky python3.14-minimal libpython3.14-minimal \
            libpython3.14-stdlib libc6 libssl3t64 zlib1g libzstd1 libexpat1 libffi8 || true
        loader=$(echo "$new"/usr/lib/*-linux-*/ld-linux-*.so.*)
        ln -sfn ../python3.14/usr/lib "$LETSACME_TOOLS/wrapped/lib"
        wrap wrapped/python3.14 "$new" usr/bin/python3.14 \
            "exec \"$loader\" --library-path \"${loader%/*}\" --argv0 \"\$0\" \\
    \"$new/usr/bin/python3.14\" \"\$@\"" "$new/usr/lib/python3.14"
    fi
    if [ ! -e "$LETSACME_TOOLS/openssl-1.1.1/openssl" ]; then
        sh tests/packages.sh "$old" bullseye openssl libssl1.1 || true
        wrap openssl-1.1.1/openssl "$old" usr/bin/openssl "$(with_libraries "$old" usr/bin/openssl)"
    fi
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
environments=""
previous=""
for argument; do
    [ "$previous" != -e ] || environments="$environments,$argument"
    previous=$argument
done
for environment in $(echo "${environments:-all}" | tr , ' '); do
    case $environment in
    quick) ;;
    lint) fetch "" "$(needed shellcheck:shellcheck)" ;;
    *)
        set_up_servers
        set_up_interpreters
        ;;
    esac
done
make_venv

export LETSACME_SUMMARY="$LETSACME_TOOLS/summary"
: > "$LETSACME_SUMMARY"
status=0
"$LETSACME_TOOLS/venv/bin/tox" "$@" || status=$?
if [ -s "$LETSACME_SUMMARY" ]; then
    echo
    echo "letsacme.py was run under:"
    sed 's/^/  /' "$LETSACME_SUMMARY"
fi
exit $status
