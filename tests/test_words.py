"""What a person is told after the mistakes that people make most: whole messages, each of them read
by someone who asked "would I know what to do now?".

In them, {folder} is the folder of all files, {ca} the CA, {port} the port of the site, {token} a
challenge's and {date} any; {...} are words of openssl or by chance. The exit status comes first.
"""
import re

import pki
import pytest
from faults import MISSING, change, problem, put, replace
from support import UNPRIVILEGED, shell
from trials import OLD, OWN_MOUNTS, page, refusals
from werkzeug import Response


def unfetched(words):
    """What is told if neither challenge file can be fetched."""
    return "1 " + "\n".join(
        "E: Wrote file to {folder}/site/challenges/{token}, but couldn't download http://%s:{port}"
        "/.well-known/acme-challenge/{token}: %s" % (name, words)
        for name in ("site.example", "www.site.example"))


FULL = shell('mount -t tmpfs -o size=4k none disk && echo > disk/x && "$@"')
# Other options of the run (None takes one away), what else is different about it, and what is told.
MISTAKES = [
    ({"--csr": None}, "2 E: both --account-key and --csr are needed"),
    ({"--fulchain-file": "fullchain.pem"},
     "2 E: unknown option or word: --fulchain-file (-h tells what there is)"),
    ({"--quiet": "c2VjcmV0LXNlY3JldC1zZWNyZXQ"},
     "2 E: unknown option or word: (not shown) (-h tells what there is)"),
    ({"--csr": True}, "2 E: --csr needs a value"),
    ({"--config-json": "none.json"}, "2 E: none.json: No such file or directory"),
    ({"--config-json": "bad.json"},
     "2 E: bad.json must be a JSON object: see line 1, column {...}"),
    ({"--config-json": '{"AcountKey": "account.key"}'},
     '2 E: "AcountKey" must be {"DocumentRoot": PATH}: it is no option'),
    ({"--config-json": '{"example.org": {"DocumentRot": "/var/www"}}'},
     '2 E: "example.org" must be {"DocumentRoot": PATH} or {"AcmeDir": PATH}'),
    ({"--config-json": '{"Renew": "yes"}'}, '2 E: "Renew" must be true or false'),
    ({"--config-json": '{"CertFile": ["cert.pem"]}'}, '2 E: "CertFile" must be one line of text'),
    ({"--renew": True}, "2 E: --renew needs a --fullchain-file"),
    ({"--eab-hmac-key": "c2VjcmV0"},
     "2 E: --eab-kid and --eab-hmac-key need each other, and the key must be base64url"),
    ({"--account-key": "none.key"}, "1 E: none.key: No such file or directory"),
    ({"--account-key": "encrypted.key"},
     "1 E: encrypted.key: no private key in PEM without a password; openssl says: {...}"),
    ({"--account-key": "ed25519.key"},
     '1 E: ed25519.key: it must be RSA, P-256 or P-384; "openssl genrsa 4096" makes one'),
    ({"--account-key": "domain.key"}, "1 E: {csr} has the account key, not its own"),
    ({"--csr": "old.pem"}, "1 E: old.pem: no CERTIFICATE REQUEST in PEM, but CERTIFICATE"),
    ({"--csr": "no.csr"}, "1 E: no.csr: asks for no name at all; it needs a subjectAltName"),
    ({"--csr": "any.csr"},
     "1 E: any.csr: asks for *.example.org, a wildcard: take lego, for dns-01"),
    ({"--acme-dir": None, "--config-json": '{"x": {"AcmeDir": "/x"}}'},
     '1 E: www.site.example: there is neither "www.site.example" in --config-json nor an '
     "--acme-dir"),
    ({"--acme-dir": None, "--config-json": '{"DocumentRoot": "/var/ww/html"}'},
     "1 E: www.site.example: there is no directory /var/ww/html"),
    ({"--acme-dir": "chalenges"}, "1 E: www.site.example: there is no directory chalenges"),
    ({"--acme-dir": None, "--config-json": '{"DocumentRoot": "root"}', "wrapper": UNPRIVILEGED},
     "1 E: www.site.example: root may not be written by this user"),
    ({"--fullchain-file": "bad.json"},
     "1 E: {folder}/bad.json holds something else than certificates: it is not overwritten"),
    ({"--fullchain-file": "disk"}, "1 E: {folder}/disk is not a file"),
    ({"--fullchain-file": "no/cert.pem"}, "1 E: {folder}/no/cert.pem: there is no such directory"),
    ({"--cert-file": "new.pem", "--chain-file": "new.pem"},
     "1 E: {folder}/new.pem cannot be two outputs at once"),
    ({"answer": page(b"", 404)}, unfetched("HTTP status 404")),
    ({"answer": lambda request, content: Response(b"<html>Hello\r\n\r\n" + content)},
     unfetched("something else is there: <html>Hello????{...}")),
    ({"answer": page(b"", 301, Location="https://site.example:1/")},
     unfetched("Connection refused, after a redirect to https://site.example:1/")),
    ({"script": {"directory": replace(b"<html>Hello")}},
     "1 E: {ca}/directory is no directory of an ACME CA: HTTP status 200: <html>Hello"),
    ({"ca": {"down": True}}, "1 E: {ca}/directory: Connection refused"),
    ({"script": {"directory": put("newNonce", "http://localhost/nonce")}},
     "1 E: http://localhost/nonce is no https URL, so nothing is sent there"),
    ({"env": {"PATH": "/"}},
     "1 E: {folder}/account.key: the command openssl is missing: please install it"),
    ({"env": {"SSL_CERT_FILE": "old.pem"}}, "1 E: {ca}/directory: certificate verify failed{...}"),
    ({"ca": {"eab": {"me": b"key"}}},
     "1 E: {ca}/newAccount: an external account is needed, "
     "urn:ietf:params:acme:error:externalAccountRequired"),
    ({"script": {"authz": put("challenges.2", MISSING)}},
     "1 E: site.example: the CA offers no http-01, but dns-persist-01, dns-01"),
    ({"script": {"newOrder": problem("rateLimited", 429, {"Retry-After": "3600"}, detail="later")}},
     "1 E: {ca}/newOrder: later, urn:ietf:params:acme:error:rateLimited; come back after {date}"),
    ({"script": {"newAccount": change(headers={"Location": None})}},
     '1 E: {ca}/newAccount: the answer has no usable "Location": {...}'),
    ({"--cert-file": "disk/cert.pem", "--chain-file": None, "wrapper": OWN_MOUNTS + FULL},
     "1 E: {folder}/disk/cert.pem: No space left on device"),
]


def prepare(trial):
    """Have in the folder that the script runs in what the mistakes are made with."""
    for kind in "encrypted", "ed25519":
        pki.write_key(trial.folder / (kind + ".key"), kind)
    pki.write_csr(trial.folder / "no.csr", [], trial.key)
    pki.write_csr(trial.folder / "any.csr", ["example.org", "*.example.org"], trial.key)
    (trial.folder / "domain.key").write_bytes(trial.key.read_bytes())
    (trial.folder / "old.pem").write_bytes(OLD)
    (trial.folder / "bad.json").write_text('{"AcmeDir": "/tmp",}')
    (trial.folder / "disk").mkdir()
    (trial.folder / "root").mkdir(mode=0o555)


def masked(said, trial, ca):
    """What was said, without what differs from run to run."""
    for name, text in (("{csr}", trial.options["--csr"]), ("{folder}", trial.folder),
                       ("{ca}", ca.base), ("{port}", ca.http_port)):
        said = said.replace(str(text), name)
    said = re.sub(r"(?<=/)[\w-]{32}(?![\w-])", "{token}", said)
    return re.sub(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", "{date}", said)


@pytest.mark.parametrize("mistake, told", MISTAKES, ids=[told for _, told in MISTAKES])
def test_words(trial, site, mistake, told):
    """Each message, word for word."""
    prepare(trial)
    args = {name: value for name, value in mistake.items() if name.startswith("--")}
    run = {name: value for name, value in mistake.items() if name not in args}
    if "answer" in run:
        run["ca"] = site(run.pop("answer"))
    result = trial.run(args=args, scale=0.005, **run)
    said = "%d %s" % (result.status, masked("\n".join(refusals(result.err)), trial, result.ca))
    assert re.fullmatch(".*".join(map(re.escape, told.split("{...}"))), said), said
