"""What lies between: the site that serves the challenge files, the name server, the clock."""
import sys

import faults
import pytest
import trials
from faults import wire
from support import cases, tool
from trials import WELL_KNOWN, page
from werkzeug import Response

core = pytest.mark.core


def raw(deliver):
    """An answer sent by a function of faults.py."""
    class Handler:
        """As much of a handler as those functions need."""
        close_connection = False

    def answer(request, right):
        """Send it, and leave nothing to werkzeug."""
        Handler.connection = request.environ["werkzeug.socket"]
        Handler.wfile = Handler.connection.makefile("wb", 0)
        deliver(Handler, b"")
        raise ConnectionResetError
    return answer


@core
@pytest.mark.parametrize("answer", cases({
    "plain": page, "line end": lambda request, content: Response(content + b"\r\n"),
    "redirect": lambda request, content: Response(content) if "moved" in request.args else
    Response("", 302, {"Location": request.path + "?moved"})}))
def test_the_site_is_good(trial, site, answer):
    """This is how it should be; a line end more, or a redirect, does no harm."""
    trial.works(ca=site() if answer is page else site(answer))


SITES = {
    "404": page(b"", 404), "500": page(b"", 500), "another-page": page(b"<html>Hello</html>"),
    "nothing": page(b""), "cut": lambda request, content: Response(content[:-1]),
    "binary": page(bytes(range(256))), "authentication": page(b"", 401),
    "loop": lambda request, content: Response("", 302, {"Location": request.path}),
    **{"to " + url: page(b"", 302, Location=url) for url in (
        "file:///etc/hostname", "ftp://127.0.0.1:1/x", "http://127.0.0.1:1/", "http://[::1")},
    "reset": raw(faults.hang_up), "closed": raw(faults.close_instead),
    "flood": raw(faults.flood()), "no-http": raw(wire(b"\x1b[31m\0\xff\r\n\r\n")),
    "escapes": raw(wire(b"HTTP/1.1 404 \x1b[31m\x9b\r\n\r\n\x1b[31m")),
    "to-escapes": raw(wire(b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\x1b[31m\r\n\r\n")),
}


@pytest.mark.parametrize("answer", cases(SITES))
def test_the_site_is_wrong(trial, site, answer):
    """The file is gone again, and the CA has not been asked to look at it."""
    result = trial.fails(None, "Wrote file to %s/" % trial.challenges, "couldn't download http://",
                         WELL_KNOWN, ca=site(answer))
    assert len(trials.refusals(result.err)) == len(trial.names)
    assert result.ca.count("challenge") == 0


def test_the_redirect_is_named(trial, site):
    """Where a redirect leads astray, the last URL is told."""
    target = "http://127.0.0.1:1/another/place"
    trial.fails(None, target, ca=site(page(b"", 302, Location=target)))


@pytest.mark.parametrize("deliver", cases({
    "drips": faults.drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"), "is silent": faults.stay_silent}))
def test_the_site_never_ends(trial, site, deliver):
    """The bound of the whole run ends that, if nothing else does."""
    trial.fails(None, waits={"LONGEST_RUN": 1.5}, ca=site(raw(deliver)))


@core
def test_the_site_has_no_address(trial):
    """Such a name is told from one where nobody listens, by what the system says."""
    trial.letsacme.add_host("site.example")
    result = trial.fails(None, "couldn't download", "refused", args={"--disable-check": None},
                         ca={"http_port": 1})
    assert len({line.rpartition(": ")[2] for line in trials.refusals(result.err)}) == 2


# ---- The name server

# Put before a command: in a network of its own, the name server is there but never answers.
SILENT_DNS = """
import socket, subprocess, sys
conf, asked, ip, *command = sys.argv[1:]
subprocess.run([ip, "link", "set", "lo", "up"], check=True)
subprocess.run(["mount", "--bind", conf, "/etc/resolv.conf"], check=True)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
status = subprocess.call(command)
server.setblocking(False)
with open(asked, "wb") as questions:
    questions.write(server.recv(1000))
sys.exit(status)
"""


@core
def test_the_name_server_is_silent(trial, tmp_path):
    """The run ends after the resolver has given up as often as the bound allows."""
    conf, asked = tmp_path / "resolv.conf", tmp_path / "asked"
    conf.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    wrapper = [*trials.OWN_MOUNTS, "-n", sys.executable, "-c", SILENT_DNS, conf, asked, tool("ip")]
    before = trials.snapshot(trial.site)
    result = trial.letsacme(*trial.arguments(), "--ca", "https://silent.example/directory",
                            constants={**trials.WAITS, **trials.IN_VAIN}, wrapper=wrapper)
    assert result.status == 1 and "silent.example" in result.err
    assert b"silent" in asked.read_bytes()
    trial.judge(result.err, before)


# ---- The clock

@pytest.mark.parametrize("shift", [pytest.param("-10y", marks=core), "+10y"])
def test_the_clock_is_wrong(trial, shift):
    """The CA's own certificate seems to be of another time: that is final."""
    result = trial.fails(None, "certificate", clock=shift)
    assert result.ca.connections == 1
