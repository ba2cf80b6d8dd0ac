"""Every CA and every kind of name: what CAs want beyond the plain case, what names can be had."""
import base64
import json
import os
import re
import shlex
import shutil

import pytest
from cryptography import x509
from scripted_ca import MISSING, ScriptedCA, put
from support import check_chain, fresh_name, has_ipv6, load_chain, script_path

QUICK = {"keyAlgorithm": "ecdsa"}  # a Pebble that starts at once


@pytest.fixture
def run(letsacme, nginx, account):
    """run(ca, csr, ...) asks a Pebble for a certificate; nothing may be left behind."""
    def start(ca, csr, *args, **options):
        """A run of letsacme.py, with the challenge directory that nginx shares."""
        before = set(nginx.challenges.iterdir())
        result = letsacme("--csr", csr, "--account-key", account, "--acme-dir", nginx.challenges,
                          *args, ca=ca, **options)
        assert set(nginx.challenges.iterdir()) == before
        return result
    return start


@pytest.fixture
def run_scripted(letsacme, csr, account, tmp_path):
    """run_scripted(script, ...) asks a scripted CA; returns the result and the CA."""
    def start(script, *args):
        """A run of letsacme.py."""
        with ScriptedCA(tmp_path, script) as ca:
            return letsacme("--csr", csr([fresh_name("scripted")]), "--account-key", account,
                            "--acme-dir", ca.challenges, "--disable-check", *args, ca=ca), ca
    return start


def count(ca, path):
    """How often a Pebble was asked for something."""
    return sum(request.endswith(path) for request in ca.requests)


# --- external account binding --------------------------------------------------------------------

SECRET = b"\xfb\xff" + bytes(range(32))
MAC_KEY = base64.urlsafe_b64encode(SECRET).decode()
WRONG_KEY = base64.urlsafe_b64encode(SECRET[::-1]).decode()
assert MAC_KEY.startswith("-_") and MAC_KEY.endswith("==")  # all that base64url can have
BOUND = "Successful newAccount Binding"  # in Pebble's log


def pair(kid, mac_key):
    """The options for a pair; a key that starts with "-" needs the form with "="."""
    return ["--eab-kid", kid, "--eab-hmac-key=" + mac_key]


@pytest.fixture
def eab_pebble(pebbles):
    """A Pebble that wants an external account, and rejects no nonce, so that requests count."""
    return pebbles(externalAccountBindingRequired=True, PEBBLE_WFE_NONCEREJECT=0,
                   externalAccountMACKeys={"kid-1": MAC_KEY.rstrip("=")}, **QUICK)


@pytest.mark.parametrize("mac_key", [
    pytest.param(MAC_KEY, marks=pytest.mark.core), MAC_KEY.rstrip("=")], ids=["padded", "bare"])
def test_external_account(run, eab_pebble, names, csr, key, mac_key):
    """The right pair makes an account; a second run finds that and does not use the pair again."""
    wanted, accounts = names(1, "alias"), set()
    for requests, bindings in (2, 1), (1, 0):
        before = count(eab_pebble, "/sign-me-up"), eab_pebble.log.count(BOUND)
        result = run(eab_pebble, csr(wanted), *pair("kid-1", mac_key))
        assert result.status == 0, result.err
        accounts.update(re.findall("https://.*/my-account/[0-9a-f]+", result.err))
        assert count(eab_pebble, "/sign-me-up") - before[0] == requests
        assert eab_pebble.log.count(BOUND) - before[1] == bindings
        check_chain(result.out, wanted, key(), eab_pebble.root)
    assert len(accounts) == 1


@pytest.mark.parametrize(("given", "words"), [
    ([], ["externalAccountRequired", "must include a value for the 'externalAccountBinding'"]),
    (pair("nobody", MAC_KEY), ["'kid' references a key that is not known"]),
    (pair("kid-1", WRONG_KEY), ["external account binding JWS verification error"]),
], ids=["missing", "wrong id", "wrong key"])
def test_external_account_refused(run, eab_pebble, names, csr, given, words):
    """Each fault of the pair is reported in the CA's words."""
    before = count(eab_pebble, "/order-plz")
    result = run(eab_pebble, csr(names(1, "alias")), *given)
    assert result.status == 1
    assert result.err.splitlines()[-1].startswith("E: ")
    assert all(word in result.err.splitlines()[-1] for word in words), result.err
    assert count(eab_pebble, "/order-plz") == before


@pytest.mark.parametrize("given", [
    pair("kid-1", MAC_KEY)[:2], pair("kid-1", MAC_KEY)[2:], pair("kid-1", "a"),
    pair("kid-1", "k\u00e9y!")], ids=["id alone", "key alone", "too short", "not ASCII"])
def test_external_account_misused(run, eab_pebble, csr, given):
    """Half a pair, or a key that is not base64url, is wrong usage; the key is not shown."""
    before = len(eab_pebble.requests)
    result = run(eab_pebble, csr(["localhost"]), *given)
    assert result.status == 2
    assert result.err.startswith("E: ") and "--eab-" in result.err
    assert MAC_KEY not in result.err
    assert len(eab_pebble.requests) == before


WITNESS = """#!/bin/sh
{{ tr '\\0' '\\n' < /proc/$PPID/cmdline; printf '%s\\n' "$0" "$@"; }} >> {log}
exec {openssl} "$@"
"""


@pytest.mark.parametrize("hidden", [True, False])
def test_external_account_key_is_hidden(run, eab_pebble, names, csr, config, tmp_path, hidden):
    """A key in the config JSON is on no command line, neither the script's nor openssl's."""
    (tmp_path / "bin").mkdir()
    log, witness = tmp_path / "commands", tmp_path / "bin" / "openssl"
    openssl = shutil.which("openssl", path=script_path())
    witness.write_text(WITNESS.format(log=shlex.quote(str(log)), openssl=shlex.quote(openssl)))
    witness.chmod(0o755)
    given = pair("kid-1", MAC_KEY)  # the witness must be able to see it there
    if hidden:
        given = ["--config-json", config([], EabKid="kid-1", EabHmacKey=MAC_KEY)]
    path = "%s:%s" % (tmp_path / "bin", script_path())
    result = run(eab_pebble, csr(names(1, "alias")), *given, env={"PATH": path})
    assert result.status == 0, result.err
    seen = log.read_text()
    assert "letsacme.py" in seen and "-sign" in seen
    forms = [MAC_KEY.rstrip("="), SECRET.hex(), base64.b64encode(SECRET).decode().rstrip("=")]
    assert any(form in seen for form in forms) != hidden
    assert MAC_KEY.rstrip("=") not in result.err + result.out


# --- profiles ------------------------------------------------------------------------------------

PROFILES = {"classic": {"description": "90 days", "validityPeriod": 7776000},
            "shortlived": {"description": "six days", "validityPeriod": 518400}}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("way", ["option", "file"])
def test_profile(run, pebbles, names, csr, key, config, profile, way):
    """The order asks for the profile, so the certificate lives as long as the profile says."""
    ca = pebbles(profiles=PROFILES, **QUICK)
    given = ["--profile", profile]
    if way == "file":
        given = ["--config-json", config([], Profile=profile)]
    wanted = names(1, "alias")
    result = run(ca, csr(wanted), *given)
    assert result.status == 0, result.err
    certificate = check_chain(result.out, wanted, key(), ca.root)[0]
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert abs(lifetime.total_seconds() - PROFILES[profile]["validityPeriod"]) < 60


def test_profile_not_offered(run, pebbles, csr):
    """A profile that the CA has not is refused before any order, with those it has."""
    ca = pebbles(profiles=PROFILES, **QUICK)
    before = count(ca, "/order-plz")
    result = run(ca, csr(["localhost"]), "--profile", "short-lived")
    assert result.status == 1
    error = result.err.splitlines()[-1]
    assert error.startswith("E: ") and "short-lived" in error
    assert error.endswith(" classic, shortlived")
    assert count(ca, "/order-plz") == before


@pytest.mark.parametrize("meta", [MISSING, {}], ids=["no meta", "no profiles"])
def test_no_profiles(run_scripted, meta):
    """The same where the CA knows nothing of profiles."""
    result, ca = run_scripted({"directory": put("meta", meta)}, "--profile", "tlsserver")
    assert result.status == 1
    assert re.search("^E: .*no profile.*tlsserver", result.err, re.MULTILINE)
    assert not ca.count("newOrder")


# --- addresses -----------------------------------------------------------------------------------

ADDRESSES = [["127.0.0.1"], ["::1"], ["127.0.0.1", "::1"]]


@pytest.fixture
def ipv6():
    """Skips a test where there is no ::1; in CI there must be."""
    if not has_ipv6():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("this machine has no IPv6 loopback")


@pytest.mark.parametrize("ips", ADDRESSES, ids=["IPv4", "IPv6", "both"])
@pytest.mark.parametrize("names_beside", [0, pytest.param(2, marks=pytest.mark.core)])
@pytest.mark.usefixtures("ipv6")
def test_addresses(letsacme, pebble, nginx, names, csr, key, config, account, ips, names_beside):
    """Addresses are proved alone and beside names, each in a document root of its own."""
    wanted = names(names_beside)
    # Where nginx looks for what is asked of an address: an IPv6 address stands in brackets.
    roots = {ip: {"DocumentRoot": str(nginx.root("[%s]" % ip if ":" in ip else ip))} for ip in ips}
    seen = len((nginx.folder / "access.log").read_text())
    result = letsacme("--csr", csr(wanted, ips=ips), "--account-key", account,
                      "--config-json", config(wanted, **roots), ca=pebble)
    assert result.status == 0, result.err
    check_chain(result.out, wanted + ips, key(), pebble.root)
    log = (nginx.folder / "access.log").read_text()[seen:]
    for ip in ips:  # the script's own check and the CA's
        assert re.search("^%s .* 200 .*letsacme/" % ip, log, re.MULTILINE)
        assert re.search("^%s .* 200 .*[Pp]ebble" % ip, log, re.MULTILINE)


@pytest.mark.parametrize(("ip", "url"), [
    ("127.0.0.1", "http://127.0.0.1:%d/"), ("::1", "http://[::1]:%d/")])
@pytest.mark.usefixtures("ipv6")
def test_check_of_an_address(letsacme, pebble, csr, account, tmp_path, ip, url):
    """A file that cannot be fetched from an address is reported before the CA is asked."""
    (tmp_path / "unserved").mkdir()
    before = count(pebble, "/chalZ/")
    result = letsacme("--csr", csr(ips=[ip]), "--account-key", account,
                      "--acme-dir", tmp_path / "unserved", ca=pebble)
    assert result.status == 1
    assert "couldn't download " + url % pebble.http_port in result.err
    assert count(pebble, "/chalZ/") == before
    assert not list((tmp_path / "unserved").iterdir())


def test_address_without_directory(letsacme, pebble, names, csr, account, config):
    """An address needs a directory like any name."""
    wanted = names(1)
    before = len(pebble.requests)
    result = letsacme("--csr", csr(wanted, ips=["192.0.2.7"]), "--account-key", account,
                      "--config-json", config(wanted), ca=pebble)
    assert result.status == 1
    assert "E: 192.0.2.7: " in result.err and "director" in result.err
    assert len(pebble.requests) == before


# --- contact -------------------------------------------------------------------------------------

CONTACTS = [
    ([], {}, []),
    (["--contact", "one@site.example"], {}, ["mailto:one@site.example"]),
    (["--contact", "mailto:one@site.example", "two@site.example"], {},
     ["mailto:one@site.example", "mailto:two@site.example"]),
    ([], {"Contact": "one@site.example"}, ["mailto:one@site.example"]),
    ([], {"Contact": ["mailto:one@site.example", "two@site.example"]},
     ["mailto:one@site.example", "mailto:two@site.example"]),
    (["--contact", "one@site.example"], {"Contact": ["two@site.example", "three@site.example"]},
     ["mailto:one@site.example"]),
]
CONTACT_IDS = ["none", "one", "two", "one in file", "two in file", "option before file"]


@pytest.mark.parametrize(("given", "settings", "contact"), CONTACTS, ids=CONTACT_IDS)
@pytest.mark.parametrize("echo", [True, False])
def test_contact(run_scripted, given, settings, contact, echo):
    """The account gets the contacts, whether the CA echoes them or not."""
    script = {} if echo else {"newAccount": put("contact", MISSING)}
    result, ca = run_scripted(script, "--config-json", json.dumps(settings), *given)
    assert result.status == 0, result.err
    assert [account["contact"] for account in ca.accounts.values()] == [contact]


@pytest.mark.parametrize("given", [each[0] for each in CONTACTS[:3]], ids=CONTACT_IDS[:3])
def test_contact_at_pebble(run, pebble, names, csr, given):
    """A real CA takes them too."""
    result = run(pebble, csr(names(1, "alias")), *given)
    assert result.status == 0, result.err


def test_contact_refused(run, pebble, csr):
    """A contact that the CA does not want is named."""
    result = run(pebble, csr(["localhost"]), "--contact", "one@two@three")
    assert result.status == 1
    assert "one@two@three" in result.err and "invalidContact" in result.err


# --- chains --------------------------------------------------------------------------------------

@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_chain(run, pebbles, names, csr, key, tmp_path, length):
    """Chains of any length are taken whole; other chains are offered, and left."""
    ca = pebbles(PEBBLE_CHAIN_LENGTH=length, PEBBLE_ALTERNATE_ROOTS=2, PEBBLE_WFE_NONCEREJECT=0,
                 **QUICK)
    assert ca.management("/roots/2") != ca.management("/roots/0")
    wanted = names(1, "alias")
    before = count(ca, "/certZ/")
    result = run(ca, csr(wanted), "--cert-file", tmp_path / "cert", "--chain-file",
                 tmp_path / "chain", "--fullchain-file", tmp_path / "fullchain")
    assert result.status == 0, result.err
    assert count(ca, "/certZ/") == before + 1
    full = (tmp_path / "fullchain").read_text()
    assert len(check_chain(full, wanted, key(), ca.root)) == 1 + length
    assert len(load_chain((tmp_path / "cert").read_text())) == 1
    assert (tmp_path / "cert").read_text() + (tmp_path / "chain").read_text() == full


# --- names that cannot be had --------------------------------------------------------------------

@pytest.mark.parametrize("options", [
    {"names": ["*.site.example"]}, {"names": ["www.site.example", "*.site.example"]},
    {"cn": "*.site.example"}, {"cn": "*.site.example", "names": ["site.example"]},
    {"names": ["*.SITE.example"]}])
def test_wildcard(run, pebble, csr, options):
    """A wildcard is refused before the CA is contacted, with what to use instead."""
    before = len(pebble.requests)
    result = run(pebble, csr(**options))
    assert result.status == 1
    assert re.fullmatch(r"E: .*\*\.site\.example.*\n", result.err) and "dns-01" in result.err
    assert len(pebble.requests) == before


@pytest.mark.parametrize(("entry", "shown"), [
    (x509.RFC822Name("someone@site.example"), "someone@site.example"),
    (x509.RFC822Name("mail.site.example"), "mail.site.example"),
    (x509.UniformResourceIdentifier("https://site.example/"), "https://site.example/"),
    (x509.DNSName("site.example."), "site.example."), (x509.DNSName(".site.example"), ".site"),
    (x509.DNSName("127.0.0.1"), "127.0.0.1"), (x509.DNSName("../../etc"), "../../etc"),
    (x509.DNSName("a\x1b[2mb.example"), "a?[2mb.example"), (x509.DNSName("w*.example"), "w*"),
    (x509.DirectoryName(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "d.example")])),
     "d.example")])
def test_other_entries(run, pebble, csr, entry, shown):
    """An entry that is neither host name nor address is refused by name, harmlessly printed."""
    before = len(pebble.requests)
    san = x509.SubjectAlternativeName([x509.DNSName("good.site.example"), entry])
    result = run(pebble, csr(extensions=[(san, False)]))
    assert result.status == 1
    assert shown in result.err.splitlines()[-1]
    assert "\x1b" not in result.err
    assert len(pebble.requests) == before


@pytest.mark.parametrize("cn", ["127.0.0.1", "Some Site, Inc.", "localhost"])
def test_common_name_that_is_no_name(run, pebble, csr, cn):
    """A common name that is no DNS name asks for nothing."""
    before = len(pebble.requests)
    result = run(pebble, csr(cn=cn))
    assert result.status == 1
    assert re.fullmatch("E: .*csr.* name.*\n", result.err, re.IGNORECASE)
    assert len(pebble.requests) == before


@pytest.mark.parametrize("change_name", [str.upper, "xn--bcher-kva.{}".format])
def test_odd_names(run, letsacme, pebble, names, csr, key, change_name):
    """Capitals and punycode are names like others; Pebble puts them into the certificate as is."""
    wanted = change_name(names(1, "alias")[0])
    letsacme.add_host(wanted.lower())
    result = run(pebble, csr([wanted]))
    assert result.status == 0, result.err
    check_chain(result.out, [wanted], key(), pebble.root)


def test_name_that_the_ca_refuses(run, pebble, csr):
    """What the CA does not want to order is reported in its words; Pebble wants no underscore."""
    result = run(pebble, csr(["a_b.site.example"]))
    assert result.status == 1
    assert result.err.splitlines()[-1].startswith("E: ")
    assert "illegal character: '_'" in result.err and "malformed" in result.err
