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
tools=$(cd "$LETSACME_TOOLS" && pwd)
export LETSACME_TOOLS="$tools" LETSACME_SUMMARY="$tools/summary"
debian=$(grep -s '^ID=debian' /etc/os-release || true)

# Sets the Python for the tests' own tools, and the list of the Debian packages that must be
# installed and are not. The python3 that comes first may be an old one, to test under.
look() {
    missing=" python3 python3-venv"
    check='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))'
    for python in python3 /usr/bin/python3 $(printf 'python3.%s ' 14 13 12 11 10 9); do
        if "$python" -c "$check" 2> /dev/null; then
            missing=""
            break
        fi
    done
    command -v openssl > /dev/null || missing="$missing openssl"
}

# Is a program (its name) or a library (lib/ and its path) here, in .tools or on the machine?
is_here() (
    PATH=$tools/wrapped:$tools/usr/bin:$tools/usr/sbin:$PATH:/usr/sbin:/sbin
    case $1 in
    lib/*) find "$tools/usr/lib" /usr/lib /usr/lib64 -path "*/${1#lib/}" 2> /dev/null | grep -q . ;;
    *) command -v "$1" > /dev/null ;;
    esac
)

# Fetches the packages of what is not here; on another system than Debian, says that it is missing.
# Arguments: a release of Debian, pairs WHAT:PACKAGE.
fetch() {
    release=$1
    shift
    packages=$(for pair; do is_here "${pair%:*}" || echo "${pair#*:}"; done | sort -u)
    # shellcheck disable=SC2086  # a list
    if [ -n "$packages" ] && [ -n "$debian" ]; then
        sh tests/packages.sh "$tools" "$release" $packages
    elif [ -n "$packages" ]; then
        echo "Missing:" $packages
        echo "Install these, or put them into $tools, laid out as Debian's packages are."
        exit 1
    fi
}

# Makes a program in .tools that starts an unpacked one, if there is one. Arguments: the program to
# make; the folder of the unpacked one; its path there; what starts it, if not just the libraries
# beside it do; a folder of Python modules, to be compiled (else each start takes half a second).
wrap() {
    if [ ! -e "$2/$3" ] || [ -e "$tools/$1" ]; then
        return
    fi
    mkdir -p "$(dirname "$tools/$1")"
    start=${4:-env LD_LIBRARY_PATH=\"$(echo "$2"/usr/lib/*-linux-*)\"}
    printf '#!/bin/sh\nexec %s "%s" "$@"\n' "$start" "$2/$3" > "$tools/$1.new"
    chmod +x "$tools/$1.new"
    if [ -n "${5:-}" ]; then
        "$tools/$1.new" -m compileall -q "$5" > "$tools/compileall.log" || true
    fi
    mv "$tools/$1.new" "$tools/$1"
}

# Makes a virtual environment, unless it is there. Arguments: its name, a program in it, packages.
make_venv() {
    venv=$tools/$1
    program=$2
    shift 2
    stamp=$venv/.made-$(echo "$*" | cksum | tr ' ' -)
    if [ ! -e "$stamp" ] || ! "$venv/bin/$program" --version > /dev/null 2>&1; then
        echo "Making a virtual environment with $*"
        "$python" -m venv --clear "$venv"
        "$venv/bin/pip" --quiet --disable-pip-version-check install "$@"
        : > "$stamp"
    fi
}

# Sets up the servers and what goes with them, without which the tests do not do; and on Debian,
# what the script is tested with beside the Pythons and the openssl of the machine. What of that
# cannot be had is left out, and the closing summary says so.
set_up() {
    fetch forky pebble:pebble pebble-challtestsrv:pebble caddy:caddy
    fetch here nginx:nginx apache2:apache2 lighttpd:lighttpd curl:curl shellcheck:shellcheck \
        ip:iproute2 systemd-analyze:systemd setpriv:util-linux unshare:util-linux \
        lib/libnss_wrapper.so:libnss-wrapper lib/faketime/libfaketime.so.1:faketime
    wrap wrapped/ip "$tools" usr/bin/ip
    libraries=$(echo "$tools"/usr/lib/*-linux-*)
    wrap wrapped/systemd-analyze "$tools" usr/bin/systemd-analyze \
        "env LD_LIBRARY_PATH=\"$libraries:$libraries/systemd\" \\
    SYSTEMD_UNIT_PATH=\"\$SYSTEMD_UNIT_PATH$tools/usr/lib/systemd/system:\""
    # A CA's own, so that what it needs cannot be what the tests need in another version.
    make_venv a2c-venv gunicorn "acme2certifier[django]==0.46.*" "gunicorn==23.*"
    [ -n "$debian" ] || return 0
    pypy=$tools/pypy3 new=$tools/python3.14 old=$tools/bullseye
    if ! is_here pypy3; then
        sh tests/packages.sh "$pypy" here pypy3 || true
        wrap wrapped/pypy3 "$pypy" usr/bin/pypy3 "" "$(echo "$pypy"/usr/lib/pypy3*)"
    fi
    if ! is_here python3.14; then
        # The next Debian's. It brings a C library and its loader for itself alone: the openssl that
        # it starts is the machine's. It looks for its modules in lib beside the wrapper.
        sh tests/packages.sh "$new" forky python3.14-minimal libpython3.14-minimal \
            libpython3.14-stdlib libc6 libssl3t64 zlib1g libzstd1 libexpat1 libffi8 || true
        loader=$(echo "$new"/usr/lib/*-linux-*/ld-linux-*.so.*)
        ln -sfn ../python3.14/usr/lib "$tools/wrapped/lib"
        wrap wrapped/python3.14 "$new" usr/bin/python3.14 \
            "\"$loader\" --library-path \"${loader%/*}\" --argv0 \"\$0\"" "$new/usr/lib/python3.14"
    fi
    if [ ! -e "$tools/openssl-1.1.1/openssl" ]; then
        sh tests/packages.sh "$old" bullseye openssl libssl1.1 || true
        wrap openssl-1.1.1/openssl "$old" usr/bin/openssl
    fi
}

look
if [ -n "$missing" ] && [ -n "$debian" ] && [ "$(id -u)" = 0 ]; then
    echo "Installing$missing"
    apt-get -qq update
    # shellcheck disable=SC2086  # a list
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $missing > /dev/null
    look
fi
if [ -n "$missing" ]; then
    echo "Missing (python3 must be 3.9 or later):$missing"
    echo "On Debian 12 or later, as root: apt-get update && apt-get install$missing"
    exit 1
fi >&2
environments=$(printf '%s\n' "$@" | sed -n '/^-e$/ { n; s/,/ /g; p; }')
for environment in ${environments:-all}; do
    case $environment in
    quick) ;;
    lint) fetch here shellcheck:shellcheck ;;
    *) set_up ;;
    esac
done
make_venv venv tox tox

: > "$LETSACME_SUMMARY"
status=0
"$tools/venv/bin/tox" "$@" || status=$?
if [ -s "$LETSACME_SUMMARY" ]; then
    echo
    echo "letsacme.py was run under:"
    sed 's/^/  /' "$LETSACME_SUMMARY"
fi
exit $status
