"""What a person is told after the mistakes that people make most: whole messages, each of them read
by someone who asked "would I know what to do now?".

In them, {site} is the folder of most files, in {folder}, {ca} the CA, {port} the port of the site,
{token} a challenge's and {date} any; {...} are words of openssl or by chance. They begin with the
exit status.
"""
import re

import pki
import pytest
import support
from faults import MISSING, change, problem, put, replace
from trials import OWN_MOUNTS, page, refusals
from werkzeug import Response


def unfetched(words):
    """What is told if neither challenge file can be fetched."""
    return "1 " + "\n".join(
        "E: Wrote file to {site}/challenges/{token}, but couldn't download http://%s:{port}"
        "/.well-known/acme-challenge/{token}: %s" % (name, words)
        for name in ("site.example", "www.site.example"))


FULL = support.shell('mount -t tmpfs -o size=4k none site/disk && echo > site/disk/x && "$@"')
# Other options of the run (None takes one away), what else is different about it, and what is told.
MISTAKES = [
    ({"--csr": None}, "2 E: both --account-key and --csr are needed"),
    ({"--fulchain-file": "fullchain.pem"},
     "2 E: unknown option or word: --fulchain-file (-h tells what there is)"),
    ({"--quiet": "c2VjcmV0LXNlY3JldC1zZWNyZXQ"},
     "2 E: unknown option or word: (not shown) (-h tells what there is)"),
    ({"--csr": True}, "2 E: --csr needs a value"),
    ({"--config-json": "site/none.json"}, "2 E: site/none.json: No such file or directory"),
    ({"--config-json": "site/bad.json"},
     "2 E: site/bad.json must be a JSON object: see line 1, column {...}"),
    ({"--config-json": '{"AcountKey": "account.key"}'},
     '2 E: "AcountKey" must be {"DocumentRoot": PATH}: it is no option'),
    ({"--config-json": '{"example.org": {"DocumentRot": "/var/www"}}'},
     '2 E: "example.org" must be {"DocumentRoot": PATH} or {"AcmeDir": PATH}'),
    ({"--config-json": '{"Renew": "yes"}'}, '2 E: "Renew" must be true or false'),
    ({"--config-json": '{"CertFile": ["cert.pem"]}'}, '2 E: "CertFile" must be text'),
    ({"--renew": True}, "2 E: --renew needs a --fullchain-file"),
    ({"--eab-hmac-key": "c2VjcmV0"},
     "2 E: --eab-kid and --eab-hmac-key need each other, and the key must be base64url"),
    ({"--account-key": "site/none.key"}, "1 E: site/none.key: No such file or directory"),
    ({"--account-key": "site/encrypted.key"},
     "1 E: site/encrypted.key: no private key in PEM without a password; openssl says: {...}"),
    ({"--account-key": "site/ed25519.key"},
     '1 E: site/ed25519.key: it must be RSA, P-256 or P-384; "openssl genrsa 4096" makes one'),
    ({"--csr": "site/cert.pem"},
     "1 E: site/cert.pem: no CERTIFICATE REQUEST in PEM, but CERTIFICATE"),
    ({"--account-key": "site/domain.key"}, "1 E: {csr} has the account key, not its own"),
    ({"--csr": "site/nameless.csr"},
     "1 E: site/nameless.csr: asks for no name at all; it needs a subjectAltName"),
    ({"--csr": "site/wildcard.csr"},
     "1 E: site/wildcard.csr: asks for *.example.org, a wildcard: take lego, for dns-01"),
    ({"--acme-dir": None, "--config-json": '{"x": {"AcmeDir": "/x"}}'},
     '1 E: www.site.example: there is neither "www.site.example" in --config-json nor an '
     "--acme-dir"),
    ({"--acme-dir": None, "--config-json": '{"DocumentRoot": "/var/ww/html"}'},
     "1 E: www.site.example: there is no directory /var/ww/html"),
    ({"--acme-dir": "site/chalenges"},
     "1 E: www.site.example: there is no directory site/chalenges"),
    ({"--acme-dir": None, "--config-json": '{"DocumentRoot": "site/root"}',
      "wrapper": support.UNPRIVILEGED},
     "1 E: www.site.example: site/root may not be written by this user"),
    ({"--fullchain-file": "site/bad.json"},
     "1 E: {site}/bad.json holds something else than certificates: it is not overwritten"),
    ({"--fullchain-file": "site/challenges"}, "1 E: {site}/challenges is not a file"),
    ({"--fullchain-file": "site/none/fullchain.pem"},
     "1 E: {site}/none/fullchain.pem: there is no such directory"),
    ({"--cert-file": "site/cert.pem", "--chain-file": "site/cert.pem"},
     "1 E: {site}/cert.pem cannot be two outputs at once"),
    ({"answer": page(b"", 404)}, unfetched("HTTP status 404")),
    ({"answer": lambda request, content: Response(b"<html>Hello\r\n\r\n" + content)},
     unfetched("something else is there: <html>Hello????{...}")),
    ({"answer": page(b"", 301, Location="https://site.example:1/")},
     unfetched("Connection refused, after a redirect to https://site.example:1/")),
    ({"script": {"directory": replace(b"<html>Hello")}},
     "1 E: {ca}/directory is no directory of an ACME CA: HTTP status 200: <html>Hello"),
    ({"ca": {"down": 1000}}, "1 E: {ca}/directory: Connection refused"),
    ({"script": {"directory": put("newNonce", "http://localhost/nonce")}},
     "1 E: http://localhost/nonce is no https URL, so nothing is sent there"),
    ({"env": {"PATH": "/"}},
     "1 E: {folder}/account.key: the command openssl is missing: please install it"),
    ({"env": {"SSL_CERT_FILE": "site/cert.pem"}},
     "1 E: {ca}/directory: certificate verify failed{...}"),
    ({"ca": {"eab": {"me": b"key"}}},
     "1 E: {ca}/newAccount: an external account is needed, "
     "urn:ietf:params:acme:error:externalAccountRequired"),
    ({"script": {"authz": put("challenges.2", MISSING)}},
     "1 E: site.example: the CA offers no http-01, but dns-persist-01, dns-01"),
    ({"script": {"newOrder": problem("rateLimited", 429, {"Retry-After": "3600"}, detail="later")}},
     "1 E: {ca}/newOrder: later, urn:ietf:params:acme:error:rateLimited; come back after {date}"),
    ({"script": {"newAccount": change(headers={"Location": None})}},
     '1 E: {ca}/newAccount: the answer has no usable "Location": {...}'),
    ({"--cert-file": "site/disk/cert.pem", "--chain-file": None, "wrapper": OWN_MOUNTS + FULL},
     "1 E: {site}/disk/cert.pem: No space left on device"),
]


@pytest.fixture
def files(trial):
    """What the mistakes are made with."""
    for kind in "encrypted", "ed25519":
        pki.write_key(trial.site / (kind + ".key"), kind)
    pki.write_csr(trial.site / "nameless.csr", [], trial.key)
    pki.write_csr(trial.site / "wildcard.csr", ["example.org", "*.example.org"], trial.key)
    (trial.site / "domain.key").write_bytes(trial.key.read_bytes())
    (trial.site / "bad.json").write_text('{"AcmeDir": "/tmp",}')
    (trial.site / "disk").mkdir()
    (trial.site / "root").mkdir(mode=0o555)


def masked(said, trial, ca):
    """What was said, without what differs from run to run."""
    for name, text in (("{site}", trial.site), ("{folder}", trial.folder), ("{ca}", ca.base),
                       ("{port}", ca.http_port)):
        said = said.replace(str(text), name)
    said = re.sub(r"(?<=/)[\w-]{32}(?![\w-])", "{token}", said)
    said = re.sub(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", "{date}", said)
    return re.sub(r"{folder}/n\d+-[0-9a-f]+\.csr\.example", "{csr}", said)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("mistake, told", MISTAKES, ids=[told for _, told in MISTAKES])
def test_words(trial, site, mistake, told):
    """Each message, word for word."""
    args = {name: value for name, value in mistake.items() if name.startswith("--")}
    run = {name: value for name, value in mistake.items() if name not in args}
    if "answer" in run:
        run["ca"] = site(run.pop("answer"))
    result = trial.run(args=args, scale=0.005, **run)
    said = "%d %s" % (result.status, masked("\n".join(refusals(result.err)), trial, result.ca))
    assert re.fullmatch(".*".join(map(re.escape, told.split("{...}"))), said), said
