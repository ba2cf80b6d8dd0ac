#!/bin/sh
# Fetches Debian packages and unpacks them into a folder: nothing is installed, no root is needed,
# and the machine's own apt and dpkg are left as they were.
#
#   sh tests/packages.sh FOLDER RELEASE PACKAGE...
#
# RELEASE "here" is the machine's own release: what the packages need and the machine lacks comes
# along. From any other release (such as "forky") exactly the named packages are taken.
# Whatever has been fetched into FOLDER once is not fetched again.
set -eu

# Ends with a message.
fail() {
    echo "packages.sh: $*" >&2
    exit 1
}

# shellcheck disable=SC1091  # a file of the machine
here=$(. /etc/os-release && [ "$ID" = debian ] && echo "${VERSION_CODENAME:-}") ||
    fail "this needs Debian 12 or later"
mkdir -p "$1"
folder=$(cd "$1" && pwd)
release=$2
shift 2

exec 9> "$folder/.lock"
flock 9 # two runs at once take turns
stamp=$folder/.fetched-$(echo "$release $*" | cksum | tr ' ' -)
[ ! -e "$stamp" ] || exit 0
work=$(mktemp -d "$folder/.work-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"

# The mirror is the one that the machine's own sources name (whether or not apt-get update was run).
sources() {
    # shellcheck disable=SC2016  # the dollars are apt's
    apt-get indextargets --no-release-info -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
        --format '$(CREATED_BY) $(COMPONENT) $(RELEASE) $(REPO_URI)' |
        sed -n "s/^Packages main \(${here}[^ ]*\|stable[^ ]*\) /\1 /p" | sort -u
}
signed="signed-by=/usr/share/keyrings/debian-archive-keyring.gpg"
if [ "$release" = here ]; then
    status=/var/lib/dpkg/status
    sources | while read -r suite mirror; do
        echo "deb [$signed] $mirror $suite main"
    done > "$work/sources.list"
else
    status=$work/status # none installed: not even what is may stand in for what was asked for
    : > "$status"
    mirror=$(sources | sed -n "s/^\($here\|stable\) //p" | head -n 1)
    echo "deb [$signed] $mirror $release main" > "$work/sources.list"
fi
grep -q '//' "$work/sources.list" || fail "no Debian mirror found in the machine's apt sources"
cat > "$work/apt.conf" << EOF
Dir::State "$work/state"; Dir::State::status "$status"; Dir::Cache "$work/cache"; Dir::Log "$work";
Dir::Etc::SourceList "$work/sources.list"; Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null"; Dir::Etc::PreferencesParts "/dev/null";
Debug::NoLocking "true"; APT::Sandbox::User ""; APT::Install-Recommends "false";
Acquire::Languages "none"; Acquire::Retries "3";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
EOF

# Runs an apt-get command quietly; its words are shown only when it fails.
apt() {
    if ! apt-get -qq -c "$work/apt.conf" "$@" > "$work/log" 2>&1; then
        cat "$work/log" >&2
        fail "'apt-get $*' failed (release '$release')"
    fi
}

echo "Fetching from Debian ($release): $*"
apt update -o APT::Update::Error-Mode=any
cd "$work/cache/archives"
if [ "$release" = here ]; then
    apt install --yes --download-only --no-upgrade "$@"
else
    apt download "$@"
fi
for package in *.deb; do
    [ ! -e "$package" ] || dpkg-deb --extract "$package" "$folder" # none, if all are installed
done
# As on a machine, all of /bin, /sbin and /lib is in /usr.
for part in bin sbin lib lib64; do
    if [ -d "$folder/$part" ]; then
        mkdir -p "$folder/usr/$part"
        cp -a "$folder/$part/." "$folder/usr/$part/"
        rm -r "${folder:?}/$part"
    fi
done
: > "$stamp"
