"""The network fails: answers are lost, late, cut, endless or no HTTP; TLS cannot be had."""
import datetime
import threading
import time
from operator import methodcaller

import faults
import pytest
import trials
from faults import RESOURCES, delivered, problem, replace, wire

core = pytest.mark.core
IMPATIENT = {"ANSWER_TIMEOUT": 0.3, "REQUEST_PATIENCE": 0.8}
# So that each trouble is logged, and what is logged is judged
ALL_TOLD = {"ANSWER_TIMEOUT": 0.3, "FIRST_PAUSE": 0.01, "LONGEST_PAUSE": 0.01}

TROUBLE = problem("serverInternal", 500)
CLOSED = delivered(faults.close_instead, heard=False)
PLAIN = methodcaller("sendall", b"HTTP/1.1 400 Bad Request\r\n\r\n")  # without TLS
CUT, RESET, SILENT = map(delivered, (faults.cut_short, faults.hang_up, faults.stay_silent))


@pytest.mark.parametrize("lost", [
    pytest.param([delivered(faults.hang_up, heard=False), TROUBLE, CLOSED,
                  replace(b"<html>Bad gateway</html>", 502)], id="requests"),
    pytest.param([CUT, RESET], marks=core, id="answers: cut, reset"),
    pytest.param([SILENT, problem("serverInternal", 500, heard=True)], id="answers: none, 500"),
    pytest.param(delivered(faults.close_after), id="connections: closed")])
def test_requests_or_answers_or_connections_are_lost(trial, lost):
    """What gets no good answer is repeated, be it done or not; no connection need be kept."""
    trial.works(dict.fromkeys(RESOURCES, lost), waits=ALL_TOLD)


@pytest.mark.parametrize("resource, fault", [
    ("directory", SILENT), ("newNonce", TROUBLE), ("newOrder", CLOSED), ("certificate", CUT)])
def test_every_answer_is_lost(trial, resource, fault):
    """A run that cannot succeed ends by itself, names the URL, and asked more than once."""
    result = trial.fails({resource: fault}, "https://localhost", "/" + resource, waits=IMPATIENT)
    assert result.ca.count(resource) > 1


def test_the_ca_comes_up_later(trial):
    """A CA that is down at first is waited for, and the log says so."""
    with trial.serve(down=True) as ca:
        threading.Timer(1, ca.start).start()
        result = trial.letsacme(*trial.arguments(), ca=ca, constants=trials.WAITS)
    assert result.status == 0 and "Connection refused; trying again" in result.err


@pytest.mark.parametrize("options", [
    pytest.param({"ca": {"tls_name": "other.example"}}, marks=core, id="another-name"),
    pytest.param({"ca": {"tls_end": datetime.datetime(2020, 1, 1)}}, id="expired"),
    pytest.param({"env": {"SSL_CERT_FILE": None}}, marks=core, id="of-a-private-CA")])
def test_the_tls_certificate_is_wrong(trial, options):
    """A CA with a wrong TLS certificate is not talked to: one connection, no request."""
    ca = trial.fails(None, "certificate verify failed", "SSL_CERT_FILE", **options).ca
    assert (ca.connections, ca.requests) == (1, [])


@core
def test_handshakes_fail(trial):
    """Other trouble in the handshake is tried again, until patience ends."""
    trial.works({"connection": [faults.reset, faults.reset, lambda sock: sock.close(), PLAIN,
                                lambda sock: time.sleep(1)]}, waits=ALL_TOLD)
    assert trial.fails({"connection": PLAIN}, "localhost", waits=IMPATIENT).ca.connections > 1


@pytest.mark.parametrize("head, endless", [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    (b"", b"HTTP/1.1 100 Continue\r\n\r\n")], ids=["body", "100-continue"])
def test_an_answer_drips_for_ever(trial, head, endless):
    """A byte a second never runs into a socket's timeout: the bound of the whole run ends it."""
    fault = delivered(faults.drip(head, endless))
    assert "newOrder" in trial.fails({"newOrder": fault}, waits={"LONGEST_RUN": 1.5}).ca.requests


OK, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@core
def test_this_is_not_http(trial):
    """What no web server should answer is trouble that may pass, told in words."""
    result = trial.works({"newOrder": [delivered(wire(data)) for data in (
        b"\0" * 1000, b"SSH-2.0-OpenSSH_9.9\r\n", b"\x1b[31m\x9b\r\n\r\n", b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n", b"HTTP/1.1 99999 OK\r\n\r\n{}", b"HTTP/1.1 -1 OK\r\n\r\n{}",
        b"HTTP/9.9 200 OK\r\n\r\n{}", OK + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
        CHUNKED + b"zz\r\n{}", CHUNKED + b"fffffffffffffffff\r\n{}",
        OK + b"X: y\r\n" * 500 + b"\r\n{}", OK + b"X: " + b"y" * 100000 + b"\r\n\r\n{}")]},
        waits=ALL_TOLD)
    assert result.err.count("cut short, or not as it should be") > 5


@pytest.mark.parametrize("data", [
    OK + b"Content-Length: many\r\n\r\n{}", OK + b": \r\n\xff\xfe\r\n\r\n{}", CHUNKED + b"-5\r\n{}",
    b"HTTP/1.1 101 Switching \x1b[31m\r\n\r\n"], ids=["length", "header", "chunks", "status"])
def test_this_is_no_answer(trial, data):
    """What some Pythons take for an answer, and others do not, is an error that names the URL."""
    trial.fails({"newOrder": delivered(wire(data))}, "/newOrder", waits={"REQUEST_PATIENCE": 0.2})
