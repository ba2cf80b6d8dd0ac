"""A third make of CA: acme2certifier, which is written in Python, behind nginx.

It asks a name server on port 53 and connects to port 80. So all of it and letsacme.py run in
namespaces of their own.
"""
import json
import os
import subprocess

import pytest
import trustme
from pki import check_chain
from servers import NGINX_HEAD, Server, kept
from support import TOOLS, tool
from trials import error_of

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
# A file can name a request at which the CA is to stop, before or after it has done what it is asked
# for; either way it does not answer.
GUNICORN = """
import os, signal
bind = "127.0.0.1:8000"

def post_worker_init(worker):
    serve, order = worker.wsgi, "{folder}/stop"
    def serve_or_stop(environ, start_response):
        when, path = open(order).read().split() if os.path.exists(order) else ("never", "")
        stop = when != "never" and path in environ["PATH_INFO"]
        answer = [] if stop and when == "before" else serve(environ, start_response)
        if stop:
            os.remove(order)
            os.kill(os.getppid(), signal.SIGTERM)
            os._exit(1)
        return answer
    worker.wsgi = serve_or_stop
"""
# Like a service manager: starts the CA again when it has stopped.
KEEP = """while :; do
    setpriv --pdeathsig TERM "$0" --config "$1" "$2:application"
    sleep 1
done"""
NGINX = NGINX_HEAD + """
    server {{
        listen 80;
        root {folder}/www;
    }}
    server {{
        listen 80;
        server_name wrong.example;
        return 200 "something else";
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
NAMES = ["n%d.example" % number for number in range(2)]
OTHERS = ["wrong.example", "blocked.example", "elsewhere.test"]
MAC_KEY = "V" * 64
GIVEN = ["--contact", "a@site.example", "--eab-kid", "kid-1", "--eab-hmac-key", MAC_KEY]
# Its two forms: the plain one keeps to itself why a name is refused; Django's validates and issues
# when it has answered already.
FORMS = {"wsgi": "acme2certifier.share.acme2certifier_wsgi",
         "django": "acme2certifier.django_project.wsgi"}


class Acme2certifier:
    """The CA in namespaces, with nginx and (Pebble's) name server, which says that all is here."""

    directory = "https://localhost/directory"

    def __init__(self, folder, namespaces, form):
        self.folder, self.inside, self.servers = folder, namespaces.inside, []
        self.challenges = folder / "www" / ".well-known" / "acme-challenge"
        self.challenges.mkdir(parents=True)
        (folder / "unserved").mkdir()
        (folder / "eab.json").write_text(json.dumps({"kid-1": MAC_KEY}))
        for name, text in (("a2c.cfg", CONFIG), ("gunicorn.py", GUNICORN), ("nginx.conf", NGINX)):
            (folder / name).write_text(text.format(folder=folder))
        self.ca_file = self.make_certificates()
        self.serve("dns", [53], tool("pebble-challtestsrv"), "-dnsserver", "127.0.0.1:53",
                   "-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "")
        programs = TOOLS / "a2c-venv/bin"
        assert programs.exists(), "acme2certifier is missing: 'sh tests/run.sh' fetches it"
        env = dict(os.environ, ACME_SRV_CONFIGFILE=str(folder / "a2c.cfg"),
                   ACME_SRV_DB_HANDLER=form, ACME2CERTIFIER_BASE_DIR=str(folder),
                   ACME2CERTIFIER_SECRET_KEY="of these tests", no_proxy="*",
                   DJANGO_SETTINGS_MODULE="acme2certifier.django_project.settings")
        for words in [["migrate"], ["loaddata", "status"]] if form == "django" else []:
            subprocess.run([programs / "django-admin", *words], env=env, check=True,
                           capture_output=True)
        self.serve("gunicorn", [8000], "sh", "-c", KEEP, programs / "gunicorn",
                   folder / "gunicorn.py", FORMS[form], env=env)
        self.serve("nginx", [80, 443], tool("nginx"), "-p", folder, "-e", folder / "error.log",
                   "-c", folder / "nginx.conf")

    def serve(self, name, ports, *command, **options):
        """Starts a server."""
        log = self.folder / (name + ".log")
        self.servers.append(Server(command, ports, log, inside=self.inside, **options))

    def make_certificates(self):
        """Makes the certificates of the CA and of its web server; returns the root's file."""
        root = trustme.CA()
        issuer = root.create_child_ca()
        issuer.cert_pem.write_to_path(self.folder / "issuer.pem")
        issuer.private_key_pem.write_to_path(self.folder / "issuer.key")
        root.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
            self.folder / "tls.pem")
        root.cert_pem.write_to_path(self.folder / "root.pem")
        return self.folder / "root.pem"

    def stop(self):
        """Ends all of it."""
        for server in reversed(self.servers):
            server.stop()


@pytest.fixture(scope="module")
def start(namespaces, tmp_path_factory):
    """start(form) is a CA, the same for the same form."""
    def make(form):
        inside = namespaces({"127.0.0.1": ["localhost", *NAMES, *OTHERS]})
        return Acme2certifier(tmp_path_factory.mktemp("ca"), inside, form)
    with kept(make) as start_once:
        yield start_once


@pytest.fixture
def ca(start):
    """The usual CA."""
    return start("wsgi")


@pytest.mark.parametrize("form", FORMS)
def test_issues(run_inside, start, csr, key, form):
    """Names are proved and certified."""
    ca = start(form)
    # Django's says "Retry-After: 600" with an order that is valid in a moment.
    result = run_inside(ca, csr(NAMES), *GIVEN, constants={"LONGEST_POLL_PAUSE": 2})
    assert result.status == 0, result.err
    check_chain(result.out, NAMES, key(), ca.ca_file)


@pytest.mark.parametrize(("given", "words"), [
    (GIVEN[:2], "External account binding required"), (GIVEN[2:], "Contact information is missing"),
    ([*GIVEN, "--eab-hmac-key", "W" * 64], "invalid eab credentials")],
    ids=["no pair", "no contact", "wrong key"])
def test_account_refused(run_inside, ca, csr, given, words):
    """What it wants is reported in its words."""
    assert words in error_of(run_inside(ca, csr(NAMES), *given))


def test_renews(renews, ca):
    """It wants certificates of 90 days renewed after 45, and so they are."""
    renews(ca, NAMES[0], "+44d", "+47d", *GIVEN)


@pytest.mark.parametrize(("form", "bad", "words", "position"), [
    ("wsgi", NAMES[1], "invalid", 0), ("django", NAMES[1], "HTTP request failed: 404", 1),
    ("django", "wrong.example", "Keyauthorization mismatch", 0)])
def test_reports_a_name(run_inside, start, csr, form, bad, words, position):
    """A name that cannot be proved is reported within seconds, though the order stays pending."""
    ca, names = start(form), NAMES[:1]
    names.insert(position, bad)
    config = json.dumps({bad: {"AcmeDir": str(ca.folder / "unserved")}})
    error = error_of(run_inside(ca, csr(names), *GIVEN, "--disable-check", "--config-json", config,
                                timeout=30))
    assert error.startswith("E: %s: " % bad) and words in error


@pytest.mark.parametrize(("bad", "words"), [
    ("elsewhere.test", "FQDN/SAN elsewhere.test not allowed by configuration"),
    ("blocked.example", "enrollment failed")])
def test_refused_names(run_inside, ca, csr, bad, words):
    """Names that it does not certify are reported in its words, also when it refuses them last."""
    assert words in error_of(run_inside(ca, csr([NAMES[0], bad]), *GIVEN, timeout=60))


@pytest.mark.parametrize("moment", [
    "after /acme/neworders", "before /acme/chall", "after /finalize"])
def test_restart(run_inside, ca, csr, key, moment):
    """It is stopped and started again in a run; what it has done, its answer lost, is not lost."""
    (ca.folder / "stop").write_text(moment)
    log = ca.folder / "access.log"
    before = log.stat().st_size
    result = run_inside(ca, csr(NAMES), *GIVEN)
    assert result.status == 0, result.err
    check_chain(result.out, NAMES, key(), ca.ca_file)
    assert '" 502 ' in log.read_text()[before:]
