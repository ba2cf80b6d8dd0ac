"""What lies between: the site that serves the challenge files, and the name server."""
from types import SimpleNamespace

import faults
import pytest
import trials
from faults import wire
from trials import WELL_KNOWN, page
from werkzeug import Response

core = pytest.mark.core


def raw(deliver):
    """An answer sent by a function of faults.py."""
    def answer(request, right):
        sock = request.environ["werkzeug.socket"]
        deliver(SimpleNamespace(connection=sock, wfile=sock.makefile("wb", 0)), b"")
        raise ConnectionResetError
    return answer


def to(url):
    """A redirect, which werkzeug is not to mend."""
    return raw(wire(b"HTTP/1.1 302 Found\r\nLocation: %s\r\n\r\n" % url))


@core
def test_the_site_is_good(trial, site):
    """A redirect, or a line end more, does no harm; a proxy is not asked, as by the CA."""
    ca = site(lambda request, content: Response(content + b"\r\n") if request.args else
              Response("", 302, {"Location": request.path + "?moved"}))
    trial.works(ca=ca, env={"http_proxy": "http://127.0.0.1:1"})


CUT, ELSE = "cut short, or not as it should be", "something else is there: "
# What one of many names answers, and what is said of it.
SITES = {
    "part": (lambda request, content: Response(content[:-1]), ELSE),
    "binary": (page(bytes(range(256))), ELSE), "flood": (raw(faults.flood()), ELSE),
    "loop": (lambda request, content: Response("", 302, {"Location": request.path}),
             "HTTP status 302"),
    "to-file": (to(b"file:///etc/hostname"), "HTTP status 302"),
    "to-closed": (to(b"http://127.0.0.1:1/place"), "after a redirect to http://127.0.0.1:1/place"),
    "to-ftp": (to(b"ftp://127.0.0.1:1/x"), "after a redirect to ftp://127.0.0.1:1/x"),
    "to-nonsense": (to(b"http://[::1"), CUT), "reset": (raw(faults.hang_up), "reset"),
    "to-escapes": (to(b"http://127.0.0.1:1/\x1b[31m"), ""),
    "closed": (raw(faults.close_instead), ""),
    "no-http": (raw(wire(b"\x1b[31m\0\xff\r\n\r\n")), CUT),
    "escapes": (raw(wire(b"HTTP/1.1 404 \x1b[31m\x9b\r\n\r\n\x1b[31m")), "HTTP status 404"),
    "lost": (None, "ame"),              # which has no address
}


@core
def test_the_site_is_wrong(trial, site, csr):
    """All are told, each with a reason; the files are gone again, the CA was not asked to look."""
    *trial.names, lost = [name + ".example" for name in SITES]
    ca = site(lambda request, content: SITES[request.host.split(".")[0]][0](request, content))
    trial.options["--csr"] = csr([*trial.names, lost], key=trial.key)
    result = trial.fails(ca=ca)
    assert result.ca.count("challenge") == 0
    lines = trials.refusals(result.err)
    assert len(lines) == len(SITES)
    for name, (_, said) in SITES.items():
        [line] = [line for line in lines if "couldn't download http://%s." % name in line]
        head, _, reason = line.partition(WELL_KNOWN)
        assert head.startswith("E: Wrote file to %s/" % trial.challenges) and said in reason, line


@pytest.mark.parametrize("deliver, waits, said", [
    (faults.drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"), {"LONGEST_RUN": 1.5}, "an hour"),
    (faults.stay_silent, {"ANSWER_TIMEOUT": 0.5}, "timed out")], ids=["drips", "is silent"])
def test_the_site_never_ends(trial, site, deliver, waits, said):
    """The bound of the whole run ends that, if nothing else does."""
    trial.fails(None, said, waits=waits, ca=site(raw(deliver)))


def test_the_ca_has_no_address(trial):
    """That is told when patience is at its end."""
    before = trials.snapshot(trial.site)
    result = trial.letsacme(*trial.arguments(), "--ca", "https://ca.invalid/directory",
                            constants={**trials.WAITS, **trials.IN_VAIN})
    assert "https://ca.invalid/directory: " in trials.error_of(result)
    assert result.err.count("W: ") == 1
    trial.judge(result.err, before)
