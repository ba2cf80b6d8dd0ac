"""What README.md shows works: its server blocks, commands, units, recipes and remedies."""
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

import pytest
import support
from pki import check_chain
from servers import NGINX_HEAD, Pebble, Server, free_port
from trials import OWN_MOUNTS

FETCH = "letsacme cannot fetch the file"  # a remedy of README.md
README = (support.TOP / "README.md").read_text(encoding="utf-8")
# Set up like any server, save that it is not alone on the machine; BLOCK is what README.md shows.
NGINX = NGINX_HEAD.format(folder="FOLDER") + "server_names_hash_bucket_size 128;\nBLOCK\n}\n"
NGINX_SERVER = "server { listen 127.0.0.1:PORT; root FOLDER/www/example.org; BLOCK }"
APACHE = """
ServerRoot FOLDER
ServerName localhost
PidFile FOLDER/apache.pid
ErrorLog FOLDER/error.log
DefaultRuntimeDir FOLDER
Listen 127.0.0.1:PORT
MODULES
DocumentRoot FOLDER/www/example.org
<Directory FOLDER/www>
    AllowOverride All
</Directory>
BLOCK
"""
APACHE_LANDING = """
<VirtualHost *:PORT>
    ServerName %(name)s
    DocumentRoot FOLDER/www/%(name)s
</VirtualHost>
"""
CADDY = "{\n    admin off\n    default_bind 127.0.0.1\n}\nBLOCK"
LIGHTTPD = """
server.port = PORT
server.bind = "127.0.0.1"
server.document-root = "FOLDER/www/example.org"
BLOCK
"""


def blocks():
    """The heading, language and text of each fenced block."""
    found, heading = [], ""
    for title, language, text in re.findall(r"^#+ (.*)|^```(\w*)\n((?:.*\n)*?)```$", README, re.M):
        heading = title or heading
        if not title:
            found.append((heading, language, text))
    return found


def block(language, mark):
    """The text of the one block of a language that has a mark in it."""
    [text] = [text for _, its, text in blocks() if its == language and mark in text]
    return text


def below(heading, language):
    """The texts of a language's blocks below a heading, which is given by its beginning."""
    return [text for its, tongue, text in blocks()
            if its.startswith(heading) and tongue == language]


def rows(header):
    """The rows, as lists of cells, of the table whose first column has this header."""
    [table] = re.findall(r"^\| %s \|.*\n\|[-|]+\n((?:\|.*\n)+)" % re.escape(header), README, re.M)
    return [row.strip("| ").split(" | ") for row in table.splitlines()]


def quoted(text):
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


class Site:
    """example.org as README.md has it, under a fresh name, in a folder and on a port of its own."""

    def __init__(self, folder, letsacme, pebble):
        self.folder, self.letsacme, self.ca, self.port = folder, letsacme, pebble, pebble.http_port
        self.name = support.fresh_name("site")
        self.names = [self.name, "www." + self.name]
        for name in [*self.names, "challenge." + self.name]:
            letsacme.add_host(name)
        for made in ("www/" + self.name, "www/challenges", "temp",
                     "www/challenge.%s/challenge" % self.name):
            (folder / made).mkdir(parents=True)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        self.root = folder / "www" / self.name
        self.server = None

    def fill(self, text, port=None):
        """A text of README.md with the names, folders and ports of this site."""
        text = re.sub(r" *listen \[::\].*\n", "", text)
        text = re.sub(r"http://([a-z.]*example\.org)", r"http://\1:PORT", text)
        for old, new in (("listen 80;", "listen 127.0.0.1:PORT;"), (":443", ":PORT"),
                         ("listen 443 ssl;", "listen 127.0.0.1:PORT ssl;"),
                         ("/var/www", "FOLDER/www"), ("/var/lib/letsacme", "FOLDER"),
                         ("/etc/letsacme", "FOLDER"), ("FOLDER", str(self.folder)),
                         ("PORT", str(port or self.port)), ("example.org", self.name)):
            text = text.replace(old, new)
        return text

    def serve(self, program, template, text, port=None):
        """Starts a web server with a configuration made of a template and a block of README.md."""
        modules = support.TOOLS / "usr/lib/apache2/modules"
        modules = modules if modules.exists() else Path("/usr/lib/apache2/modules")
        load = "".join("LoadModule %s_module %s/mod_%s.so\n" % (name, modules, name) for name in (
            "mpm_event", "authz_core", "alias", "dir", "rewrite", "ssl"))
        text = self.fill(template.replace("BLOCK", text), port).replace("MODULES", load)
        if os.geteuid() == 0:
            text = {"nginx": "user nobody nogroup;\n",
                    "apache2": "User nobody\nGroup nogroup\n"}.get(program, "") + text
        config = self.folder / "config"
        config.write_text(text)
        arguments = {"nginx": ["-p", self.folder, "-e", self.folder / "error.log", "-c", config],
                     "apache2": ["-D", "FOREGROUND", "-f", config],
                     "caddy": ["run", "--adapter", "caddyfile", "--config", config],
                     "lighttpd": ["-D", "-f", config]}[program]
        home = str(self.folder)
        env = support.tools_env(HOME=home, XDG_DATA_HOME=home, XDG_CONFIG_HOME=home)
        self.stop()
        self.server = Server([support.tool(program), *arguments], [port or self.port],
                             self.folder / "server.log", env)

    def stop(self):
        """Ends the web server, if there is one."""
        if self.server:
            self.server.stop()
        self.server = None

    def serve_root(self):
        """The document root of the name, served by nginx as in 3.1."""
        self.serve("nginx", NGINX, block("nginx", "listen 80"))

    def roots(self):
        """The configuration of 3.1, as a file."""
        [text] = below("3.1", "json")
        config = self.folder / "config.json"
        config.write_text(self.fill(text))
        return config

    def shell(self, text, folder):
        """Runs commands of README.md, which write nowhere but into a folder and the site's."""
        env = dict(os.environ, PATH=support.script_path(), HOME=str(folder))
        subprocess.run(["sh", "-ec", self.fill(text)], check=True, env=env, cwd=folder,
                       stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    """A Pebble that looks for challenge files on a port that is still free."""
    pebble = Pebble(tmp_path_factory.mktemp("pebble"), free_port())
    yield pebble
    pebble.stop()


@pytest.fixture
def site(letsacme, ca):
    """A Site."""
    with tempfile.TemporaryDirectory(prefix="letsacme-site-") as folder:
        made = Site(Path(folder), letsacme, ca)
        yield made
        made.stop()


@pytest.fixture
def issue(site, account, csr, key):
    """issue(*args) is a run of the script for the site's two names, whether it ends well or not."""
    request = csr(site.names)

    def run(*args, **options):
        options = {"ca": site.ca, **options}
        result = site.letsacme("--account-key", account, "--csr", request, *args, **options)
        if result.status == 0 and result.out:
            check_chain(result.out, site.names, key(), site.ca.root)
        return result
    return run


# --- web servers ---------------------------------------------------------------------------------

@pytest.mark.parametrize("program, template, language, mark", [
    ("nginx", NGINX, "nginx", "listen 80"),
    ("nginx", NGINX.replace("BLOCK", NGINX_SERVER), "nginx", "alias"),
    ("apache2", APACHE, "apache", "Alias /"), ("caddy", CADDY, "caddyfile", "handle_path"),
    ("lighttpd", LIGHTTPD, "lighttpd", "alias.url")], ids=lambda text: text.split()[0])
def test_web_server(site, issue, program, template, language, mark):
    """3.1 and 3.2: each server block serves the challenge files of both names."""
    site.serve(program, template, block(language, mark))
    result = issue(*(("--config-json", site.roots()) if mark == "listen 80" else
                     ("--acme-dir", site.folder / "www/challenges")))
    assert result.status == 0 and result.out, result.err


def test_redirect_to_a_plain_site(site, issue):
    """3.3: mod_rewrite sends the challenges to a directory of another host."""
    (site.root / ".htaccess").write_text(site.fill(block("apache", "R=302")))
    site.serve("apache2", APACHE, "".join(APACHE_LANDING % {"name": name} for name in (
        "example.org", "challenge.example.org")))
    result = issue("--acme-dir", site.folder / "www" / ("challenge." + site.name) / "challenge")
    assert result.status == 0 and result.out, result.err


def test_caught_by_a_framework(site, issue):
    """3.3: rules like those of WordPress answer with a page of theirs, until ours come first."""
    rules, page = site.root / ".htaccess", site.root / "index.html"
    page.write_text("<!DOCTYPE html>\n<title>A page of the site</title>\n")
    catch = "RewriteEngine On\nRewriteRule ^index - [L]\nRewriteRule . /index.html [L]\n"
    rules.write_text(catch)
    site.serve("apache2", APACHE, "")
    result = issue("--config-json", site.roots())
    assert leads_to(result, FETCH, "Another page comes instead")
    rules.write_text(block("apache", "[END]") + catch)
    assert issue("--config-json", site.roots()).status == 0


def test_caught_by_a_rule_for_dots(site, issue):
    """3.3: nginx forbids names with a dot, until an empty block comes first."""
    dots = "location ~ /\\. { deny all; }"
    template = NGINX.replace("BLOCK", NGINX_SERVER)
    site.serve("nginx", template, dots)
    assert leads_to(issue("--config-json", site.roots()), FETCH, "A rule forbids names")
    site.serve("nginx", template, dots + block("nginx", "^~"))
    assert issue("--config-json", site.roots()).status == 0


@pytest.mark.parametrize("program, template, language, mark", [
    ("nginx", NGINX, "nginx", "443 ssl"), ("apache2", APACHE, "apache", "SSLEngine")])
def test_tls(site, issue, key, program, template, language, mark):
    """Step 5: the web server shows the whole chain, and a client trusts it."""
    fullchain = site.folder / "fullchain.crt"
    site.serve_root()
    assert issue("--config-json", site.roots(), "--fullchain-file", fullchain).status == 0
    shutil.copy(key(), site.folder / "domain.key")
    port = free_port()
    site.serve(program, template, block(language, mark), port)
    trust = ssl.create_default_context(cafile=str(site.ca.root))
    for name in site.names:
        with socket.create_connection(("127.0.0.1", port), 30) as plain:
            with trust.wrap_socket(plain, server_hostname=name) as connection:
                shown = connection.getpeercert(binary_form=True)
        assert ssl.DER_cert_to_PEM_cert(shown) in fullchain.read_text()


# --- commands ------------------------------------------------------------------------------------

def commands(text):
    """The command lines of letsacme.py in a text of shell, as lists of words."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.M))
    return [shlex.split(re.split(" > | && ", line)[0])[2:]
            for line in text.splitlines() if line.startswith("python3 letsacme.py")]


def run_as_shown(site, line, folder):
    """Runs a command line of README.md, a dry run with the same CA, and judges what it gives."""
    line = [site.fill(word) for word in line]
    options = {"ca": site.ca}
    if "--test" in line:
        line += ["--check-port", str(site.port)]
        options = {"constants": {"LETS_ENCRYPT_STAGING": site.ca.directory},
                   "env": {"SSL_CERT_FILE": str(site.ca.ca_file)}}
    result = site.letsacme(*line, cwd=folder, **options)
    assert result.status == (3 if "--renew" in line else 0), (line, result.err)
    assert bool(result.out) == ("--test" in line or "--fullchain-file" not in line
                                and "config.json" != line[1]), line
    for text in [result.out] * (result.out != "") + [
            path.read_text() for path in folder.glob("fullchain.crt")]:
        check_chain(text, site.names, folder / "domain.key", site.ca.root)


def test_in_short(site, tmp_path):
    """From nothing to a certificate, with the commands as they stand; that at the top comes next,
    which then has nothing to do; and then those of step 4."""
    site.serve_root()
    [text] = below("In short", "sh")
    made, runs = re.match(r"((?:.*\n)*?)((?:python3 letsacme\.py.*\n)+)\Z", text).groups()
    site.shell(made, tmp_path)
    first, second = commands(runs)
    run_as_shown(site, first, tmp_path)
    assert not (tmp_path / "fullchain.crt").exists()
    run_as_shown(site, second, tmp_path)
    assert (tmp_path / "fullchain.crt").exists()
    [top] = commands("".join(below("letsacme", "sh")))
    run_as_shown(site, top, tmp_path)


def test_step_by_step(site, tmp_path):
    """Steps 1, 2 and 4: keys for their owner alone, requests with the names, each command line."""
    site.serve_root()
    for text in below("1.", "sh") + below("2.", "sh"):
        assert all("(umask 077;" in line for line in text.splitlines() if ".key)" in line)
        site.shell(text.replace(" 4096", " 2048"), tmp_path)    # which are found sooner
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("*.key")}
    assert modes == {"account.key": 0o600, "domain.key": 0o600}
    shutil.copy(site.roots(), tmp_path / "config.json")
    challenges = site.root / ".well-known/acme-challenge"
    challenges.mkdir(parents=True)
    lines = commands("".join(below("4.", "sh")))
    assert len(lines) == 3
    for line in lines:
        run_as_shown(site, [word.replace("/var/www/challenges", str(challenges)) for word in line],
                     tmp_path)


def test_configuration_keys(letsacme):
    """Each option of -h can be a key, written as README.md says; so can the keys named there."""
    options = re.findall(r"^  --([a-z-]+)", letsacme("-h").out, re.M)
    keys = {"".join(part.upper() if part in ("csr", "ca") else part.title()
                    for part in option.split("-")) for option in options} - {"ConfigJson"}
    [told] = re.findall(r"^\*\*In the configuration\*\*((?:.+\n)+)", README, re.M)
    named = {word for word in quoted(told) if re.fullmatch("[A-Z][A-Za-z]+", word)}
    assert named - keys == {"DocumentRoot"}
    flags = {"NoChain", "NoCert", "Force", "DisableCheck", "Renew", "Quiet", "Test"}
    given = {name: name in flags or "77" for name in keys | named}
    given.update(Contact=["a@example.org", "b@example.org"], _comment=1)
    result = letsacme("--config-json", json.dumps({**given, "example.org": {"AcmeDir": "."}}))
    assert result.status == 1 and "E: 77: No such file" in result.err, result.err


# --- shell, cron, systemd ------------------------------------------------------------------------

def shellcheck(text):
    """Fails on shell code that shellcheck complains about."""
    done = subprocess.run([support.tool("shellcheck"), "--shell=sh", "-"], input=text, text=True,
                          capture_output=True, env=support.tools_env())
    assert done.returncode == 0, text + done.stdout + done.stderr


def test_shell():
    """Shell code is portable and free of the usual traps."""
    for _, language, text in blocks():
        if language == "sh":
            shellcheck(text)


def test_cron():
    """A line of a crontab: a time, not on the hour, perhaps a user, and a command."""
    for _, _, text in [each for each in blocks() if each[1] == "crontab"]:
        time, command = re.fullmatch(r"((?:[0-9*,/]+ ){5})(?:root )?(.*)\n", text).groups()
        assert "%" not in command and int(time.split()[0]) % 15
        shellcheck(command + "\n")


def test_units(tmp_path):
    """systemd accepts the units, and they call the script as the cron line does."""
    units = [text for _, language, text in blocks() if language == "systemd"]
    for text in units:
        path = Path(text.splitlines()[0].strip("# "))
        assert path.parent == Path("/etc/systemd/system")
        (tmp_path / path.name).write_text(text)
    assert len(units) == 4
    # It writes to /run, even if it is only to verify.
    inside = OWN_MOUNTS + support.shell('mount -t tmpfs tmpfs /run && exec "$@"')
    done = subprocess.run([*inside, support.tool("systemd-analyze"), "verify", "--man=no",
                           *sorted(tmp_path.iterdir())], capture_output=True, text=True,
                          env=support.tools_env(SYSTEMD_UNIT_PATH="%s:" % tmp_path))
    # Where systemd is only unpacked, the commands that the units run are not in their places.
    said = (done.stdout + done.stderr).splitlines()
    assert not [line for line in said if "is not executable" not in line]
    assert done.returncode == 0 or said
    start = re.search("ExecStart=/usr/bin/(.*)", (tmp_path / "letsacme.service").read_text())[1]
    assert start + " --quiet && " in block("crontab", "runuser")


# --- shared hosting ------------------------------------------------------------------------------

UAPI = """#!%s
import json, os, sys
with open("calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
status = 0 if os.path.exists("broken") else 1
print(json.dumps({"module": "SSL", "func": "install_ssl", "apiversion": 3, "result": {
    "status": status, "errors": None if status else ["The key does not fit."], "data": {}}}))
"""


@pytest.fixture
def cpanel(site, account, csr, key, tmp_path):
    """The recipe's folder, and with it the site, a programs' folder, and an environment."""
    site.serve_root()
    folder, programs = tmp_path / "letsacme", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    config = json.loads(site.fill(block("json", "/home/USER")))
    config[site.name]["DocumentRoot"] = str(site.root)
    config.update(CA=site.ca.directory, CheckPort=site.port)
    python = '#!/bin/sh\nexec %s "$@"\n' % shlex.join(support.interpreter().command)
    for path, text in ((folder / "config.json", json.dumps(config)),
                       (folder / "install.py", block("python", "uapi")),
                       (folder / "renew.sh", site.fill(block("sh", "install.py"))),
                       (programs / "uapi", UAPI % sys.executable), (programs / "python3", python)):
        path.write_text(text)
        path.chmod(0o755)
    for source, name in ((support.SCRIPT, "letsacme.py"), (account, "account.key"),
                         (csr(site.names), "domain.csr"), (key(), "domain.key")):
        shutil.copy(source, folder / name)
    env = site.letsacme.environment(site.ca, {"HOME": str(tmp_path)})
    env["PATH"] = support.search_path(programs, env["PATH"])

    def run(*command):
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)
        calls = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
        return done.stdout + done.stderr, [json.loads(call) for call in calls]
    return folder, programs / "uapi", run


def test_cpanel(cpanel, site, key):
    """The recipe installs what was renewed, once, tries again what was not installed, and says in
    a line what is wrong."""
    folder, uapi, run = cpanel
    renew, install = ("sh", "renew.sh"), ("python3", "install.py", site.name)
    # What may go wrong: no argument, no certificate yet, no uapi, one that fails without a word.
    assert "python3 install.py DOMAIN" in run(*install[:2])[0]
    assert run(*install)[0] == "install.py: signed.crt: No such file or directory\n"
    site.root.rename(site.root.with_suffix(".gone"))
    said, calls = run(*renew)
    assert not calls and re.fullmatch("E: .*%s.*\n" % re.escape(str(site.root)), said)
    site.root.with_suffix(".gone").rename(site.root)
    good = uapi.read_text()
    uapi.write_text("#!/bin/sh\nexit 1\n")
    assert run(*renew)[0] == "install.py: uapi did not answer as it should\n"
    uapi.unlink()
    assert run(*install)[0] == "install.py: uapi: No such file or directory\n"
    uapi.write_text(good)
    uapi.chmod(0o755)
    (folder / "broken").touch()
    assert run(*install)[0] == "uapi: The key does not fit.\n"
    (folder / "broken").unlink()

    said, calls = run(*renew)
    assert len(calls) == 2 and not said and run(*renew) == ("", calls)
    assert calls[1][:3] == ["--output=json", "SSL", "install_ssl"]
    values = dict(word.split("=", 1) for word in calls[1][3:])
    assert re.fullmatch("[A-Za-z0-9%._-]+", "".join(values.values()))
    values = {name: unquote(value) for name, value in values.items()}
    check_chain(values["cert"] + values["cabundle"], site.names, key(), site.ca.root)
    assert values == {"domain": site.name, "key": key().read_text(),
                      "cert": (folder / "signed.crt").read_text(),
                      "cabundle": (folder / "chain.crt").read_text()}


# --- errors and remedies -------------------------------------------------------------------------

def leads_to(result, *remedies, status=1):
    """Did a run fail, and with the messages beside which README.md has these remedies?"""
    for remedy in remedies:
        [row] = [row for row in rows("Message") + rows("Reason at the end") if remedy in row[1]]
        assert any(fragment in result.err for fragment in quoted(row[0])), (row, result.err)
    return result.status == status


def test_first_attempts(site, issue, csr, tmp_path):
    """No right to write; no web server, or one that only the CA cannot reach; another site's
    document root; a name that is not in DNS."""
    roots = ("--config-json", site.roots())
    site.root.chmod(0o555)
    assert leads_to(issue(*roots, wrapper=support.UNPRIVILEGED), "belongs to someone else")
    site.root.chmod(0o755)
    assert leads_to(issue(*roots), FETCH, "Port 80 is closed")
    assert leads_to(issue(*roots, "--disable-check"), "could not fetch the file although")
    site.serve_root()
    assert leads_to(issue("--acme-dir", site.folder / "www/challenges"), FETCH,
                    "The server looks elsewhere")
    unknown = issue("--csr", csr(["letsacme.invalid"]), "--acme-dir", tmp_path)
    assert leads_to(unknown, FETCH, "The name is not in DNS")


def test_wrong_files(letsacme, key, csr, account, tmp_path):
    """First attempts with the wrong files."""
    good, at = csr(["example.org"]), ["--acme-dir", tmp_path]
    wrong, nowhere = "Steps 1 and 2 make good ones", "Paths are relative to where"
    for account_key, request, *more, remedy in (
            (key("encrypted"), good, *at, wrong), (account, account, *at, wrong),
            ("no.key", good, *at, nowhere), (account, good, "The name has no entry"),
            (account, good, "--acme-dir", tmp_path / "no", "or its directory does not exist"),
            (account, good, *at, "--cert-file", key(), "An output has the path of another file")):
        assert leads_to(letsacme("--account-key", account_key, "--csr", request, *more), remedy)
    result = letsacme("--account-key", account, "--csr", good, *at, env={"PATH": str(tmp_path)})
    assert leads_to(result, "have `PATH` find it")


def test_look_by_hand(site):
    """The command with which a challenge directory can be looked at."""
    site.serve_root()
    directory = site.root / ".well-known/acme-challenge"
    directory.mkdir(parents=True)
    text = site.fill(block("sh", "DIR")).replace("DIR", str(directory)).replace(
        "curl -L", "curl -s -L --resolve %s:%d:127.0.0.1" % (site.name, site.port))
    done = subprocess.run(["sh", "-ec", text], capture_output=True, text=True,
                          env=support.tools_env(PATH=support.search_path(
                              support.TOOLS / "usr/bin", os.environ["PATH"])))
    assert (done.stdout, done.stderr) == ("ok\n", "") and not list(directory.iterdir())


def test_refused_by_the_ca(site, issue, pebbles):
    """First attempts with the wrong CA, or what it does not offer."""
    roots = ("--config-json", site.roots())
    assert leads_to(issue(*roots, env={"SSL_CERT_FILE": None}), "Install `ca-certificates`")
    picky = pebbles(externalAccountBindingRequired=True)
    assert leads_to(issue(*roots, ca=picky), "The CA hands out a pair")
    pair = ("--eab-kid", "kid-0", "--eab-hmac-key", "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0")
    result = issue(*roots, *pair, ca=picky)
    assert "Registering account...\nE: " in result.err
    assert leads_to(result, "The CA refuses the account")
    assert leads_to(issue(*roots, "--profile", "none"), "The CA has no such profile")
    closed = "https://localhost:%d/dir" % free_port()
    assert leads_to(issue(*roots, "--ca", closed, ca=None, scale=0.01), "The CA is down")
    trust = {"SSL_CERT_FILE": str(site.ca.ca_file)}
    for wrong in (site.ca.directory + "ectory", "acme-v02.api.letsencrypt.org"):
        assert leads_to(issue(*roots, "--ca", wrong, ca=None, env=trust), "`--ca` is mistyped")


def test_remedies_are_for_what_is_said():
    """Each message of the tables is one of letsacme.py's own, of the system's or of a CA's."""
    source = support.SCRIPT.read_text(encoding="utf-8")
    others = re.compile("error:[a-zA-Z]+|During secondary validation|cannot contain more than|"
                        "SERVFAIL|SyntaxError|No such file or directory|Permission denied|E:|"
                        "No space left on device|certificate verify failed|Connection refused|"
                        "timed out|Name or service not known|name resolution")
    for row in rows("Message") + rows("Reason at the end"):
        for fragment in quoted(row[0]):
            fragment = re.sub("PEM$|CERTIFICATE REQUEST in PEM| [0-9]+$", "", fragment)
            assert fragment in source or others.fullmatch(fragment), fragment
