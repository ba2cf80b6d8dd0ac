#!/bin/sh
# A whole issuance before your eyes, with a CA of its own (Pebble, a small one for tests).
#
# It needs no root and leaves nothing behind: Debian packages are unpacked into a folder that is
# removed at the end (or into .tools, if tests/run.sh has made that). All servers listen on free
# ports of 127.0.0.1.
set -eu
umask 022
top=$(cd "$(dirname "$0")/.." && pwd)
names="www.demo.example blog.demo.example shop.demo.example"
demo=$(mktemp -d "${TMPDIR:-/tmp}/letsacme-demo-XXXXXX")
servers=""

# Ends the servers and removes the folder, however the demo ended.
clean_up() {
    [ $? = 0 ] || tail -n 5 "$demo"/*.log >&2 || true
    # shellcheck disable=SC2086  # a list
    [ -z "$servers" ] || kill $servers || true
    wait
    rm -rf "$demo"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

# Says what comes next.
title() {
    printf '\n== %s\n' "$*"
}

# Shows a command and runs it.
run() {
    echo "\$ $*"
    "$@"
}

# Waits until something listens on a port.
wait_for() {
    timeout 20 python3 -c "
import socket, time
while socket.socket().connect_ex(('127.0.0.1', $1)):
    time.sleep(0.1)"
}

title "Programs"
tools=${LETSACME_TOOLS:-$top/.tools}
[ -d "$tools" ] || tools=$demo/tools
sh "$top/tests/packages.sh" "$tools" here python3 openssl nginx curl libnss-wrapper
sh "$top/tests/packages.sh" "$tools" forky pebble
# What was unpacked must find its libraries and its settings.
export PATH="$tools/usr/bin:$tools/usr/sbin:$PATH:/usr/sbin:/sbin"
libraries=$(find "$tools/usr/lib" -maxdepth 1 -name '*-linux-*' 2> /dev/null || true)
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
[ ! -e "$tools/etc/ssl/openssl.cnf" ] || export OPENSSL_CONF="$tools/etc/ssl/openssl.cnf"
preload=$(find "$tools" /usr/lib -name libnss_wrapper.so 2> /dev/null | head -n 1)
export no_proxy="*" NO_PROXY="*"

title "A CA, its DNS and a web server with three sites, on free ports of 127.0.0.1"
cd "$demo"
chmod 755 . # nginx may run as another user
# shellcheck disable=SC2046  # a list
set -- $(python3 -c "
import socket
sockets = [socket.socket() for _ in range(5)]
for each in sockets:
    each.bind(('127.0.0.1', 0))
    print(each.getsockname()[1])")
ca=$1 management=$2 dns=$3 control=$4 http=$5

# Pebble's own door has a certificate too, which the script is told to trust (SSL_CERT_FILE).
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
    -subj "/CN=Door of the CA" -addext "subjectAltName = DNS:localhost" \
    -addext "keyUsage = digitalSignature, keyCertSign" \
    -keyout door.key -out door.pem 2> openssl.log
cat > pebble.json << EOF
{"pebble": {
    "listenAddress": "127.0.0.1:$ca", "managementListenAddress": "127.0.0.1:$management",
    "certificate": "door.pem", "privateKey": "door.key", "httpPort": $http, "tlsPort": 1
}}
EOF
pebble-challtestsrv -dnsserver "127.0.0.1:$dns" -management "127.0.0.1:$control" \
    -defaultIPv6 "" -http01 "" -https01 "" -tlsalpn01 "" -doh "" > dns.log 2>&1 &
servers=$!
PEBBLE_VA_NOSLEEP=1 pebble -config pebble.json -dnsserver "127.0.0.1:$dns" > pebble.log 2>&1 &
servers="$servers $!"
echo "127.0.0.1 localhost" > hosts # which a machine without /etc/hosts does not know
entries=""
for name in $names; do
    mkdir -p "sites/$name"
    echo "127.0.0.1 $name" >> hosts
    entries="$entries,
    \"$name\": {\"DocumentRoot\": \"$demo/sites/$name\"}"
done
cat > nginx.conf << EOF
daemon off; user nobody nogroup; pid nginx.pid; error_log nginx-error.log;
events { }
http {
    access_log off;
    client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp;
    uwsgi_temp_path temp; scgi_temp_path temp;
    server { listen 127.0.0.1:$http; root $demo/sites/\$host; }
}
EOF
nginx -p "$demo/" -e nginx-error.log -c nginx.conf > nginx.log 2>&1 &
servers="$servers $!"
for port in "$ca" "$management" "$dns" "$http"; do
    wait_for "$port"
done
echo "Pebble: https://localhost:$ca/dir, nginx: port $http, sites: $names"

title "An account key, a domain key, a CSR for the three names, and their document roots"
umask 077
run openssl ecparam -name prime256v1 -genkey -noout -out account.key
run openssl ecparam -name prime256v1 -genkey -noout -out domain.key
run openssl req -new -key domain.key -subj / -out domain.csr \
    -addext "subjectAltName=DNS:$(echo "$names" | sed 's/ /,DNS:/g')"
echo "{${entries#,}
}" > config.json
run cat config.json

title "letsacme.py"
echo "(SSL_CERT_FILE makes it trust this CA; a preloaded library lets it find the three names. For"
echo "a real certificate, neither these nor --ca and --check-port are needed.)"
run env SSL_CERT_FILE=door.pem LD_PRELOAD="$preload" NSS_WRAPPER_HOSTS=hosts \
    python3 "$top/letsacme.py" --account-key account.key --csr domain.csr \
    --config-json config.json --cert-file signed.crt --chain-file chain.crt \
    --fullchain-file fullchain.crt --ca "https://localhost:$ca/dir" --check-port "$http"

title "What the files hold"
run ls -l signed.crt chain.crt fullchain.crt
run openssl x509 -in signed.crt -noout -subject -issuer -dates -ext subjectAltName
run openssl x509 -in chain.crt -noout -subject -issuer
curl -sS --cacert door.pem "https://localhost:$management/roots/0" -o root.pem
run openssl verify -CAfile root.pem -untrusted chain.crt signed.crt
test -z "$(find sites -path '*acme-challenge/*')"
echo "No challenge file is left in the document roots."

title "Done; the servers are stopped and the folder of the demo is removed"
