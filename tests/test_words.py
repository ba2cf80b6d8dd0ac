"""What a person is told after the mistakes that people make most: whole messages, each of them read
by someone who asked "would I know what to do now?". They are in words.txt, with the exit status.

There, {site} is the folder of most files, in {folder}, {ca} the CA, {port} the port of the site,
{token} a challenge's and {date} any; {...} are words of openssl, the resolver or by chance.
"""
import json
import os
import re

import pki
import pytest
import support
from faults import MISSING, change, problem, put, replace
from trials import OWN_MOUNTS, page, refusals
from werkzeug import Response

WORDS = dict(re.findall(r"^(\S.*):\n((?:  .*\n)+)", support.TOP.joinpath(
    "tests/words.txt").read_text(encoding="utf-8"), re.M))


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


MISTAKES = {
    "no --csr": given(csr=None),
    "a typing error in an option": given(fulchain_file="fullchain.pem"),
    "a stray word that may be a secret": given(quiet="c2VjcmV0LXNlY3JldC1zZWNyZXQ"),
    "an option without its value": given(csr=True),
    "the configuration is missing": given(config_json="{site}/none.json"),
    "the configuration is no JSON": file("--config-json", '{"AcmeDir": "/tmp",}'),
    "an unknown key": config({"AcountKey": "account.key"}),
    "a name with a path alone": config({"example.org": "/var/www"}),
    "an unknown key in an entry": config({"example.org": {"DocumentRot": "/var/www"}}),
    "a flag that is neither": config({"Renew": "yes"}),
    "a list as a path": config({"CertFile": ["cert.pem"]}),
    "--renew alone": given(renew=True),
    "a key for EAB without its name": given(eab_hmac_key="c2VjcmV0"),
    "the account key is missing": given(account_key="{site}/none.key"),
    "the account key has a password": key("encrypted"),
    "the account key is of another kind": key("ed25519"),
    "the CSR is missing": given(csr="{site}/none.csr"),
    "the CSR is a certificate": file("--csr", lambda trial: trial.cert.read_bytes()),
    "the CSR is empty": file("--csr", ""),
    "the CSR has the account key": file("--account-key", lambda trial: trial.key.read_bytes()),
    "no name": csr(),
    "a wildcard": csr("example.org", "*.example.org"),
    "a name without an entry": given(acme_dir=None, config_json=json.dumps(
        {"other.example": {"DocumentRoot": "/var/www"}})),
    "a document root that is not there": given(acme_dir=None, config_json=json.dumps(
        {"site.example": {"DocumentRoot": "/var/ww/html"}})),
    "a directory that is not there": given(acme_dir="{site}/chalenges"),
    "a document root that may not be written": read_only_root,
    "an output is a configuration": file("--fullchain-file", '{"AcmeDir": "/tmp"}'),
    "an output is a directory": given(fullchain_file="{site}/challenges"),
    "an output is in no directory": given(fullchain_file="{site}/none/fullchain.pem"),
    "two outputs are one": given(cert_file="{site}/cert.pem", chain_file="{site}/cert.pem"),
    "the site has not got the file": served(page(b"", 404)),
    "the site shows something else": served(
        lambda request, content: Response(b"<html>Hello\r\n\r\n" + content)),
    "the site goes to https, which is closed": served(
        page(b"", 301, Location="https://site.example:1/")),
    "--ca is no directory": ca({"directory": replace(b"<html>Hello")}),
    "--ca is of no host": given(ca="https://acme.invalid/directory"),
    "--ca is nowhere": given(ca="https://localhost:1/directory"),
    "--ca is without TLS": given(ca="http://localhost/directory"),
    "openssl is missing": no_openssl,
    "the CA is not trusted": unknown_root,
    "EAB is needed": ca(eab={"me": b"key"}),
    "the CA offers no http-01": ca({"authz": put("challenges.2", MISSING)}),
    "a rate limit": ca({"newOrder": problem("rateLimited", 429, {"Retry-After": "3600"},
                                             detail="too many certificates")}),
    "a new account has no URL": ca({"newAccount": change(headers={"Location": None})}),
    "the disk is full": full_disk,
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


@pytest.mark.parametrize("name", MISTAKES)
def test_words(trial, site, name):
    """Each message, word for word; with LETSACME_WORDS, a file gets what is said now."""
    trial.serve_site = site
    run = {"args": {}, "script": None, "scale": 0.005, "ca": {}}
    MISTAKES[name](run, trial)
    if "--ca" in run["args"]:
        result = trial.letsacme(*trial.arguments(run["args"]), scale=run["scale"],
                                env={"RES_OPTIONS": "attempts:1 timeout:1"})
    else:
        result = trial.run(**run)
    errors = "\n  ".join(refusals(result.err))
    said = "  %d %s\n" % (result.status, masked(errors, trial, getattr(result, "ca", None)))
    told = WORDS.get(name, "")
    same = re.fullmatch(".*".join(map(re.escape, told.split("{...}"))), said)
    if "LETSACME_WORDS" in os.environ:
        with open(os.environ["LETSACME_WORDS"], "a") as words_now:
            words_now.write("%s:\n%s" % (name, told if same else said))
    else:
        assert same, said


def test_table():
    """There is a mistake to each message, and the other way round."""
    assert WORDS.keys() == MISTAKES.keys()
