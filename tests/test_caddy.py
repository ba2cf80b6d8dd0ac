"""A second make of CA: Caddy's acme_server, which is smallstep's.

It looks names up as the system does and connects to port 80. So Caddy, which is CA and web server
here, and letsacme.py run in namespaces of their own: with an /etc/hosts, and a loopback on which
ports 80 and 443 are free.
"""
import datetime
import json

import pytest
from pki import check_chain
from servers import Server
from support import tool, tools_env
from trials import error_of

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
NAMES = ["n%d.example" % number for number in range(3)]


class Caddy:
    """Caddy in its namespaces."""

    directory = "https://localhost/acme/local/directory"

    def __init__(self, folder, namespaces):
        (folder / "Caddyfile").write_text(CADDYFILE.format(folder=folder))
        self.challenges = folder / "www" / ".well-known" / "acme-challenge"
        self.challenges.mkdir(parents=True)
        # Caddy cleans its storage at the first start, and may so remove the folder of the very
        # certificate that it is about to store; it does not if it reads that it has just done so.
        (folder / "storage").mkdir()
        now = datetime.datetime.now(datetime.timezone.utc).isoformat()
        (folder / "storage" / "last_clean.json").write_text(json.dumps({"tls": {"timestamp": now}}))
        self.ca_file = folder / "storage" / "pki" / "authorities" / "local" / "root.crt"
        self.inside = namespaces.inside
        self.server = Server([tool("caddy"), "run", "--config", folder / "Caddyfile"],
                             ["certificate obtained successfully"], folder / "caddy.log",
                             tools_env(HOME=str(folder)), inside=self.inside)


@pytest.fixture(scope="module")
def caddy(namespaces, tmp_path_factory):
    """A Caddy."""
    inside = namespaces({"::1": ["localhost"],
                         "127.0.0.1": ["localhost", "missing.example", "wrong.example", *NAMES]})
    caddy = Caddy(tmp_path_factory.mktemp("caddy"), inside)
    yield caddy
    caddy.server.stop()


@pytest.mark.parametrize("names, account_kind, kind", [
    (NAMES, "rsa2048", "rsa2048"), (["::1"], "p384", "p384"),
    ([NAMES[0], "127.0.0.1", "::1"], "p256", "p256")], ids=["names", "address", "both"])
def test_issues(run_inside, caddy, csr, key, names, account_kind, kind):
    """Names and addresses are proved and certified, with each kind of key."""
    result = run_inside(caddy, csr(names, key(kind)), account=key(account_kind, "account"))
    assert result.status == 0, result.err
    check_chain(result.out, names, key(kind), caddy.ca_file)


@pytest.mark.parametrize("bad, kind, position", [
    ("nowhere.example", "connection", 0), ("missing.example", "connection", 1),
    ("wrong.example", "rejectedIdentifier", 0)])
def test_reports_a_name(run_inside, caddy, csr, bad, kind, position):
    """A name that Caddy cannot verify is reported when Caddy says so, not after ten minutes.

    The authorization stays pending, though the challenge of wrong.example becomes invalid.
    """
    names = NAMES[:1]
    names.insert(position, bad)
    error = error_of(run_inside(caddy, csr(names), "--disable-check", timeout=60))
    assert error.startswith("E: %s: " % bad) and kind in error


def test_renews(renews, caddy):
    """Caddy has no renewal information; its certificates of 12 hours are renewed after six."""
    renews(caddy, NAMES[0], "+5h", "+7h")
