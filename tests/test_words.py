"""What a person is told after the mistakes that people make most: whole messages, each of them read
by someone who asked "would I know what to do now?".

In them, {site} is the folder of most files, in {folder}, {ca} the CA, {port} the port of the site,
{token} a challenge's and {date} any; {...} are words of openssl, the resolver or by chance. They
begin with the exit status.
"""
import json
import re

import pki
import pytest
import support
from faults import MISSING, change, problem, put, replace
from trials import OWN_MOUNTS, page, refusals
from werkzeug import Response

# ---- Mistakes: functions that change a run (its options "--..." and how it is started)

def given(**options):
    """Other options; in their values, {site} is the trial's folder; None takes one away."""
    def mistake(run, trial):
        for name, value in options.items():
            run["args"]["--" + name.replace("_", "-")] = (
                value.replace("{site}", str(trial.site)) if isinstance(value, str) else value)
    return mistake


def file(option, content):
    """An option names a file that holds a text, bytes, or what a function of the trial gives."""
    def mistake(run, trial):
        data = content(trial) if callable(content) else content
        trial.site.joinpath("file").write_bytes(data if isinstance(data, bytes) else data.encode())
        run["args"][option] = trial.site / "file"
        run["changed"] = ["file"]
    return mistake


def config(value):
    """A configuration."""
    return given(config_json=json.dumps(value))


def csr(*names):
    """A CSR for other names."""
    return file("--csr", lambda trial: pki.write_csr(
        trial.folder / "other.csr", names, trial.key).read_bytes())


def key(kind):
    """An account key of another kind."""
    return file("--account-key", lambda trial: pki.write_key(
        trial.folder / "other.key", kind).read_bytes())


def read_only_root(run, trial):
    """A document root that may not be written."""
    (trial.site / "root").mkdir(mode=0o555)
    run.update(wrapper=support.UNPRIVILEGED, changed=["root"])
    run["args"].update({"--acme-dir": None, "--config-json": json.dumps(
        {"DocumentRoot": str(trial.site / "root")})})


def no_openssl(run, trial):
    """An empty PATH."""
    run["env"] = {"PATH": str(trial.challenges)}


def unknown_root(run, trial):
    """The CA's certificate is signed by nobody who is known here."""
    (trial.folder / "other.pem").write_bytes(pki.pem(pki.Issuer().root))
    run["env"] = {"SSL_CERT_FILE": str(trial.folder / "other.pem")}


def served(answer):
    """The web server answers otherwise; see the fixture site."""
    def mistake(run, trial):
        run["ca"] = trial.serve_site(answer)
    return mistake


def ca(script=None, **more):
    """The CA answers otherwise."""
    def mistake(run, trial):
        run.update(script=script, ca=more)
    return mistake


def full_disk(run, trial):
    """The outputs are to be written to a disk that has no room."""
    (trial.site / "disk").mkdir()
    run["args"].update({"--cert-file": trial.site / "disk/cert.pem", "--chain-file": None})
    run["wrapper"] = [*OWN_MOUNTS, *support.shell(
        'mount -t tmpfs -o size=4k none "$1" && echo > "$1/x" && shift && "$@"',
        trial.site / "disk")]


def unfetched(words):
    """What is told if neither challenge file can be fetched."""
    return "1 " + "\n".join(
        "E: Wrote file to {site}/challenges/{token}, but couldn't download http://%s:{port}"
        "/.well-known/acme-challenge/{token}: %s" % (name, words)
        for name in ("site.example", "www.site.example"))


MISTAKES = {
    "no --csr": (given(csr=None),
        "2 E: both --account-key and --csr are needed"),
    "a typing error in an option": (given(fulchain_file="fullchain.pem"),
        "2 E: unknown option or word: --fulchain-file (-h tells what there is)"),
    "a stray word that may be a secret": (given(quiet="c2VjcmV0LXNlY3JldC1zZWNyZXQ"),
        "2 E: unknown option or word: (not shown) (-h tells what there is)"),
    "an option without its value": (given(csr=True),
        "2 E: --csr needs a value"),
    "the configuration is missing": (given(config_json="{site}/none.json"),
        "2 E: {site}/none.json: No such file or directory"),
    "the configuration is no JSON": (file("--config-json", '{"AcmeDir": "/tmp",}'),
        "2 E: {site}/file must be a JSON object: see line 1, column {...}"),
    "an unknown key": (config({"AcountKey": "account.key"}),
        '2 E: "AcountKey" must be {"DocumentRoot": PATH}: it is no option'),
    "an unknown key in an entry": (config({"example.org": {"DocumentRot": "/var/www"}}),
        '2 E: "example.org" must be {"DocumentRoot": PATH} or {"AcmeDir": PATH}'),
    "a flag that is neither": (config({"Renew": "yes"}),
        '2 E: "Renew" must be true or false'),
    "a list as a path": (config({"CertFile": ["cert.pem"]}),
        '2 E: "CertFile" must be text'),
    "--renew alone": (given(renew=True),
        "2 E: --renew needs a --fullchain-file"),
    "a key for EAB without its name": (given(eab_hmac_key="c2VjcmV0"),
        "2 E: --eab-kid and --eab-hmac-key need each other, and the key must be base64url"),
    "the account key is missing": (given(account_key="{site}/none.key"),
        "1 E: {site}/none.key: No such file or directory"),
    "the account key has a password": (key("encrypted"),
        "1 E: {site}/file: no private key in PEM without a password; openssl says: {...}"),
    "the account key is of another kind": (key("ed25519"),
        '1 E: {site}/file: it must be RSA, P-256 or P-384; "openssl genrsa 4096" makes one'),
    "the CSR is a certificate": (file("--csr", lambda trial: trial.cert.read_bytes()),
        "1 E: {site}/file: no CERTIFICATE REQUEST in PEM, but CERTIFICATE"),
    "the CSR has the account key": (file("--account-key", lambda trial: trial.key.read_bytes()),
        "1 E: {csr} has the account key, not its own"),
    "no name": (csr(),
        "1 E: {site}/file: asks for no name at all; it needs a subjectAltName"),
    "a wildcard": (csr("example.org", "*.example.org"),
        "1 E: {site}/file: asks for *.example.org, a wildcard: take lego, for dns-01"),
    "a name without an entry": (given(acme_dir=None, config_json='{"x": {"AcmeDir": "/x"}}'),
        '1 E: www.site.example: there is neither "www.site.example" in --config-json nor an '
        "--acme-dir"),
    "a document root that is not there": (
        given(acme_dir=None, config_json='{"DocumentRoot": "/var/ww/html"}'),
        "1 E: www.site.example: there is no directory /var/ww/html"),
    "a directory that is not there": (given(acme_dir="{site}/chalenges"),
        "1 E: www.site.example: there is no directory {site}/chalenges"),
    "a document root that may not be written": (read_only_root,
        "1 E: www.site.example: {site}/root may not be written by this user"),
    "an output is a configuration": (file("--fullchain-file", '{"AcmeDir": "/tmp"}'),
        "1 E: {site}/file holds something else than certificates: it is not overwritten"),
    "an output is a directory": (given(fullchain_file="{site}/challenges"),
        "1 E: {site}/challenges is not a file"),
    "an output is in no directory": (given(fullchain_file="{site}/none/fullchain.pem"),
        "1 E: {site}/none/fullchain.pem: there is no such directory"),
    "two outputs are one": (given(cert_file="{site}/cert.pem", chain_file="{site}/cert.pem"),
        "1 E: {site}/cert.pem cannot be two outputs at once"),
    "the site has not got the file": (served(page(b"", 404)), unfetched("HTTP status 404")),
    "the site shows something else": (
        served(lambda request, content: Response(b"<html>Hello\r\n\r\n" + content)),
        unfetched("something else is there: <html>Hello????{...}")),
    "the site goes to https, which is closed": (
        served(page(b"", 301, Location="https://site.example:1/")),
        unfetched("Connection refused, after a redirect to https://site.example:1/")),
    "--ca is no directory": (ca({"directory": replace(b"<html>Hello")}),
        '1 E: {ca}/directory is no directory of an ACME CA: HTTP status 200: <html>Hello'),
    "--ca is of no host": (given(ca="https://acme.invalid/directory"),
        "1 E: https://acme.invalid/directory: {...}"),
    "--ca is nowhere": (given(ca="https://localhost:1/directory"),
        "1 E: https://localhost:1/directory: Connection refused"),
    "--ca is without TLS": (given(ca="http://localhost/directory"),
        "1 E: http://localhost/directory is no https URL, so nothing is sent there"),
    "openssl is missing": (no_openssl,
        "1 E: {folder}/account.key: the command openssl is missing: please install it"),
    "the CA is not trusted": (unknown_root,
        "1 E: {ca}/directory: certificate verify failed{...}"),
    "EAB is needed": (ca(eab={"me": b"key"}),
        "1 E: {ca}/newAccount: an external account is needed, "
        "urn:ietf:params:acme:error:externalAccountRequired"),
    "the CA offers no http-01": (ca({"authz": put("challenges.2", MISSING)}),
        "1 E: site.example: the CA offers no http-01, but dns-persist-01, dns-01"),
    "a rate limit": (ca({"newOrder": problem("rateLimited", 429, {"Retry-After": "3600"},
                                             detail="too many certificates")}),
        "1 E: {ca}/newOrder: too many certificates, urn:ietf:params:acme:error:rateLimited; "
        "come back after {date}"),
    "a new account has no URL": (ca({"newAccount": change(headers={"Location": None})}),
        '1 E: {ca}/newAccount: the answer has no usable "Location": {...}'),
    "the disk is full": (full_disk,
        "1 E: {site}/disk/cert.pem: No space left on device"),
}


def masked(said, trial, ca):
    """What was said, without what differs from run to run."""
    replacements = {"{site}": trial.site, "{folder}": trial.folder}
    replacements.update({"{ca}": ca.base, "{port}": ca.http_port} if ca else {})
    for name, text in replacements.items():
        said = said.replace(str(text), name)
    said = re.sub(r"(?<=/)[\w-]{32}(?![\w-])", "{token}", said)
    said = re.sub(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", "{date}", said)
    return re.sub(r"{folder}/n\d+-[0-9a-f]+\.csr\.example", "{csr}", said)


@pytest.mark.parametrize("mistake, told", MISTAKES.values(), ids=MISTAKES.keys())
def test_words(trial, site, mistake, told):
    """Each message, word for word."""
    trial.serve_site = site
    run = {"args": {}, "script": None, "scale": 0.005, "ca": {}}
    mistake(run, trial)
    if "--ca" in run["args"]:
        result = trial.letsacme(*trial.arguments(run["args"]), scale=run["scale"],
                                env={"RES_OPTIONS": "attempts:1 timeout:1"})
    else:
        result = trial.run(**run)
    errors = "\n".join(refusals(result.err))
    said = "%d %s" % (result.status, masked(errors, trial, getattr(result, "ca", None)))
    assert re.fullmatch(".*".join(map(re.escape, told.split("{...}"))), said), said
