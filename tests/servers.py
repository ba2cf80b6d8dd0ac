"""Real servers on free ports of loopback: Pebble and its DNS, nginx; and namespaces for others."""
import contextlib
import datetime
import http.client
import json
import os
import random
import re
import shlex
import socket
import ssl
import subprocess
import time
from pathlib import Path

import trustme
from support import tool, tools_env


def free_port():
    """A port that is free on both loopbacks, outside the range of outgoing connections."""
    while True:
        port = random.randrange(10000, 30000)
        with contextlib.suppress(OSError):
            socket.create_server(("127.0.0.1", port)).close()
            if has_ipv6():
                socket.create_server(("::1", port), family=socket.AF_INET6).close()
            return port


def has_ipv6():
    """Does this machine have ::1?"""
    with contextlib.suppress(OSError):
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        return True
    return False


class Server:
    """A process that serves on loopback until it is stopped or the tests die.

    It is ready when it listens on ports, or has written words. inside takes it into Namespaces.
    """

    def __init__(self, command, ready, log, env=None, cwd=None, inside=()):
        self.log_file, inside = Path(log), [*map(str, inside)]
        # The kernel ends the server with the tests, however those end.
        command = [*inside, "setpriv", "--pdeathsig", "TERM", *map(str, command)]
        with self.log_file.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, cwd=cwd,
                                            stdin=subprocess.DEVNULL, env=env or tools_env())
        deadline = time.monotonic() + 60
        for sign in ready:
            while not self.shows(sign, inside):
                alive = self.process.poll() is None and time.monotonic() < deadline
                assert alive, "server did not start:\n" + self.log
                time.sleep(0.02)

    def shows(self, sign, inside):
        """Does something listen on this port, or has the server written these words?"""
        if not isinstance(sign, int):
            return sign in self.log
        connect = [*inside, "bash", "-c", ": < /dev/tcp/127.0.0.1/%d" % sign]
        return subprocess.run(connect, stderr=subprocess.DEVNULL).returncode == 0

    @property
    def log(self):
        """What the server has written so far."""
        return self.log_file.read_text(errors="replace")

    def stop(self):
        """Ends the server."""
        self.process.terminate()
        self.process.wait(60)


@contextlib.contextmanager
def kept(start):
    """start, but equal arguments get the same server again; in the end, all are stopped."""
    running = {}

    def start_once(*args, **options):
        key = json.dumps([args, options], sort_keys=True)
        if key not in running:
            running[key] = start(*args, **options)
        return running[key]
    yield start_once
    for server in running.values():
        server.stop()


class Namespaces(Server):
    """A loopback on which every port is free, and an /etc/hosts, for some servers and the script.

    An ordinary user may have them, too, as the root of a user namespace.
    """

    def __init__(self, folder, hosts):
        (folder / "hosts").write_text("".join(
            "%s %s\n" % (address, " ".join(names)) for address, names in hosts.items()))
        script = "mount --bind %s /etc/hosts && %s link set lo up && echo ready && exec sleep inf"
        script %= shlex.quote(str(folder / "hosts")), shlex.quote(tool("ip"))
        unshare, enter = ["unshare", "--mount", "--net"], ["nsenter", "--mount", "--net"]
        if os.geteuid() != 0:
            unshare += ["--map-root-user"]
            enter += ["--user", "--preserve-credentials"]
        super().__init__(["sh", "-c", script], ["ready"], folder / "namespaces.log", inside=unshare)
        self.inside = [*enter, "--target", str(self.process.pid)]


class Pebble(Server):
    """A Pebble with a DNS server of its own, which says that every name is on loopback.

    Options in capitals (PEBBLE_WFE_NONCEREJECT=50) go to Pebble's environment, others
    (retryAfter={"order": 2}) into its configuration.
    """

    def __init__(self, folder, http_port, strict=False, **options):
        self.http_port, self.port, self.management_port = http_port, free_port(), free_port()
        self.directory = "https://localhost:%d/dir" % self.port
        ca = trustme.CA()
        self.ca_file = folder / "tls-root.pem"
        ca.cert_pem.write_to_path(self.ca_file)
        ca.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            folder / "tls.pem")
        config = {"listenAddress": "127.0.0.1:%d" % self.port,
                  "managementListenAddress": "127.0.0.1:%d" % self.management_port,
                  "certificate": "tls.pem", "privateKey": "tls.pem", "httpPort": http_port,
                  "tlsPort": free_port(), "retryAfter": {"authz": 0, "order": 0},
                  **{name: value for name, value in options.items() if not name.isupper()}}
        env = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0", "PEBBLE_WFE_NONCEREJECT": "15"}
        env.update((name, str(value)) for name, value in options.items() if name.isupper())
        (folder / "config.json").write_text(json.dumps({"pebble": config}))
        dns, control = free_port(), free_port()
        self.dns = Server([tool("pebble-challtestsrv"), "-dnsserver", "127.0.0.1:%d" % dns,
                           "-management", "127.0.0.1:%d" % control, "-defaultIPv4", "127.0.0.1",
                           "-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", "",
                           "-doh", ""], [dns, control], folder / "dns.log")
        command = [tool("pebble"), "-config", "config.json", "-dnsserver", "127.0.0.1:%d" % dns]
        super().__init__(command + ["-strict"] * strict, [self.management_port, self.port],
                         folder / "pebble.log", tools_env(**env), folder)
        self.root = folder / "root.pem"
        self.root.write_bytes(self.management("/roots/0"))

    def management(self, path):
        """An answer of Pebble's management interface, such as /intermediates/0."""
        with contextlib.closing(http.client.HTTPSConnection(
                "localhost", self.management_port, timeout=30,
                context=ssl.create_default_context(cafile=str(self.ca_file)))) as connection:
            connection.request("GET", path)
            return connection.getresponse().read()

    @property
    def requests(self):
        """The requests served so far, oldest first, such as 'POST /order-plz'."""
        return re.findall(r"((?:GET|HEAD|POST) /\S*) -> calling handler", self.log)

    def stop(self):
        """Ends Pebble and its DNS."""
        super().stop()
        self.dns.stop()


# The beginning of a configuration with which nginx writes nowhere but into a folder (its -p).
NGINX_HEAD = """
daemon off;
pid nginx.pid;
error_log error.log;
events {{ }}
http {{
    access_log access.log;
    client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp;
    uwsgi_temp_path temp; scgi_temp_path temp;
"""
NGINX = "{user}" + NGINX_HEAD + """
    server_names_hash_bucket_size 128;
    server {{
        {listen}
        {listen_tls}
        ssl_certificate {folder}/expired.pem;
        ssl_certificate_key {folder}/expired.pem;
        root {folder}/sites/$host;
    }}
    server {{
        {listen}
        server_name ~\\.alias\\.example$;
        location /.well-known/acme-challenge/ {{
            alias {folder}/challenges/;
            try_files $uri =404;
        }}
    }}
    server {{
        {listen}
        server_name ~\\.https\\.example$;
        return 301 https://$host:{tls_port}$request_uri;
    }}
}}
"""


class Nginx(Server):
    """An nginx that serves challenge files in the ways that web servers are set up to.

    The end of a host's name says how: NAME.site.example (and any other name or address) has its
    own document root, NAME.alias.example shares the folder `challenges`, NAME.https.example sends
    all to TLS with an expired certificate.
    """

    def __init__(self, folder):
        self.folder, self.challenges = folder, folder / "challenges"
        self.port, tls_port = free_port(), free_port()
        folder.chmod(0o755)  # as root, nginx's workers are another user
        for made in (self.challenges, folder / "sites"):
            made.mkdir()
        expired = trustme.CA().issue_cert(
            "www.expired.example", not_before=datetime.datetime(2020, 1, 1),
            not_after=datetime.datetime(2020, 2, 1))
        expired.private_key_and_cert_chain_pem.write_to_path(folder / "expired.pem")
        addresses = ["127.0.0.1"] + ["[::1]"] * has_ipv6()
        listen, listen_tls = (
            "".join("listen %s:%d%s;" % (address, port, how) for address in addresses)
            for port, how in ((self.port, ""), (tls_port, " ssl")))
        (folder / "nginx.conf").write_text(NGINX.format(
            folder=folder, listen=listen, listen_tls=listen_tls, tls_port=tls_port,
            user="user nobody nogroup;" if os.geteuid() == 0 else ""))
        super().__init__([tool("nginx"), "-p", folder, "-e", folder / "error.log", "-c",
                          folder / "nginx.conf"], [self.port, tls_port], folder / "out.log")

    def root(self, name):
        """The document root of a name, made if missing."""
        folder = self.folder / "sites" / name
        folder.mkdir(exist_ok=True)
        return folder
