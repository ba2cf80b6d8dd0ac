#!/usr/bin/env python3
"""Compares letsacme.py with other ACME clients: time, memory, requests, connections.

Each run has a CA of its own (Pebble, with a DNS server), new names and a new account. nginx serves
the challenge files, and a proxy before the CA adds the round trip that a CA on the Internet is
away. The clients take turns, so that what else the machine does befalls all alike. Keys and CSRs
are made before the clock starts, and a run counts only if its certificate is for all the names.

    python3 tests/bench.py                          # some minutes
    python3 tests/bench.py --names 1,10,100 --rtt 0,100 --slow --idle --repeats 1   # half an hour

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
# It prints exit status, wall seconds, CPU seconds and peak memory in MB of the command argv[2:]
# with its children, whose output goes to the file argv[1].
STOPWATCH = """
import resource, subprocess, sys, time
start = time.monotonic()
status = subprocess.call(sys.argv[2:], stdout=open(sys.argv[1], "wb"))
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(status, time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
"""


# The clients: each function gives a command, and the file that will hold the certificate

def letsacme(job):
    """The script of this project."""
    chain = job.folder / "fullchain.pem"
    more = ["--renew", "--fullchain-file", chain] if job.idle else []
    return ([PYTHON, support.SCRIPT, *job.options, "--ca", job.directory, *more],
            chain if job.idle else job.output)


def acme_tiny(job):
    """Run as a file, as its README says."""
    [script] = VENV.glob("lib/*/*/acme_tiny.py")
    return [PYTHON, script, *job.options, "--directory-url", job.directory], job.output


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


def prepare():
    """Fetches servers and clients, unless they are there already."""
    for words in (["forky", "pebble"], ["forky", "lego"], ["here", "nginx", "libnss-wrapper"]):
        subprocess.run(["sh", TESTS / "packages.sh", TOOLS, *words], check=True)
    if not (VENV / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([PYTHON, "-m", "pip", "--quiet", "install", "acme-tiny", "certbot",
                        "cryptography", "jwcrypto", "trustme"], check=True)
        (VENV / "installed").touch()


def new_job(folder, count, nginx, ca, idle):
    """Account key and CSR for new names, a web root that leads to nginx's challenge files, and an
    environment in which the CA is trusted and the names lead to nginx."""
    job = SimpleNamespace(folder=folder, ca=ca, idle=idle, port=0, webroot=folder / "www",
                          output=folder / "output", log=folder / "log",
                          names=[support.fresh_name("alias") for _ in range(count)])
    job.key = pki.write_key(folder / "domain.key", "p256")
    job.account_key = pki.write_key(folder / "account.key", "rsa2048")
    job.csr = pki.write_csr(folder / "csr", job.names, job.key)
    (job.webroot / ".well-known").mkdir(parents=True)
    (job.webroot / ".well-known/acme-challenge").symlink_to(nginx.challenges)
    job.options = ["--account-key", job.account_key, "--csr", job.csr,
                   "--acme-dir", nginx.challenges, "--check-port", nginx.port]
    hosts = folder / "hosts"
    hosts.write_text("".join("127.0.0.1 %s\n" % name for name in job.names))
    job.env = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "LEGO_CA_CERTIFICATES"),
                            str(ca.ca_file))
    job.env.update(PATH=os.environ["PATH"], HOME=str(folder), LANG="C.UTF-8",
                   LD_PRELOAD=support.library("libnss_wrapper.so"), NSS_WRAPPER_HOSTS=str(hosts))
    return job


@contextlib.asynccontextmanager
async def proxy(job, rtt):
    """A proxy that puts a round trip before a job's CA; yields a list of its connections."""
    connections, loop = [], asyncio.get_running_loop()

    async def carry(reader, writer):
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                loop.call_later(rtt / 2, writer.write, chunk)
        loop.call_later(rtt / 2, writer.close)

    async def relay(reader, writer):
        connections.append(asyncio.current_task())
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(rtt)  # the opening of the TCP connection
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", job.ca.port)
            await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))

    # The same port for a job's second run: lego keeps an account for that port alone.
    async with await asyncio.start_server(relay, "127.0.0.1", job.port) as server:
        job.port = server.sockets[0].getsockname()[1]
        yield connections


async def time_client(client, job, rtt):
    """Runs a client; returns its figures: see main()."""
    before = len(job.ca.requests)
    async with proxy(job, rtt) as connections:
        job.directory = "https://127.0.0.1:%d/dir" % job.port
        command, job.certificate = CLIENTS[client](job)
        with job.log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                PYTHON, "-I", "-S", "-c", STOPWATCH, job.output, *map(str, command),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd=job.folder,
                env=job.env, start_new_session=True)
        try:
            words = await asyncio.wait_for(process.stdout.read(), 900)
        finally:
            support.end(process)
            await process.wait()
        status, *figures = map(float, words.split())
    # letsacme says so if nothing was due.
    assert status == 0 or (client, status) == ("letsacme", 3), (status, job.log.read_text()[-300:])
    return *figures, len(job.ca.requests) - before, len(connections)


def run(client, names, rtt, kind):
    """Gets one certificate and checks it; returns the figures of that, or of a second run."""
    pace = {"PEBBLE_VA_NOSLEEP": "0", "PEBBLE_VA_SLEEPTIME": "5"} if kind == "slow" else {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # as root, nginx's workers are another user
        (folder / "nginx").mkdir()
        nginx = servers.Nginx(folder / "nginx")
        stack.callback(nginx.stop)
        ca = servers.Pebble(folder, nginx.port, PEBBLE_WFE_NONCEREJECT=0, keyAlgorithm="ecdsa",
                            **pace)
        stack.callback(ca.stop)
        job = new_job(folder, names, nginx, ca, kind == "idle")
        figures = asyncio.run(time_client(client, job, rtt / 1000))
        issued = job.certificate.read_text()
        if job.idle:  # the certificate may have a key of certbot's own
            figures = asyncio.run(time_client(client, job, rtt / 1000))
            assert job.certificate.read_text() == issued, "it was not due, but renewed"
        else:
            pki.check_chain(issued, job.names, job.key, ca.root)
    return figures


def measure(cell, clients, repeats):
    """Lets the clients take turns in a cell of the table, and prints its rows."""
    runs = {client: [] for client in clients}
    for turn, client in itertools.product(range(repeats), clients):
        runs[client].append(run(client, *cell))
        print(*cell, client, turn + 1, "done", file=sys.stderr)
    for client in clients:
        medians = map(statistics.median, zip(*runs[client]))
        print("%5d  %6d  %-5s  %-10s  %7.2f %6.2f  %6.1f  %8d  %11d" % (*cell, client, *medians))


def main():
    """Measures, and prints the table."""
    def numbers(text):
        return [int(each) for each in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--names", type=numbers, default="1,10", help="in a certificate")
    parser.add_argument("--rtt", type=numbers, default="100", help="round trips, in milliseconds")
    parser.add_argument("--slow", action="store_true", help="also: the greatest number of names, "
                        "no round trip, and a CA that takes 0 to 4 seconds to validate a name")
    parser.add_argument("--idle", action="store_true", help="also: the smallest number of names, "
                        "the longest round trip, and nothing is due (acme-tiny would renew it)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each client in each cell")
    options = parser.parse_args()
    if Path(sys.prefix).resolve() != VENV:
        prepare()
        os.environ["LETSACME_TOOLS"] = str(TOOLS)
        os.execv(PYTHON, [PYTHON, "-u", __file__] + sys.argv[1:])
    cells = [(*cell, "quick") for cell in itertools.product(options.names, options.rtt)]
    if options.slow:
        cells.append((max(options.names), 0, "slow"))
    if options.idle:
        cells.append((min(options.names), max(options.rtt), "idle"))
    print(*(each + " " + importlib.metadata.version(each) for each in ("acme-tiny", "certbot")),
          "Python " + sys.version.split()[0], support.openssl_version(),
          subprocess.check_output([support.tool("lego"), "--version"], text=True).strip(), sep=", ")
    print("Medians of %d; wall and CPU time in seconds, peak memory in MB" % options.repeats)
    print("names  rtt ms  kind   client         wall    cpu  memory  requests  connections")
    for cell in cells:
        clients = [each for each in options.clients if each != "acme-tiny" or cell[2] != "idle"]
        measure(cell, clients, options.repeats)


if __name__ == "__main__":
    main()
