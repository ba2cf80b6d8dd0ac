"""A second make of CA: Caddy's acme_server, which is smallstep's.

It looks names up as the system does and connects to port 80. So Caddy, which is CA and web server
here, and letsacme.py run in namespaces of their own: with an /etc/hosts, and a loopback on which
ports 80 and 443 are free.
"""
import os
import re
import shlex
import subprocess
import time

import pytest
from support import Server, check_chain, tool, tools_env, write_key

CADDYFILE = """
{{
    admin off
    auto_https disable_redirects
    persist_config off
    skip_install_trust
    storage file_system {folder}/storage
}}
https://localhost {{
    tls internal
    acme_server
}}
http:// {{
    root * {folder}/www
    file_server
}}
http://missing.example {{
    respond 404
}}
http://wrong.example {{
    respond "something else"
}}
"""
NAMES = ["n%d.example" % number for number in range(100)]
# An ordinary user may have namespaces, too, as the root of a user namespace.
ROOT = os.geteuid() == 0
UNSHARE = ["unshare", "--mount", "--net"] + ["--map-root-user"] * (not ROOT)


class Caddy:
    """Caddy in its namespaces."""

    directory = "https://localhost/acme/local/directory"

    def __init__(self, folder):
        hosts = ["::1 localhost", "192.0.2.1 unreachable.example"]
        hosts += ["127.0.0.1 " + name for name in
                  ["localhost", "missing.example", "wrong.example", *NAMES]]
        (folder / "hosts").write_text("\n".join(hosts) + "\n")
        (folder / "Caddyfile").write_text(CADDYFILE.format(folder=folder))
        self.challenges = folder / "www" / ".well-known" / "acme-challenge"
        self.challenges.mkdir(parents=True)
        self.ca_file = folder / "storage" / "pki" / "authorities" / "local" / "root.crt"
        words = {"hosts": folder / "hosts", "ip": tool("ip"), "caddy": tool("caddy"),
                 "config": folder / "Caddyfile"}
        script = ("mount --bind {hosts} /etc/hosts && {ip} link set lo up && "
                  "exec setpriv --pdeathsig TERM {caddy} run --config {config}").format(
                      **{name: shlex.quote(str(word)) for name, word in words.items()})
        self.server = Server([*UNSHARE, "sh", "-c", script], [], folder / "caddy.log",
                             tools_env(HOME=str(folder)))
        self.inside = ["nsenter", "--target", self.server.process.pid, "--mount", "--net"]
        self.inside += ["--user", "--preserve-credentials"] * (not ROOT)
        try:
            self.wait()
        except BaseException:
            self.server.stop()
            raise

    def wait(self):
        """Waits until Caddy serves."""
        deadline = time.monotonic() + 60
        while "certificate obtained successfully" not in self.server.log:
            assert time.monotonic() < deadline and self.server.process.poll() is None, \
                "Caddy did not start:\n" + self.server.log
            time.sleep(0.05)


@pytest.fixture(scope="module")
def caddy(tmp_path_factory):
    """A Caddy; where there can be no namespaces, the tests are skipped, but not in CI."""
    probe = subprocess.run([*UNSHARE, "mount", "--bind", "/etc/hosts", "/etc/hosts"],
                           capture_output=True, text=True)
    if probe.returncode:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("Caddy needs namespaces of its own, so root or the right to make them: "
                + probe.stderr)
    server = Caddy(tmp_path_factory.mktemp("caddy"))
    yield server
    server.server.stop()


@pytest.fixture
def run(letsacme, caddy, account):
    """run(csr, ...) asks Caddy for a certificate, as its only CA and on the usual ports."""
    env = {"SSL_CERT_FILE": str(caddy.ca_file), "NSS_WRAPPER_HOSTS": None}

    def start(csr, *args, account=account, **options):
        """A run of letsacme.py; nothing may be left of it in the challenge directory."""
        before = set(caddy.challenges.iterdir())
        result = letsacme("--csr", csr, "--account-key", account, "--acme-dir", caddy.challenges,
                          "--ca", caddy.directory, *args, env=env, wrapper=caddy.inside,
                          **options)
        assert set(caddy.challenges.iterdir()) == before
        return result
    return start


@pytest.mark.parametrize(("count", "account_kind", "kind"), [
    pytest.param(1, "p256", "p256", marks=pytest.mark.core),
    (1, "rsa2048", "rsa2048"), (1, "p384", "p384"), (100, "rsa2048", "p256"),
    (100, "p256", "rsa2048")])
def test_issues(run, caddy, csr, key, tmp_path, count, account_kind, kind):
    """Names are proved and certified, with each kind of key; the account is found again."""
    account = write_key(tmp_path / "new.key", account_kind)
    request = csr(NAMES[:count], key(kind))
    accounts = set()
    for _ in range(2):
        result = run(request, account=account)
        assert result.status == 0, result.err
        accounts.update(re.findall(r"https://localhost/acme/local/account/\w+", result.err))
        check_chain(result.out, NAMES[:count], key(kind), caddy.ca_file)
    assert len(accounts) == 1


@pytest.mark.parametrize(("names", "ips"), [
    ([], ["127.0.0.1"]), ([], ["::1"]), (NAMES[:1], ["127.0.0.1", "::1"])])
def test_issues_for_addresses(run, caddy, csr, key, names, ips):
    """Addresses are certified alone and beside names."""
    result = run(csr(names, ips=ips))
    assert result.status == 0, result.err
    check_chain(result.out, names + ips, key(), caddy.ca_file)


@pytest.mark.parametrize(("bad", "kind"), [
    pytest.param("nowhere.example", "connection", marks=pytest.mark.core),
    ("unreachable.example", "connection"), ("missing.example", "connection"),
    ("wrong.example", "rejectedIdentifier")])
@pytest.mark.parametrize("position", [0, 1])
def test_reports_a_name(run, csr, bad, kind, position):
    """A name that Caddy cannot verify is reported when Caddy says so, not after ten minutes.

    The authorization stays pending, though the challenge of wrong.example becomes invalid.
    """
    names = NAMES[:1]
    names.insert(position, bad)
    result = run(csr(names), "--disable-check", timeout=60)
    assert result.status == 1
    [error] = [line for line in result.err.splitlines() if line.startswith("E: ")]
    assert error.startswith("E: %s: " % bad) and kind in error


def test_renews(run, caddy, csr, key, tmp_path):
    """Caddy has no renewal information; its certificates of 12 hours are renewed after six."""
    output = tmp_path / "fullchain.pem"
    for clock, status in (None, 0), ("+5h", 3), ("+7h", 0):
        result = run(csr(NAMES[:1]), "--renew", "--fullchain-file", output, clock=clock)
        assert result.status == status, result.err
        check_chain(output.read_text(), NAMES[:1], key(), caddy.ca_file)
