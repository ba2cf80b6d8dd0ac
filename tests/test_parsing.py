"""What letsacme.py reads, in this process and at once: DER and PEM, CSRs, certificates, keys, the
answers of a CA, and the configuration."""
import email.utils
import json
import os
import subprocess
import time
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import pki
import pytest
import support
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from jwcrypto.jwk import JWK
from trials import SECRET

script = support.module()
pytestmark = pytest.mark.quick
Error = script.Error
URL = "https://ca.example/x"


def settings(config, *words):
    """The settings that a configuration and a command line make."""
    needed = [] if "CSR" in config else ["--account-key", "account.key", "--csr", "the.csr"]
    return script.read_settings([*needed, "--config-json", json.dumps(config), *words])


def requested(path):
    """The names, as identifiers, of the CSR in a file."""
    return list(script.SigningRequest(str(path)).names.values())


def certificate(data):
    """The only certificate in PEM data."""
    [found] = script.read_certificates(data, "a certificate")
    return found


def answer(body=None, status=403, **headers):
    """An answer of the CA's; body is bytes, or becomes JSON."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return script.read_answer(URL, SimpleNamespace(status=status, headers=headers), body)


def a_ca(*answers):
    """A CA that gives these answers, and no more."""
    ca, left = script.CA(URL, SimpleNamespace(jwk={})), iter(answers)
    ca.send = lambda *_: next(left)
    return ca


def account_key(monkeypatch, tmp_path, public):
    """The account key for a public key in DER, which openssl is made to give."""
    (tmp_path / "account.key").touch()
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(
        command, 0, public, b""))
    return script.AccountKey(str(tmp_path / "account.key"))


# ---- DER, PEM and keys

@pytest.mark.parametrize("data, found", [
    ("", []), ("0500", [(5, b"")]), ("020101300004026162", [(2, b"\1"), (0x30, b""), (4, b"ab")]),
    ("048103" + "61" * 3, [(4, b"aaa")]), ("04820100" + "62" * 256, [(4, b"b" * 256)]),
    ("04", None), ("0401", None), ("040261", None), ("0482ffff61", None), ("0484ffffffff", None)])
def test_elements(data, found):
    """Elements follow each other; a length may be long; what is cut short is none."""
    with pytest.raises((Error, ValueError)) if found is None else nullcontext():
        assert script.elements(bytes.fromhex(data)) == found


def test_much_der():
    """Many small elements take moments: a CA can send a megabyte of them."""
    started = time.process_time()
    assert len(script.elements(b"\5\0" * 150000)) == 150000
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("data, said", [
    (b"", "something else"), (b"\x30\x03\2\1\1", "something else"), (bytes(range(256)), ""),
    (pki.pem(pki.Issuer().root), "CERTIFICATE"), (b"-----BEGIN PRIVATE KEY-----", "PRIVATE KEY"),
    (b"-----BEGIN PRIVATE KEY\nAAAA\n-----END PRIVATE KEY-----", "but something else"),
    (b"-----BEGIN CERTIFICATE REQUEST-----\nMII", ""),
    *((pki.block(b"", b"CERTIFICATE REQUEST") * count, "") for count in (1, 2))])
def test_no_csr(tmp_path, data, said):
    """The error names the file, and what is there instead."""
    (tmp_path / "csr").write_bytes(data)
    with pytest.raises(Error, match="%s.*%s" % (tmp_path / "csr", said)):
        requested(tmp_path / "csr")


@pytest.mark.parametrize("names, cn, expected", [
    (["b.example", "A.example"], None, ["dns b.example", "dns A.example"]),
    (["a.example"], "A.Example", ["dns a.example"]), ([], "a.example", ["dns a.example"]),
    (["a.example"], "b.example", ["dns a.example", "dns b.example"]),
    (["a.example"], "My Site", ["dns a.example"]), (["a.example"], "localhost", ["dns a.example"]),
    (["127.0.0.1", "::1"], "127.0.0.1", ["ip 127.0.0.1", "ip ::1"]),
    (["localhost", "a_b.example", "xn--bcher-kva.example", "1.a-b.c3"], None,
     ["dns localhost", "dns a_b.example", "dns xn--bcher-kva.example", "dns 1.a-b.c3"]),
    *((["good.example", entry], None, "/csr") for entry in (
        x509.RFC822Name("me@site.example"), x509.RFC822Name("mail.site.example"),
        x509.UniformResourceIdentifier("https://site.example/"),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4")),
        x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x02me"),
        x509.DirectoryName(pki.common_name("site.example")), x509.DirectoryName(x509.Name([])),
        *map(x509.DNSName, ["", ".", "..", ".example", "a..example", "a b.example", "a@b.example",
                            "a\nb.example", "a\0.example", "\x1b[31m.example", "a.example:80",
                            "a/../b.example", "-", "site.example.", "127.0.0.1", "../../etc"]))),
    *((names, None, r"\*.*dns-01") for names in (["www.a.example", "*.A.example"],
                                                 ["a.*.example"], ["w*.a.example"])),
    ([], "*.a.example", r"\*.*dns-01"), (["a.example"], "*.a.example", r"\*.*dns-01"),
    *(([], cn, "no name(?!.*dns-01)") for cn in (None, "127.0.0.1", "Some Site", "localhost"))])
@pytest.mark.parametrize("critical", [False, True])
def test_names_that_can_and_cannot_be_had(tmp_path, key, names, cn, expected, critical):
    """DNS names, addresses, a common name that is a DNS name, as they are spelt; no other kinds, no
    wildcards, and not none. PEM may have other line ends, the old label, or text around it."""
    usage = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
    path = pki.write_csr(tmp_path / "csr", names, key(), cn, critical,
                         [(usage, True), (x509.OCSPNoCheck(), False)])
    pem, is_error = path.read_bytes(), isinstance(expected, str)
    for form in (pem, pem.replace(b"\n", b"\r\n"), pem.replace(b" CERT", b" NEW CERT"),
                 b"Subject: x\n\n" + pem + b"\n\n"):
        path.write_bytes(form)
        with pytest.raises(Error, match=expected) if is_error else nullcontext():
            assert ["%(type)s %(value)s" % each for each in requested(path)] == expected


@pytest.mark.parametrize("serial, authority, expected", [
    (0x87654321, "69885b6b87464041e1b37b847ba0ae2cde01c8d4",
     "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"),  # the example of RFC 9773
    (1, "00", "AA.AQ"), (0x7f, "00ff", "AP8.fw"), (0x80, "ff", "_w.AIA"), (2 ** 158, None, None)])
def test_certificate(serial, authority, expected):
    """Names, key, lifetime, and the identifier for renewal information (RFC 9773, 4.1)."""
    issuer, public = pki.Issuer(), pki.new_key().public_key()
    made = issuer.leaf(["a.example", "::1"], public, (-10000, 40000), serial,
                       authority and bytes.fromhex(authority))
    found = certificate(pki.pem(made))
    assert set(found.names) == {"a.example", "::1"} and not found.self_signed
    assert found.renewal_id == (expected or pki.ari_id(made))
    assert found.starts == made.not_valid_before_utc.timestamp()
    assert found.ends == made.not_valid_after_utc.timestamp()
    assert certificate(pki.pem(issuer.root)).self_signed
    assert certificate(pki.pem(issuer.root)).renewal_id is None


@pytest.mark.parametrize("text, seconds", [
    ("700101000000Z", 0), ("19700101000000Z", 0), ("491231235959Z", 2524607999),
    ("20500101000000Z", 2524608000), *((text, 1735787045) for text in (
        "2025-01-02T03:04:05Z", "2025-01-02t03:04:05z", "2025-01-02T03:04:05.999Z",
        "2025-01-02T03:04:05+00:00")), *((text, None) for text in (
            "", "Z", "soon", "2025-01-02", "2025-01-02T03:04:05", "2025-01-02T03:04:05+01:00",
            "2025-13-01T00:00:00Z", "2025-01-02T03:04Z"))])
def test_times(text, seconds):
    """As certificates have them, and renewal information (RFC 3339); the rest is no time in UTC."""
    with pytest.raises(Error, match="UTC") if seconds is None else nullcontext():
        assert script.read_time(text) == seconds


@pytest.mark.parametrize("kind, algorithm, size", [
    ("p256", "ES256", 32), ("p384", "ES384", 48), ("rsa1024", "RS256", None)])
def test_thumbprints_and_signatures(monkeypatch, tmp_path, kind, algorithm, size):
    """As a library makes them, zeros in front or not; a signature's numbers are never short."""
    for _ in range(40 if size else 1):
        public = pki.KEYS[kind]().public_key()
        key = account_key(monkeypatch, tmp_path, pki.public_der(public))
        assert (key.thumbprint, key.algorithm) == (JWK.from_pyca(public).thumbprint(), algorithm)
    for r, s in [(1, 2 ** (8 * size) - 1), (2 ** (8 * size - 1), 2 ** 200)] if size else []:
        monkeypatch.setattr(key, "openssl", lambda *_, r=r, s=s: encode_dss_signature(r, s))
        assert key.sign(b"") == r.to_bytes(size, "big") + s.to_bytes(size, "big")


# ---- Answers

@pytest.mark.parametrize("value, seconds", [
    ("0", 0), ("120", 120), ("999999999", 999999999), ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ("Sun, 06 Nov 1994 08:49:37 GMT", 0), ("", None), ("soon", None), ("-5", None), ("1.5", None),
    ("\xb2", None), ("1e9", None), ("9" * 20, None), ("Fri, 99 Foo 2026 99:99:99 GMT", None)])
def test_retry_after(value, seconds):
    """Seconds, or a date, which may be over; nothing else counts (RFC 9110, 10.2.3)."""
    assert answer(Retry_After=value).retry_after() == seconds
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 98 < answer(Retry_After=date).retry_after() <= 100


@pytest.mark.parametrize("body, words", [
    ({"type": "urn:ietf:params:acme:error:caa", "detail": "no"}, ["no", "error:caa"]),
    ({"detail": "no", "subproblems": [{"detail": "nor this", "identifier": {
        "type": "dns", "value": "a.example"}}]}, ["no", "a.example: nor this"]),
    ({"status": "invalid", "identifier": {"type": "dns", "value": "a.example"}, "challenges": [
        {"type": "dns-01"}, {"type": "http-01", "error": {"detail": "404"}}]}, ["invalid", "404"]),
    ({"status": "invalid", "error": {"detail": "expired"}}, ["invalid", "expired"]),
    ({"status": "invalid", "error": {"status": 404}}, ["invalid; HTTP status 404"]),
    *((body, ["HTTP status 403"]) for body in (
        {}, [1], None, "text", 7, b"", b"<html>", b"\xff\xfe", b"{\"a\": \"\xff\"}", b"9" * 100000,
        b"[" * 200000, b"{\"a\":" * 100000, {"type": None, "detail": {"a": 1}}, {"error": "no"},
        {"detail": None, "subproblems": 7, "challenges": [7], "identifier": []},
        {"subproblems": "no"}, {"subproblems": {"identifier": 5}})),
    ({"type": 7, "subproblems": [1, {"identifier": {"value": [5]}, "detail": 5}]},
     ["[5]: HTTP status 403"])], ids=lambda value: repr(value)[:40])
def test_words(body, words):
    """A problem, an order, an authorization, a challenge, or what is none of these."""
    with pytest.raises(Error) as raised:
        answer(body).accepted()
    assert all(word in str(raised.value) for word in [URL, *words])


def test_words_are_cut():
    """Up to 4,000 characters of the CA's words are shown."""
    for body in {"detail": "x" * 9000}, {"type": "x", "subproblems": [{"detail": "y" * 3000}] * 9}:
        assert 3000 < len(answer(body).words()) <= 4000


@pytest.mark.parametrize("field, value", [
    *(("status", value) for value in (None, 7, True, ["x"], {"a": "x"})), ("identifier", ["x"]),
    *(("authorizations", value) for value in ("x", [7], [["x"]], {"a": "x"})),
    *(("Location", value) for value in (None, "", "x", "/x", "http://localhost/", ["https://x"]))])
def test_needed_fields(field, value):
    """One that is missing, or of another type, is told with the URL; Location is a header."""
    headers = {field: value} if isinstance(value, str) else {}
    with pytest.raises(Error, match='%s.*no usable "%s"' % (URL, field)):
        found = answer({field: value}, **headers)
        print(found.location() if field == "Location" else found[field])


@pytest.mark.parametrize("offer, words", [
    ("A" * 22, None), ("-_" * 100, None), *((token, "unsafe token") for token in (
        "../" + "A" * 40, "/" + "A" * 40, "A" * 20 + "/" + "A" * 20, "A" * 40 + "/",
        "A" * 30 + "\0", "A" * 30 + "\n", "\n" + "A" * 30, "A" * 30 + " ", "A" * 30 + "=",
        "A" * 30 + ".", "A" * 201, "A" * 21, "", ".", "..", "~" * 30, "\xe9" * 30, "\uff21" * 30,
        "$(id)" * 9, "%2e" * 20)),
    ([{"type": "dns-01"}, {"type": "tls-alpn-01"}, 7], "http-01, but dns-01, tls-alpn-01"),
    ([], "http-01, but nothing")])
def test_tokens_and_other_challenges(tmp_path, offer, words):
    """A challenge for HTTP is needed; an unsafe token does not become part of a path."""
    http = [{"type": "http-01", "token": offer, "url": URL + "/1"}, 7, {}]
    fields = {"identifier": {"value": "a.example"}, "status": "pending",
              "challenges": http if isinstance(offer, str) else offer}
    ca = SimpleNamespace(read=lambda url: answer(fields, 200), key=SimpleNamespace(thumbprint="x"))
    with pytest.raises(Error, match="a.example: .*" + words) if words else nullcontext():
        assert script.prove(
            ca, {"authorizations": [URL]}, {"a.example": str(tmp_path)}, SimpleNamespace(
                force=False, disable_check=True)) == {"a.example": (URL, URL + "/1")}
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == ({} if words else {offer: offer + ".x"})


@pytest.mark.parametrize("thing, failed", [
    *(({"status": status}, True) for status in ("invalid", "expired", "deactivated", "revoked")),
    *(({"status": status}, False) for status in ("pending", "processing", "valid", 7, None)),
    ({"status": "pending", "error": {}}, True), ({"status": "valid", "error": {}}, False),
    ({"status": "pending", "challenges": [{}, {"status": "invalid"}]}, True),
    ({"status": "pending", "challenges": [{"status": "pending", "error": {}}]}, True)], ids=str)
def test_failures(thing, failed):
    """A challenge or an authorization shows that its validation has failed."""
    assert answer(thing, 200).has_failed() == failed


@pytest.mark.parametrize("url", [
    "http://HOST/x", "", "https://[::1", "https://HOST/x\r\nHost: y", "ftp://HOST/x", "//HOST/x",
    "file:///etc/passwd", "/relative", "https:///x", "https://HOST/a b", "https://HOST/\x1b[31m",
    "https://HOST\n/x", "https://localhost:port/x", "https://\u043a\u043b\u044e\u0447/",
    "https://user:secret@HOST/"])
def test_urls_that_nothing_is_sent_to(url):
    """They are not https, or no URLs."""
    with pytest.raises(Error, match="is no https URL, so nothing is sent there"):
        script.CA(url.replace("HOST", "localhost:1"), SimpleNamespace(jwk={})).directory()


NONCE = {"type": "urn:ietf:params:acme:error:badNonce"}


def test_asked_once():
    """A limit, or an outage of an hour, is no worse for being asked again; and it is told."""
    for refusal in (answer(NONCE, 429), answer({}, 429, Retry_After="soon"),
                    answer({}, 429, Retry_After="121"),
                    answer(b"<html>", 503, Retry_After="3600")):
        assert a_ca(refusal).ask(URL, method="GET") is refusal
        with pytest.raises(Error, match="^https://ca.example/x: (?!.*no directory)"):
            a_ca(refusal).directory()


def test_a_hundred_nonces_are_refused():
    """So many in a row are borne, no more."""
    refused = [answer(NONCE, 400)] * 100
    for last in answer(NONCE, 400), answer({}, 200):
        assert a_ca(*refused, last).ask(URL, method="GET") is last


# ---- Certificates that a CA hands out

ISSUER, PUBLIC, NAMES = pki.Issuer(), pki.new_key().public_key(), ["www.a.example", "a.example"]
LEAF, CHAIN = ISSUER.leaf(NAMES, PUBLIC), pki.pem(ISSUER.intermediate)
DER, PEM = LEAF.public_bytes(pki.DER), pki.pem(LEAF)


def other(names, key=PUBLIC):
    """A certificate for other names, or for another key, and the chain."""
    return pki.pem(ISSUER.leaf(names, key)) + CHAIN


@pytest.mark.parametrize("data, words", [
    (other(NAMES, pki.new_key().public_key()), "another key"), (CHAIN + PEM, "another key"),
    (CHAIN, "another key"), (other(NAMES[:1]), "without a.example"),
    (other([]), "without a.example, www.a.example"), (other(["evil.example"]), "without a.example"),
    (other(["*.a.example", "a.example"]), "without www.a.example"),
    *((data, URL) for data in (
        (PEM + CHAIN)[:-100], (PEM + CHAIN)[:-26],
        PEM + b"-----BEGIN CERTIFICATE-----\n!-----END CERTIFICATE-----\n",
        PEM + pki.block(b"nothing of the kind"), PEM + pki.block(b""), pki.block(DER[:-1]) + CHAIN,
        pki.block(DER + b"\0\0") + CHAIN, pki.block(b"\x30\x82\xff\xff" + DER) + CHAIN, DER,
        pki.block(b"\x30\x80" * 5000) + CHAIN, b"<html>", b"", {"certificate": "none"},
        PEM + b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")),
    *((data, None) for data in (
        other([*NAMES, "more.example"]), other([name.upper() for name in NAMES]), PEM,
        PEM + CHAIN * 5, (PEM + CHAIN).replace(b"\n", b"\r\n"), PEM + b"\n" + CHAIN + b"\n"))],
    ids=lambda value: None if isinstance(value, str) else "")
def test_wrong_certificates(data, words):
    """They are not accepted, the error says what it is about; what is odd alone does no harm."""
    ca, request = SimpleNamespace(read=lambda url: answer(data, 200)), certificate(PEM)
    with pytest.raises(Error, match=words) if words else nullcontext():
        found = script.issue(ca, URL, answer({"status": "valid", "certificate": URL}), request)
        assert [each.der for each in found] == [
            each.public_bytes(pki.DER) for each in x509.load_pem_x509_certificates(data)]


# ---- Settings

TEXTS = {"AccountKey": "x", "CSR": "y", "CertFile": "z", "ChainFile": "\u043a\u043b\u044e\u0447",
         "FullchainFile": "a b", "CA": "https://ca.example/dir", "Profile": "short", "EabKid": "-1",
         "EabHmacKey": "AAAA", "AcmeDir": "/dir", "CheckPort": 5002, "Contact": ["a@b", "tel:0"]}
FLAGS = {"NoChain": "no_chain", "NoCert": "no_cert", "Quiet": "quiet", "Force": "force",
         "Renew": "renew", "DisableCheck": "disable_check"}
REAL = {"ca": script.LETS_ENCRYPT, "mode": ""}
TEST = {"ca": script.LETS_ENCRYPT_STAGING, "mode": " (test mode)"}


@pytest.mark.parametrize("config, words, expected", [
    # Every option can stand in the file; keys with "_" are comments, empty values are none.
    ({**TEXTS, "_x": {"a": 1}, "_": [None], "Renew": True}, [], {
        "account_key": "x", "csr": "y", "cert_file": "z", "chain_file": TEXTS["ChainFile"],
        "fullchain_file": "a b", "ca": "https://ca.example/dir", "profile": "short",
        "eab_kid": "-1", "eab_hmac_key": "AAAA", "acme_dir": "/dir", "check_port": "5002",
        "contact": ["mailto:a@b", "tel:0"], "renew": True}),
    ({"Profile": "", "Contact": [], "ChainFile": "", "AcmeDir": ""}, [],
     {"profile": "", "contact": [], "chain_file": "", "acme_dir": ""}),
    # The command line counts, whatever the file says; the last of two counts.
    ({**TEXTS, "Quiet": True}, [
        "--ca", "https://b.example/dir", "--cert-file=new", "--contact", "b@c", "d@e",
        "--check-port", "80", "--check-port", "81", "--account-key", "k"], {
        "ca": "https://b.example/dir", "cert_file": "new", "contact": ["mailto:b@c", "mailto:d@e"],
        "check_port": "81", "quiet": True, "account_key": "k"}),
    # Flags are true, false, or these words in any case; one that is given is not switched off.
    *(({flag: value, "FullchainFile": "x"}, [], {name: str(value).lower() == "true"})
      for flag, name in FLAGS.items() for value in (True, "TRUE", "true", False, "False")),
    *(({flag: False, "FullchainFile": "x"}, ["--" + name.replace("_", "-")], {name: True})
      for flag, name in FLAGS.items()),
    # --test wins over the file's CA, and --ca over --test; without a path it is /directory.
    ({}, [], REAL), ({}, ["--test"], TEST), ({"CA": "https://a.b/x"}, ["--test"], TEST),
    ({"CA": "https://a.b/x", "Test": True}, [], TEST),
    ({"CA": "https://a.b"}, [], {"ca": "https://a.b/directory", "mode": ""}),
    ({}, ["--directory-url", "https://a.b/"], {"ca": "https://a.b/directory", "mode": ""}),
    ({}, ["--directory-url=https://a.b/x"], {"ca": "https://a.b/x", "mode": ""}),
    ({"Test": True}, ["--ca", "https://a.b/x"], {"ca": "https://a.b/x", "mode": ""})])
def test_settings(config, words, expected):
    """What a configuration and a command line come to."""
    found = settings(config, *words)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize("config, words", [
    ({"acmedir": "/tmp"}, "acmedir"), ({"Acme-Dir": "/tmp"}, "Acme-Dir"), ({"Version": "1"}, ""),
    ({"--quiet": True}, "--quiet"), ({"example.org": "/"}, '"example.org" must be {"DocumentRoot"'),
    ({"a.b": None}, "a.b"), ({"a.b": {}}, "a.b"), ({"a.b": {"Foo": None}}, "a.b"),
    ({"a.b": {"DocumentRoot": 5}}, "a.b"), ({"a.b": {"DocumentRoot": ""}}, "a.b"),
    ({"a.b": {"AcmeDir": 5}}, "AcmeDir"),
    ({"AcmeDir": {"a.b": "/x"}}, '"AcmeDir" must be one line of text'),
    ({"DocumentRoot": ""}, '"DocumentRoot" must be {'),
    ({"AccountKey": "BEGIN\n" + SECRET}, '"AccountKey" must be one line of text'),
    (["--account-key", "BEGIN\n" + SECRET], "--account-key and --csr are paths"),
    (["--csr", "BEGIN\n" + SECRET], "--account-key and --csr are paths"),
    (["--fullchain-files", "x"], "unknown option or word: --fullchain-files"),
    ({"AcmeDir": True}, "AcmeDir"), ({"AcmeDir": "a\0"}, ""), ({"CSR": {}}, "CSR"),
    ({"CertFile": None}, "CertFile"), ({"DocumentRoot": 7}, "DocumentRoot"),
    ({"Renew": {"AcmeDir": "/x"}}, '"Renew" must be true'), ({"Quiet": "yes"}, "Quiet"),
    ({"Quiet": 1}, "Quiet"), ({"Quiet": None}, "Quiet"), ({"Contact": [1]}, "Contact"),
    ({"CheckPort": "x"}, "check-port"), ({"EabKid": "x"}, "eab"), ({"EabHmacKey": "AAAA"}, "eab"),
    *(({"EabKid": "x", "EabHmacKey": key}, "base64url") for key in ("k\xe9y!", "a")),
    ("{", "--config-json"), ('{"AcmeDir": "/tmp",}', "--config-json"), ('"text"', "--config-json"),
    *((words, words[0][:5]) for words in (
        ["--acc", "x"], ["leftover"], ["--csr"], ["--csr="], ["--quiet=yes"])),
    *((words, "") for words in (
        ["--eab-hmac-key", SECRET], ["--eab-hmac-key=-" + SECRET], ["--eab-kid", "x", SECRET])),
    *((text % SECRET, "") for text in (
        '{"EabHmacKey": "%s"}', '{"EabHmacKey": "%s",}', '{"EabHmacKey": "%s", "Bogus": 1}',
        '{"EabHmacKey": "%s", "EabKid": 5.5}', '{"EabHmacKey": "%s"',
        '{"EabHmacKey": ["%s"]}', '{"%s": 1}x'))], ids=str)
def test_wrong_settings(config, words):
    """What is wrong is named, be it a key, its value or the whole; but a secret is not told."""
    more = config if isinstance(config, list) else [
        "--config-json", config if isinstance(config, str) else json.dumps(config)]
    with pytest.raises(Error) as raised:
        script.read_settings(["--account-key=x", "--csr=y", *more])
    told = str(raised.value)
    assert words in told and "\n" not in told and SECRET[:9] not in told


PLACE = "root/.well-known/acme-challenge"
ROOT, RIGHT, WRONG = {"DocumentRoot": "root/"}, {"AcmeDir": PLACE}, {"AcmeDir": "wrong"}


@pytest.mark.parametrize("config, words", [
    ({"NAME": RIGHT}, []), ({"NAME": ROOT}, []), ({"NAME": {**RIGHT, "DocumentRoot": "no"}}, []),
    ({"NAME": {**RIGHT, "_note": 1}, **WRONG}, []), ({"NAME": ROOT, **WRONG}, []),
    ({"NAME": ROOT}, ["--acme-dir", "wrong"]), ({"NAME": ROOT, "TWIN": WRONG}, []),
    ({"TWIN": ROOT}, []), ({"TWIN": RIGHT, **WRONG}, ["--acme-dir", "wrong"]), (ROOT, []),
    ({**RIGHT, "other.example": WRONG}, []), ({**RIGHT, "DocumentRoot": "wrong"}, []),
    ({**WRONG, "DocumentRoot": "wrong"}, ["--acme-dir", PLACE]),
    ({"DocumentRoot": "wrong"}, ["--acme-dir=%s/" % PLACE])], ids=str)
@pytest.mark.parametrize("name, twin", [
    ("a.example", "WWW.a.example"), ("www.a.example", "A.example")])
def test_directories(tmp_path, monkeypatch, config, words, name, twin):
    """The directory for a name: its own, that of its www. twin, or the global one."""
    monkeypatch.chdir(tmp_path)
    for made in "root", "wrong":
        (tmp_path / made / ".well-known/acme-challenge").mkdir(parents=True)
    config = {{"NAME": name.upper(), "TWIN": twin}.get(key, key): config[key] for key in config}
    assert script.challenge_directory(name, settings(config, *words)) == PLACE


# ---- Files and waiting

def test_a_link_that_comes_back(tmp_path, monkeypatch):
    """What is planted where a challenge file has just been removed is not followed."""
    (tmp_path / "target").write_text("this is someone's")
    (tmp_path / "token").symlink_to("target")
    monkeypatch.setattr(os, "remove", lambda path: None)
    with pytest.raises(Error, match="/token"):
        script.publish(str(tmp_path / "token"), "content", False)
    assert (tmp_path / "target").read_text() == "this is someone's"


def test_outputs_are_on_the_disk_before_they_are_in_place(tmp_path, monkeypatch):
    """Else a power cut could leave an empty file under the right name."""
    spy = Mock(**{"fsync.side_effect": os.fsync, "rename.side_effect": os.rename})
    monkeypatch.setattr(os, "fsync", spy.fsync)
    monkeypatch.setattr(os, "rename", spy.rename)
    script.write_outputs({str(tmp_path / name): name.encode() for name in ("cert", "chain")})
    assert [name for name, *_ in spy.mock_calls] == ["fsync", "fsync", "rename", "rename"]


def test_pauses(monkeypatch):
    """They grow up to a bound, until all is over; a clock that somebody sets does not matter."""
    slept = []
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    monkeypatch.setattr(time, "time", lambda: -1e9 * sum(slept))
    for pause in script.pauses(600):
        slept.append(pause)
        assert len(slept) < 200
    assert slept[:2] == [0, 0.25] and slept[1:] == sorted(slept[1:]) and slept[-1] == 5
    assert 600 <= sum(slept) < 605


def test_constants():
    """The waits are those that README.md tells of."""
    assert {name: getattr(script, name) for name in support.WAITS} == support.WAITS
