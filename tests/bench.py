#!/usr/bin/env python3
"""Compares letsacme.py with other ACME clients: time, memory, requests, connections.

Each run has a CA of its own (Pebble, with a DNS server), new names and a new account. nginx serves
the challenge files, and a proxy before the CA adds the round trip that a CA on the Internet is
away. The clients take turns, so that what else the machine does befalls all alike. Keys and CSRs
are made before the clock starts, and a run counts only if its certificate is for all the names.

    python3 tests/bench.py                          # some minutes
    python3 tests/bench.py --names 1,10,100 --rtt 0,100 --slow --idle --repeats 1   # half an hour
    python3 tests/bench.py --clients letsacme,certbot,lego --idle   # also: nothing is due

What it needs is fetched into the folder .tools: Pebble, nginx and lego from Debian, acme-tiny and
certbot from PyPI. All clients have an RSA account key of 2048 bits and otherwise their defaults.
letsacme and acme-tiny make their own check of the challenge files, which the others do not have;
certbot cannot be given an account key and makes one.
"""
import argparse
import asyncio
import contextlib
import importlib.metadata
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

try:
    import pki
    import servers
    import support
except ImportError:  # its libraries are missing: main() starts again where they are
    support = None

TESTS = Path(__file__).resolve().parent
TOOLS = Path(os.environ.get("LETSACME_TOOLS") or TESTS.parent / ".tools").resolve()
VENV = TOOLS / "bench-venv"
PYTHON = VENV / "bin" / "python"

# A process inherits the memory peak of the one that started it, so a small one starts the clients.
# It prints status, wall seconds, CPU seconds and peak memory in KiB of the command argv[2:] with
# its children, whose output goes to the file argv[1].
STOPWATCH = """
import os, sys, time
start = time.monotonic()
child = os.fork()
if not child:
    os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), 1)
    os.execvp(sys.argv[2], sys.argv[2:])
status, usage = os.wait4(child, 0)[1:]
print(status, time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""
FIGURES = ("wall", "cpu", "memory", "requests", "connections")


class Failed(Exception):
    """A run that yields no figures."""


# The clients: each function gives a command, and the file that will hold the certificate

def letsacme(job):
    """The script of this project."""
    more = ["--renew", "--fullchain-file", job.folder / "fullchain.pem"] if job.idle else []
    return [PYTHON, support.SCRIPT, "--account-key", job.account_key, "--csr", job.csr,
            "--acme-dir", job.acme_dir, "--ca", job.directory,
            "--check-port", job.http_port, *more], more[-1] if more else job.output


def acme_tiny(job):
    """Run as a file, as its README says."""
    [script] = VENV.glob("lib/*/*/acme_tiny.py")
    return [PYTHON, script, "--account-key", job.account_key, "--csr", job.csr,
            "--acme-dir", job.acme_dir, "--directory-url", job.directory,
            "--check-port", job.http_port], job.output


def certbot(job):
    """All of its folders and files are inside the run's folder; it renews no CSR, only names."""
    chain = job.folder / "fullchain.pem"
    wanted = ["certonly", "--csr", job.csr, "--fullchain-path", chain,
              "--cert-path", job.folder / "cert.pem", "--chain-path", job.folder / "chain.pem"]
    if job.idle:
        chain = job.folder / "config" / "live" / job.names[0] / "fullchain.pem"
        wanted = (["renew", "--no-random-sleep-on-renew"] if chain.exists()
                  else ["certonly", "-d", ",".join(job.names)])
    return [VENV / "bin" / "certbot", *wanted, "--non-interactive", "--agree-tos",
            "--register-unsafely-without-email", "--server", job.directory,
            "--webroot", "--webroot-path", job.webroot,
            "--config-dir", job.folder / "config", "--work-dir", job.folder / "work",
            "--logs-dir", job.folder / "logs"], chain


def lego(job):
    """It finds the account key where it would have put its own."""
    email = "bench@letsacme.example"
    server = job.directory.split("/")[2].replace(":", "_")
    keys = job.folder / "accounts" / server / email / "keys"
    keys.mkdir(parents=True, exist_ok=True)
    shutil.copy(job.account_key, keys / (email + ".key"))
    chain = job.folder / "certificates" / (job.names[0] + ".crt")
    return [support.tool("lego"), "--accept-tos", "--email", email, "--server", job.directory,
            "--path", job.folder, "--csr", job.csr, "--http", "--http.webroot", job.webroot,
            *(["renew", "--no-random-sleep"] if chain.exists() else ["run"])], chain


CLIENTS = {"letsacme": letsacme, "acme-tiny": acme_tiny, "certbot": certbot, "lego": lego}
NOTHING_DUE = {"letsacme": 3}  # the exit status; that of the others is 0


# What is needed

def say(text):
    """Tells how far things are."""
    print(text, file=sys.stderr, flush=True)


def call(*command):
    """Runs a command that must work; returns its output."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit("%s failed:\n%s" % (" ".join(map(str, command)), done.stdout))
    return done.stdout


def prepare():
    """Fetches servers and clients, unless they are there already."""
    say("Looking for the tools in %s" % TOOLS)
    call("sh", TESTS / "packages.sh", TOOLS, "forky", "pebble")
    call("sh", TESTS / "packages.sh", TOOLS, "forky", "lego")
    call("sh", TESTS / "packages.sh", TOOLS, "here", "nginx", "libnss-wrapper")
    if not (VENV / "ready").exists():
        call(sys.executable, "-m", "venv", VENV)
        call(PYTHON, "-m", "pip", "install", "acme-tiny", "certbot", "cryptography", "trustme")
        (VENV / "ready").touch()


def versions():
    """What is compared, and on what it ran."""
    return {"letsacme": call(PYTHON, support.SCRIPT, "--version").split()[-1],
            "acme-tiny": importlib.metadata.version("acme-tiny"),
            "certbot": importlib.metadata.version("certbot"),
            "lego": call(support.tool("lego"), "--version").split()[2],
            "python": sys.version.split()[0], "openssl": support.openssl_version().split()[1]}


# One run

def new_job(folder, count, nginx, idle):
    """Account key and CSR for new names, and a web root that leads to nginx's challenge files."""
    names = [support.fresh_name("alias") for _ in range(count)]
    job = SimpleNamespace(folder=folder, names=names, output=folder / "output",
                          log=folder / "log", hosts=folder / "hosts", webroot=folder / "www",
                          http_port=nginx.port, acme_dir=nginx.challenges, idle=idle, port=0)
    job.key = pki.write_key(folder / "domain.key", "p256")
    job.account_key = pki.write_key(folder / "account.key", "rsa2048")
    job.csr = pki.write_csr(folder / "csr", names, job.key)
    job.hosts.write_text("".join("127.0.0.1 %s\n" % name for name in names))
    (job.webroot / ".well-known").mkdir(parents=True)
    (job.webroot / ".well-known" / "acme-challenge").symlink_to(nginx.challenges)
    return job


def environment(job):
    """What a client finds in its environment: the CA's root, and names that lead to nginx."""
    trust = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "LEGO_CA_CERTIFICATES"),
                          str(job.ca.ca_file))
    return dict(trust, PATH=os.environ["PATH"], HOME=str(job.folder), LANG="C.UTF-8",
                LD_PRELOAD=support.library("libnss_wrapper.so"), NSS_WRAPPER_HOSTS=str(job.hosts))


async def carry(reader, writer, delay):
    """Hands bytes on in one direction, each of them later by the delay."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(1 << 16):
            loop.call_later(delay, writer.write, chunk)
    loop.call_later(delay, writer.close)


@contextlib.asynccontextmanager
async def proxy(job, rtt):
    """A proxy that puts a round trip before a job's CA; yields a list of its connections."""
    connections = []

    async def relay(client_reader, client_writer):
        connections.append(asyncio.current_task())
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(rtt)  # the opening of the TCP connection
            reader, writer = await asyncio.open_connection("127.0.0.1", job.ca.port)
            await asyncio.gather(carry(client_reader, writer, rtt / 2),
                                 carry(reader, client_writer, rtt / 2))

    # The same port for a job's second run: lego keeps an account for that port alone.
    async with await asyncio.start_server(relay, "127.0.0.1", job.port) as server:
        job.port = server.sockets[0].getsockname()[1]
        yield connections


async def time_client(client, job, rtt, limit):
    """Runs a client; returns its figures."""
    before = len(job.ca.requests)
    async with proxy(job, rtt) as connections:
        job.directory = "https://127.0.0.1:%d/dir" % job.port
        command, job.certificate = CLIENTS[client](job)
        with job.log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                PYTHON, "-I", "-S", "-c", STOPWATCH, job.output, *map(str, command),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd=job.folder,
                env=environment(job), start_new_session=True)
        try:
            words = await asyncio.wait_for(process.stdout.read(), limit)
        except asyncio.TimeoutError:
            raise Failed("took more than %d s" % limit) from None
        finally:
            support.end(process)
            await process.wait()
        status, wall, cpu, memory = words.split()
    status = os.waitstatus_to_exitcode(int(status))
    if status not in (0, NOTHING_DUE.get(client)):
        raise Failed("exit status %d: %s" % (
            status, " ".join(job.log.read_text().split())[-300:]))
    return dict(zip(FIGURES, (float(wall), float(cpu), int(memory) / 1024,
                              len(job.ca.requests) - before, len(connections))))


def run(client, cell, limit):
    """Gets one certificate and checks it; returns the figures of that, or of a second run."""
    names, rtt, kind = cell
    pace = {"PEBBLE_VA_NOSLEEP": "0", "PEBBLE_VA_SLEEPTIME": "5"} if kind == "slow" else {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # as root, nginx's workers are another user
        (folder / "nginx").mkdir()
        nginx = servers.Nginx(folder / "nginx")
        stack.callback(nginx.stop)
        ca = servers.Pebble(folder, nginx.port, PEBBLE_WFE_NONCEREJECT=0, keyAlgorithm="ecdsa",
                            retryAfter={"authz": 0, "order": 0}, **pace)
        stack.callback(ca.stop)
        job = new_job(folder, names, nginx, kind == "idle")
        job.ca = ca
        figures = asyncio.run(time_client(client, job, rtt / 1000, limit))
        try:
            issued = job.certificate.read_text()
            if not job.idle:  # then certbot has made a key of its own
                pki.check_chain(issued, job.names, job.key, ca.root)
        except (AssertionError, OSError, ValueError, subprocess.SubprocessError) as error:
            raise Failed("no certificate for the names: %r" % error) from None
        if job.idle:
            figures = asyncio.run(time_client(client, job, rtt / 1000, limit))
            if job.certificate.read_text() != issued:
                raise Failed("it was not due, but renewed")
    return figures


# All runs

def measure(cell, clients, repeats, limit):
    """Lets the clients take turns in a cell of the table; returns a row for each of them."""
    names, rtt, kind = cell
    rows = {client: {"names": names, "rtt": rtt, "kind": kind, "client": client, "runs": [],
                     "failure": None} for client in clients}
    for turn, (client, row) in itertools.product(range(repeats), rows.items()):
        if row["failure"]:
            continue
        try:
            row["runs"].append(run(client, cell, limit))
            outcome = "%.2f s" % row["runs"][-1]["wall"]
        except Failed as failure:
            outcome = row["failure"] = str(failure)
        say("names %d, round trip %d ms, %s, %s, run %d of %d: %s" % (
            *cell, client, turn + 1, repeats, outcome))
    for row in rows.values():
        if not row["failure"]:
            row.update((figure, statistics.median(each[figure] for each in row["runs"]))
                       for figure in FIGURES)
    return list(rows.values())


def show(result):
    """Prints the table."""
    print(", ".join("%s %s" % each for each in result["versions"].items()))
    print("Medians of %d; wall and CPU time in seconds, peak memory in MB" % result["repeats"])
    print("names  rtt ms  kind   client         wall    cpu  memory  requests  connections")
    for row in result["rows"]:
        start = "%5d  %6d  %-5s  %-10s" % (row["names"], row["rtt"], row["kind"], row["client"])
        print(start, row["failure"] or " %7.2f %6.2f  %6.1f  %8d  %11d" % tuple(
            row[figure] for figure in FIGURES))


def arguments():
    """Reads the command line."""
    def numbers(text):
        return [int(each) for each in text.split(",")]

    def clients(text):
        unknown = set(text.split(",")) - set(CLIENTS)
        if unknown:
            raise argparse.ArgumentTypeError("choose from " + ",".join(CLIENTS))
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--clients", type=clients, default=",".join(CLIENTS), metavar="A,B",
                        help="who takes part")
    parser.add_argument("--names", type=numbers, default="1,10", metavar="N,M",
                        help="numbers of names in a certificate")
    parser.add_argument("--rtt", type=numbers, default="100", metavar="MS,MS",
                        help="round trips to the CA, in milliseconds")
    parser.add_argument("--slow", action="store_true", help="also: the greatest number of names, "
                        "no round trip, and a CA that takes 0 to 4 seconds to validate a name")
    parser.add_argument("--idle", action="store_true", help="also: the smallest number of names, "
                        "the longest round trip, and a certificate that is not due for renewal "
                        "(acme-tiny would renew it)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each client in each cell")
    parser.add_argument("--limit", type=int, default=900, help="seconds that a run may take")
    parser.add_argument("--json", metavar="FILE", help="write all figures there, too")
    return parser.parse_args()


def main():
    """Measures, and prints the table; fails if a client failed."""
    options = arguments()
    if Path(sys.prefix).resolve() != VENV:
        prepare()
        os.environ["LETSACME_TOOLS"] = str(TOOLS)
        os.execv(PYTHON, [PYTHON, __file__] + sys.argv[1:])
    cells = [(*cell, "quick") for cell in itertools.product(options.names, options.rtt)]
    if options.slow:
        cells.append((max(options.names), 0, "slow"))
    if options.idle:
        cells.append((min(options.names), max(options.rtt), "idle"))
    result = {"versions": versions(), "repeats": options.repeats, "rows": []}
    for cell in cells:
        clients = [each for each in options.clients if each != "acme-tiny" or cell[2] != "idle"]
        result["rows"] += measure(cell, clients, options.repeats, options.limit)
        if options.json:  # after each cell: a benchmark that is stopped has not been in vain
            Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    return any(row["failure"] for row in result["rows"])


if __name__ == "__main__":
    sys.exit(main())
