"""Random bytes, settings and answers of a CA: none of them may surprise.

The suite tries the same few cases every time; LETSACME_FUZZ=100000 tries that many others of each
kind.
"""
import contextlib
import json
import os
import re
from types import SimpleNamespace

import pki
import pytest
import support
import test_parsing as inner
import trials
from cryptography import x509
from faults import MISSING, Reply, change, replace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_ca import check_identifier

CASES = int(os.environ.get("LETSACME_FUZZ", "0"))


def fuzz(few, **strategies):
    """Run a test on so many cases, the same ones each time; or on many, if that was asked for."""
    config = settings(max_examples=CASES or few, derandomize=not CASES, database=None,
                      deadline=None, suppress_health_check=list(HealthCheck))
    return lambda test: pytest.mark.timeout(CASES or 300)(config(given(**strategies)(test)))


@contextlib.contextmanager
def nothing_but_errors():
    """What goes wrong is told in words."""
    try:
        yield
    except inner.Error as error:
        support.judge_words("\n".join("E: " + line for line in error.args))


NESTED = st.integers(1, 3000).map(lambda count: b"\x30\x80" * count)
SOME = st.binary(min_size=1, max_size=1) | st.binary(max_size=20) | NESTED
# Each edit puts some bytes, at a place, where so many others were; 4000 are all that follow.
EDITS = st.lists(st.tuples(st.integers(0, 4000), st.sampled_from([0, 1, 9, 4000]), SOME),
                 min_size=1, max_size=4)
BYTES = st.binary(max_size=200) | EDITS
LEAF = pki.Issuer().leaf(["a.example"], pki.new_key().public_key()).public_bytes(pki.DER)


def made(data, how):
    """Random bytes, or data with some edits."""
    if isinstance(how, bytes):
        return how
    for place, length, new in how:
        place %= len(data) + 1
        data = data[:place] + new + data[place + length:]
    return data


def in_pem(data, how, raw, label=b"CERTIFICATE"):
    """A block of PEM whose text, or whose DER, is different."""
    return made(pki.block(data, label), how) if raw else pki.block(made(data, how), label)


@fuzz(150, how=BYTES, raw=st.booleans())
def test_certificates(how, raw):
    """A certificate that is different."""
    with nothing_but_errors():
        inner.certificate(in_pem(LEAF, how, raw))


@fuzz(150, how=BYTES, raw=st.booleans())
def test_requests(tmp_path, key, how, raw):
    """A CSR that is different: each name that is found in it is one that can be ordered."""
    path = pki.write_csr(tmp_path / "csr", ["a.example", "127.0.0.1"], key())
    der = x509.load_pem_x509_csr(path.read_bytes()).public_bytes(pki.DER)
    path.write_bytes(in_pem(der, how, raw, b"CERTIFICATE REQUEST"))
    with nothing_but_errors():
        for name in inner.requested(path):
            check_identifier(name)


@fuzz(100, how=BYTES)
def test_public_keys(monkeypatch, tmp_path, how):
    """What openssl says of the account key is different."""
    public = made(pki.public_der(pki.new_key().public_key()), how)
    with nothing_but_errors():
        inner.account_key(monkeypatch, tmp_path, public)


TEXT = st.text(max_size=30) | st.sampled_from(["valid", "pending", "invalid", "ready", "processing",
                                               "http-01", "dns", "ip", "", "https://localhost/x"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUES = st.recursive(LEAVES, lambda each: st.lists(each, max_size=4)
                      | st.dictionaries(TEXT, each, max_size=4), max_leaves=8)
KEYS = st.text(max_size=20) | st.sampled_from([*inner.script.KEYS, "DocumentRoot", "_x", "a.b"])


@fuzz(50, config=st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=3),
                                  max_size=5) | VALUES, edits=st.just([]) | EDITS)
def test_configurations(tmp_path, config, edits):
    """A configuration of any shape; most are wrong usage."""
    (tmp_path / "config.json").write_bytes(made(json.dumps(config).encode(), edits))
    with nothing_but_errors():
        inner.settings({}, "--config-json", str(tmp_path / "config.json"))


@fuzz(50, words=st.lists(st.text(max_size=20).filter(lambda word: not re.match("-+(h|v)", word))
                          | st.sampled_from(["--csr", "--ca", "--quiet", "--contact", "--renew"]),
                          max_size=5))
def test_command_lines(words):
    """Any words."""
    with nothing_but_errors():
        inner.settings({}, *words)


RAW = st.binary(max_size=60) | st.sampled_from([b"[" * 100000, b"{\"a\":" * 50000, b"9" * 9999])
RESOURCES = st.sampled_from(["directory", "newNonce", "newAccount", "newOrder", "authz", "order",
                             "challenge", "finalize", "certificate"])
NAMES = st.sampled_from(["Location", "Replay-Nonce", "Retry-After", "Content-Type", "Link"])
LATIN = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=40)
HEADERS = st.dictionaries(NAMES, LATIN | st.integers(-9, 10 ** 12).map(str) | st.none(),
                          min_size=1, max_size=1)
STATUS = st.sampled_from([200, 201, 202, 204, 301, 400, 401, 403, 404, 409, 429, 500, 503])


def places(value):
    """All places in a JSON value, as (container, key)."""
    listed = enumerate(value) if isinstance(value, list) else ()
    for key, each in list(value.items() if isinstance(value, dict) else listed):
        yield value, key
        yield from places(each)


def spoil(number, value):
    """A fault of the scripted CA: a place in the answer's JSON holds something else, or is gone."""
    def fault(request, reply):
        found = list(places(reply.body))
        if found:
            container, key = found[number % len(found)]
            container[key] = value
            if value is MISSING:
                del container[key]
    return fault


SPOILS = st.one_of(
    st.builds(spoil, st.integers(0, 60), VALUES | st.just(MISSING)),
    st.builds(replace, VALUES | RAW), st.builds(change, STATUS), st.builds(change, headers=HEADERS),
    st.builds(lambda value, status: replace(
        {"type": value, "detail": value, "subproblems": value}, status=status), VALUES, STATUS))


@fuzz(20, spoils=st.lists(st.tuples(RESOURCES, st.integers(0, 2), SPOILS), min_size=1, max_size=3))
def test_answers(trial, spoils):
    """Answers in which something is different: a run that is judged, however it ends."""
    script = {}
    for resource, turn, fault in spoils:
        script.setdefault(resource, [None] * 40)[turn:] = [fault] * (40 - turn)
    for path in trial.cert, trial.chain:
        path.write_bytes(trials.OLD)
    waits = {**trials.IN_VAIN, "REQUEST_PATIENCE": 0.5, "WORK_PATIENCE": 0.5}
    trial.run(script, ca={"forgive": True}, waits=waits)


@fuzz(100, fault=SPOILS)
def test_renewal_information(fault):
    """Renewal information that is different."""
    reply = Reply(body={"suggestedWindow": {"start": "2025-01-02T04:00:00Z",
                                            "end": "2025-01-03T04:00:00Z"}})
    fault(None, reply)
    headers = {name: value for name, value in reply.headers.items() if value is not None}
    ca = SimpleNamespace(directory=lambda: inner.answer({"renewalInfo": inner.URL}),
                         ask=lambda *_, **__: inner.answer(reply.body, reply.status, **headers))
    found = inner.script.Certificate(LEAF)
    assert inner.script.is_due(ca, found, found, {}) in (True, False)
