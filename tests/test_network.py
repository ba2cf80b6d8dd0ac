"""The network fails: answers are lost, late, cut, endless or no HTTP; TLS cannot be had."""
import contextlib
import socket

import faults
import pki
import pytest
from faults import delivered, problem, replace, wire
from support import cases

core = pytest.mark.core
RESOURCES = ["directory", "newNonce", "newAccount", "newOrder", "authz", "challenge", "order",
             "finalize", "certificate"]
IMPATIENT = {"ANSWER_TIMEOUT": 0.3}


LOST = {
    "reset-after-it-was-done": delivered(faults.hang_up),
    "reset-before": delivered(faults.hang_up, heard=False),
    "closed-before": delivered(faults.close_instead, heard=False),
    "closed-after-the-answer": delivered(faults.close_after),
    "cut-short": delivered(faults.cut_short),
    "no-answer": delivered(faults.stay_silent),
    "no-answer-before": delivered(faults.stay_silent, heard=False),
    "500": problem("serverInternal", 500),
    "500-though-it-was-done": problem("serverInternal", 500, heard=True),
    "502-html": replace(b"<html>Bad gateway</html>", "text/html", 502),
}


@pytest.mark.parametrize("fault", cases(LOST))
def test_one_answer_of_each_kind_is_lost(trial, fault):
    """The certificate is had though one answer to each request is lost, done or not."""
    trial.works({resource: [fault] for resource in RESOURCES}, waits=IMPATIENT)


@pytest.mark.parametrize("fault", ["reset-after-it-was-done", "cut-short", "500"])
@pytest.mark.parametrize("resource", RESOURCES)
def test_one_answer_is_lost(trial, resource, fault):
    """One lost answer is made up for, whichever it is."""
    trial.works({resource: [LOST[fault]]})


@pytest.mark.parametrize("fault", cases({
    "closed-after-each-answer": delivered(faults.close_after),
    "late": delivered(faults.late(0.1)),
}))
def test_every_answer_is_odd(trial, fault):
    """A connection need not be kept, nor a CA be quick."""
    trial.works({resource: fault for resource in RESOURCES})


@pytest.mark.parametrize("resource, fault", [
    *((resource, "no-answer-before") for resource in RESOURCES), ("directory", "reset-before"),
    ("newOrder", "closed-before"), ("finalize", "500"), ("newNonce", "500")])
def test_every_request_is_lost(trial, resource, fault):
    """A run that cannot succeed ends by itself, names the URL, and asked more than once."""
    result = trial.fails({resource: LOST[fault]}, "https://localhost", waits=IMPATIENT)
    assert result.ca.count(resource) > 1


@pytest.mark.parametrize("resource", ["challenge", "finalize", "certificate"])
@pytest.mark.parametrize("fault", ["cut-short", "no-answer"])
def test_every_answer_is_lost(trial, resource, fault):
    """The same where the CA does what it is asked, but no answer to it ever comes through."""
    result = trial.fails({resource: LOST[fault]}, "/%s/" % resource, waits=IMPATIENT)
    assert result.ca.count(resource) > 1


@core
def test_the_ca_comes_up_later(trial):
    """A CA that is down at first is waited for, and the log says so."""
    result = trial.works(ca={"down": 2})
    assert "W: " in result.err


@core
def test_the_ca_stays_down(trial):
    """Where nothing listens, the error names the CA."""
    trial.fails(None, "localhost", ca={"down": 1000})


@pytest.mark.parametrize("options", cases({
    "another-name": {"tls_name": "other.example"},
    "expired": {"tls_days": (-9, -1)},
    "not-yet-valid": {"tls_days": (1, 9)},
}))
def test_the_tls_certificate_is_wrong(trial, options):
    """A CA with a wrong TLS certificate is not talked to: one connection, no request."""
    result = trial.fails(None, "ertificate", ca=options)
    assert (result.ca.connections, result.ca.requests) == (1, [])


@core
def test_the_tls_certificate_is_not_trusted(trial, tmp_path):
    """An unknown root is final too."""
    other = tmp_path / "other.pem"
    other.write_bytes(pki.pem(pki.Issuer().root))
    result = trial.fails(None, "certificate", env={"SSL_CERT_FILE": str(other)})
    assert (result.ca.connections, result.ca.requests) == (1, [])


def plain(sock):
    """Speak HTTP without TLS."""
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    sock.close()


def mute(sock):
    """Take what comes, say nothing."""
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass
    sock.close()


HANDSHAKES = {"reset": faults.reset, "closed": socket.socket.close, "plain-http": plain,
              "no-answer": mute}


@pytest.mark.parametrize("fault", cases(HANDSHAKES))
def test_the_handshake_fails(trial, fault):
    """Other trouble in the handshake is tried again, until patience ends."""
    trial.works({"connection": [fault, fault]}, waits=IMPATIENT)
    assert trial.fails({"connection": fault}, "localhost", waits=IMPATIENT).ca.connections > 1


@pytest.mark.parametrize("said", cases({
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    "header": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "status-line": (b"H", b"T"),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "100-continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}))
def test_an_answer_drips_for_ever(trial, said):
    """A byte a second never runs into a socket's timeout: the bound of the whole run ends it."""
    fault = delivered(faults.drip(*said))
    assert "newOrder" in trial.fails({"newOrder": fault}, waits={"LONGEST_RUN": 1.5}).ca.requests


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("data", [
    b"", b"\0" * 1000, b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/9.9 200 OK\r\n\r\n{}", b"HTTP/1.1 99999 OK\r\n\r\n{}", b"HTTP/1.1 -1 OK\r\n\r\n{}",
    b"SSH-2.0-OpenSSH_9.9\r\n", OK + b"Content-Length: -1\r\n\r\n{}",
    OK + b"Content-Length: many\r\n\r\n{}",
    OK + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    *(OK + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n{}" for size in (
        b"zz", b"-5", b"fffffffffffffffff")),
    OK + b"X: y\r\n" * 500 + b"\r\n{}", OK + b"X: " + b"y" * 100000 + b"\r\n\r\n{}",
    OK + b": \r\n\xff\xfe\r\n\r\n{}", b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
], ids=lambda data: repr(data)[2:40])
def test_this_is_not_http(trial, data):
    """What no web server should answer is an error that names the URL."""
    trial.fails({"newOrder": delivered(wire(data))}, "/newOrder")
