"""Other makes of CA: Caddy's acme_server, which is smallstep's, and acme2certifier, in Python.

They look names up as the system does, or at port 53, and connect to port 80. So each of them and
letsacme.py run in namespaces of their own: with an /etc/hosts, and a loopback on which every port
is free.
"""
import datetime
import functools
import json
import os
import subprocess

import pytest
import trustme
from pki import check_chain
from servers import NGINX_HEAD, Server, kept
from support import TOOLS, tool, tools_env
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
http://wrong.example {{
    respond "something else"
}}
"""
CONFIG = """
[DEFAULT]
async_mode: True
dns_server_list: ["127.0.0.1"]
[DBhandler]
dbfile: {folder}/database
[CAhandler]
handler_module: acme2certifier.cahandlers.openssl_ca_handler
issuing_ca_key: {folder}/issuer.key
issuing_ca_cert: {folder}/issuer.pem
issuing_ca_crl: {folder}/crl
cert_save_path: {folder}
cert_validity_days: 90
blocked_domainlist: ["^blocked"]
[Order]
allowed_domainlist: ["*.example"]
[Renewalinfo]
renewalthreshold_pctg: 50
renewal_window_duration: 2d
[EABhandler]
eab_handler_module: acme2certifier.eabhandlers.json_handler
key_file: {folder}/eab.json
"""
# A file can name a request after which the CA dies without an answer; gunicorn starts it again.
GUNICORN = """
import os
bind = "127.0.0.1:8000"

def post_worker_init(worker):
    serve, order = worker.wsgi, "{folder}/stop"
    def serve_or_die(environ, start_response):
        answer = serve(environ, start_response)
        if os.path.exists(order) and open(order).read() in environ["PATH_INFO"]:
            os.remove(order)
            os._exit(1)
        return answer
    worker.wsgi = serve_or_die
"""
NGINX = NGINX_HEAD + """
    server {{
        listen 80;
        root {folder}/www;
    }}
    server {{
        listen 443 ssl;
        ssl_certificate {folder}/tls.pem;
        ssl_certificate_key {folder}/tls.pem;
        location / {{
            proxy_pass http://127.0.0.1:8000;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-Proto https;
        }}
    }}
}}
master_process off;
"""
NAMES = ["n%d.example" % number for number in range(3)]
OTHERS = ["missing.example", "wrong.example", "blocked.example", "elsewhere.test"]
HOSTS = {"::1": ["localhost"], "127.0.0.1": ["localhost", *NAMES, *OTHERS]}
MAC_KEY = "V" * 64
GIVEN = ["--contact", "a@site.example", "--eab-kid", "kid-1", "--eab-hmac-key", MAC_KEY]


class CA:
    """A CA in namespaces of its own; prepare(self) starts it and says where it is."""

    def __init__(self, folder, inside, prepare):
        self.folder, self.inside, self.servers, self.given = folder, inside, [], []
        self.challenges = folder / "www/.well-known/acme-challenge"
        for made in (self.challenges, folder / "unserved", folder / "storage"):
            made.mkdir(parents=True)
        prepare(self)

    def write(self, name, text):
        """Writes a file, in which {folder} is the folder."""
        (self.folder / name).write_text(text.format(folder=self.folder))

    def serve(self, ready, *command, **options):
        """Starts a server."""
        log = self.folder / ("server%d.log" % len(self.servers))
        self.servers.append(Server(command, ready, log, inside=self.inside, **options))

    def stop(self):
        """Ends all of it."""
        for server in reversed(self.servers):
            server.stop()


def caddy(ca):
    """Caddy is CA and web server."""
    ca.directory = "https://localhost/acme/local/directory"
    ca.ca_file = ca.folder / "storage/pki/authorities/local/root.crt"
    ca.write("Caddyfile", CADDYFILE)
    # Caddy cleans its storage at the first start, and may so remove the folder of the very
    # certificate that it is about to store; it does not if it reads that it has just done so.
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    (ca.folder / "storage/last_clean.json").write_text(json.dumps({"tls": {"timestamp": now}}))
    ca.serve(["certificate obtained successfully"], tool("caddy"), "run", "--config",
             ca.folder / "Caddyfile", env=tools_env(HOME=str(ca.folder)))


def acme2certifier(ca, form="wsgi"):
    """acme2certifier stands behind nginx, and beside (Pebble's) name server, which says that all is
    here. Its plain form keeps to itself why a name is refused; Django's validates and issues when
    it has answered already."""
    ca.directory, ca.given = "https://localhost/directory", GIVEN
    ca.ca_file = ca.folder / "root.pem"
    for name, text in (("a2c.cfg", CONFIG), ("gunicorn.py", GUNICORN), ("nginx.conf", NGINX)):
        ca.write(name, text)
    (ca.folder / "eab.json").write_text(json.dumps({"kid-1": MAC_KEY}))
    root = trustme.CA()
    issuer = root.create_child_ca()
    for name, pem in (("root.pem", root.cert_pem), ("issuer.pem", issuer.cert_pem),
                      ("issuer.key", issuer.private_key_pem),
                      ("tls.pem", root.issue_cert("localhost").private_key_and_cert_chain_pem)):
        pem.write_to_path(ca.folder / name)
    ca.serve([53], tool("pebble-challtestsrv"), "-dnsserver", "127.0.0.1:53", "-defaultIPv6", "",
             "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "")
    programs = TOOLS / "a2c-venv/bin"
    assert programs.exists(), "acme2certifier is missing: 'sh tests/run.sh' fetches it"
    env = dict(os.environ, ACME_SRV_CONFIGFILE=str(ca.folder / "a2c.cfg"),
               ACME_SRV_DB_HANDLER=form, ACME2CERTIFIER_BASE_DIR=str(ca.folder),
               ACME2CERTIFIER_SECRET_KEY="of these tests", no_proxy="*",
               DJANGO_SETTINGS_MODULE="acme2certifier.django_project.settings")
    application = "acme2certifier.share.acme2certifier_wsgi"
    if form == "django":
        application = "acme2certifier.django_project.wsgi"
        for words in (["migrate"], ["loaddata", "status"]):
            subprocess.run([programs / "django-admin", *words], env=env, check=True,
                           capture_output=True)
    ca.serve([8000], programs / "gunicorn", "--config", ca.folder / "gunicorn.py",
             application + ":application", env=env)
    ca.serve([80, 443], tool("nginx"), "-p", ca.folder, "-e", ca.folder / "error.log",
             "-c", ca.folder / "nginx.conf")


MAKES = {"caddy": caddy, "wsgi": acme2certifier,
         "django": functools.partial(acme2certifier, form="django")}


@pytest.fixture(scope="module")
def start(namespaces, tmp_path_factory):
    """start("caddy") is a CA of this make, started on first use."""
    def make(name):
        return CA(tmp_path_factory.mktemp(name), namespaces(HOSTS).inside, MAKES[name])
    with kept(make) as start_once:
        yield start_once


@pytest.mark.parametrize("make, names, kind", [
    ("caddy", NAMES, "rsa2048"), ("caddy", ["::1"], "p384"),
    ("caddy", [NAMES[0], "127.0.0.1", "::1"], "p256"),
    ("wsgi", NAMES[:2], "p256"), ("django", NAMES[:2], "p256")])
def test_issues(run_inside, start, csr, key, make, names, kind):
    """Names and addresses are proved and certified, with each kind of key."""
    ca = start(make)
    # Django's says "Retry-After: 600" with an order that is valid in a moment.
    result = run_inside(ca, csr(names, key(kind)), *ca.given, account=key(kind, "account"),
                        constants={"LONGEST_POLL_PAUSE": 2} if make == "django" else None)
    assert result.status == 0, result.err
    check_chain(result.out, names, key(kind), ca.ca_file)


@pytest.mark.parametrize("make, bad, words, position", [
    ("caddy", "nowhere.example", "connection", 0), ("caddy", "missing.example", "connection", 1),
    ("caddy", "wrong.example", "rejectedIdentifier", 0), ("wsgi", NAMES[1], "invalid", 0),
    ("django", NAMES[1], "HTTP request failed: 404", 1)])
def test_reports_a_name(run_inside, start, csr, make, bad, words, position):
    """One that cannot be proved is reported within seconds, though the order stays pending; so does
    Caddy's authorization, even if the challenge becomes invalid."""
    ca, names = start(make), NAMES[:1]
    names.insert(position, bad)
    config = json.dumps({bad: {"AcmeDir": str(ca.folder / "unserved")}})
    error = error_of(run_inside(ca, csr(names), *ca.given, "--disable-check", "--config-json",
                                config, timeout=30))
    assert error.startswith("E: %s: " % bad) and words in error


@pytest.mark.parametrize("make, early, late", [("caddy", "+5h", "+7h"), ("wsgi", "+44d", "+47d")])
def test_renews(renews, start, make, early, late):
    """Caddy has no renewal information: its certificates of 12 hours are renewed after six.
    acme2certifier wants its own, of 90 days, renewed after 45."""
    ca = start(make)
    renews(ca, NAMES[0], early, late, *ca.given)


@pytest.mark.parametrize("names, given, words", [
    (NAMES, GIVEN[:2], "External account binding required"),
    (NAMES, GIVEN[2:], "Contact information is missing"),
    (NAMES, [*GIVEN, "--eab-hmac-key", "W" * 64], "invalid eab credentials"),
    ([NAMES[0], "elsewhere.test"], GIVEN, "FQDN/SAN elsewhere.test not allowed by configuration"),
    ([NAMES[0], "blocked.example"], GIVEN, "enrollment failed")])
def test_refused(run_inside, start, csr, names, given, words):
    """An account or a name is refused: that is told in the CA's words, be it last of all."""
    assert words in error_of(run_inside(start("wsgi"), csr(names), *given, timeout=60))


@pytest.mark.parametrize("path", ["/acme/neworders", "/acme/chall", "/finalize"])
def test_restart(run_inside, start, csr, key, path):
    """The CA dies in a run and is back at once; what it has done, its answer lost, is not lost."""
    ca = start("wsgi")
    ca.write("stop", path)
    log = ca.folder / "access.log"
    before = log.stat().st_size
    result = run_inside(ca, csr(NAMES), *ca.given)
    assert result.status == 0, result.err
    check_chain(result.out, NAMES, key(), ca.ca_file)
    assert '" 502 ' in log.read_text()[before:]
