"""What README.md shows works: its server blocks, commands, units, recipes and remedies."""
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import unquote

import pytest
import support
from pki import check_chain
from servers import NGINX_HEAD, Server, free_port
from test_words import MISTAKES
from trials import OWN_MOUNTS

README = (support.TOP / "README.md").read_text(encoding="utf-8")
QUOTED = re.compile("`([^`]+)`")
# The rows of the tables of messages: those, and what to do
ERRORS = re.findall(r"^\| (.+) \| (.+) \|$", README.split("## Errors and remedies\n")[1].split(
    "\n## ")[0], re.M)
FETCH = "letsacme cannot fetch the file"  # one of the remedies
PORT = free_port()  # from which a CA of these tests fetches the challenge files
# Set up like any server, save that it is not alone on the machine; BLOCK is what README.md shows.
NGINX = NGINX_HEAD.format(folder="FOLDER") + "server_names_hash_bucket_size 128;\nBLOCK\n}\n"
NGINX_SITE = NGINX.replace("BLOCK",
                           "server { listen 127.0.0.1:PORT; root FOLDER/www/example.org; BLOCK }")
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
CADDY = "{\n    admin off\n    default_bind 127.0.0.1\n}\nBLOCK"
LIGHTTPD = """server.bind = "127.0.0.1"\nserver.port = PORT
server.document-root = "FOLDER/www/example.org"\nBLOCK
"""
# How each is started, and what makes it an ordinary user if root starts it
PROGRAMS = {"nginx": ("-p FOLDER -e FOLDER/error.log -c FOLDER/config", "user nobody nogroup;\n"),
            "apache2": ("-D FOREGROUND -f FOLDER/config", "User nobody\nGroup nogroup\n"),
            "caddy": ("run --adapter caddyfile --config FOLDER/config", ""),
            "lighttpd": ("-D -f FOLDER/config", "")}


def blocks(language, heading=""):
    """The texts of a language's fenced blocks below a heading, given by its beginning, or any."""
    found, last = [], ""
    for title, its, text in re.findall(r"^#+ (.*)|^```(\w*)\n((?:.*\n)*?)```$", README, re.M):
        last = title or last
        if its == language and last.startswith(heading):
            found.append(text)
    return found


def block(language, mark):
    """The text of the one block of a language that has a mark in it."""
    [text] = [text for text in blocks(language) if mark in text]
    return text


def leads_to(said, *remedies):
    """Are these remedies in README.md beside parts of what was said?"""
    for remedy in remedies:
        [message] = [message for message, what_to_do in ERRORS if remedy in what_to_do]
        assert any(fragment in said for fragment in QUOTED.findall(message)), (message, said)


class Site:
    """example.org as README.md has it, under a fresh name, in a folder and on a port of its own."""

    def __init__(self, folder, letsacme, ca, account, csr, key):
        self.folder, self.letsacme, self.ca, self.port = folder, letsacme, ca, PORT
        self.name = support.fresh_name("site")
        self.names = [self.name, "www." + self.name]
        self.account, self.csr, self.key = account, csr(self.names), key()
        for name in [*self.names, "challenge." + self.name]:
            letsacme.add_host(name)
        self.root, self.challenges = folder / "www" / self.name, folder / "www/challenges"
        self.landing = folder / "www" / ("challenge." + self.name) / "challenge"
        for made in (self.root, self.challenges, self.landing):
            made.mkdir(parents=True)
        folder.chmod(0o755)  # as root, the servers' workers are another user
        (folder / "config.json").write_text(self.fill(blocks("json", "3.1")[0]))
        self.roots = ("--config-json", folder / "config.json")
        self.server = None

    def fill(self, text):
        """A text of README.md with the names, folders and ports of this site."""
        text = re.sub(r" *listen \[::\].*\n", "", text)
        text = re.sub(r"http://([a-z.]*example\.org)", r"http://\1:PORT", text)
        for old, new in (("listen 80;", "listen 127.0.0.1:PORT;"), (":443", ":PORT"),
                         ("listen 443 ssl;", "listen 127.0.0.1:PORT ssl;"),
                         ("/var/www", "FOLDER/www"), ("/var/lib/letsacme", "FOLDER"),
                         ("/etc/letsacme", "FOLDER"), ("FOLDER", str(self.folder)),
                         ("PORT", str(self.port)), ("example.org", self.name)):
            text = text.replace(old, new)
        return text

    def serve(self, program="nginx", template=NGINX, text=None):
        """Starts a web server with a template and a block of README.md, or nginx as in 3.1."""
        modules = Path(support.tool("apache2")).parents[1] / "lib/apache2/modules"
        load = "".join("LoadModule %s_module %s/mod_%s.so\n" % (name, modules, name) for name in (
            "mpm_event", "authz_core", "alias", "dir", "rewrite", "ssl", "vhost_alias"))
        text = block("nginx", "listen 80") if text is None else text
        text = self.fill(template.replace("BLOCK", text)).replace("MODULES", load)
        arguments, user = PROGRAMS[program]
        (self.folder / "config").write_text(user * (os.geteuid() == 0) + text)
        self.stop()
        homes = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(self.folder))
        self.server = Server([support.tool(program), *self.fill(arguments).split()],
                             [self.port], self.folder / "server.log",
                             support.tools_env(**homes))

    def stop(self):
        """Ends the web server, if there is one."""
        if self.server:
            self.server.stop()

    def shell(self, text, folder):
        """Runs commands of README.md, which write nowhere but into a folder and the site's."""
        env = dict(os.environ, PATH=support.script_path(), HOME=str(folder))
        subprocess.run(["sh", "-ec", self.fill(text)], check=True, env=env, cwd=folder,
                       stderr=subprocess.DEVNULL)

    def issue(self, *args, remedies=(), **options):
        """Has the script ask for the two names: it prints the certificate, or leads to remedies."""
        result = self.letsacme("--account-key", self.account, "--csr", self.csr, *args,
                               **{"ca": self.ca, **options})
        assert result.status == (1 if remedies else 0), result.err
        leads_to(result.err, *remedies)
        if not remedies:
            check_chain(result.out, self.names, self.key, self.ca.root)
        return result


@pytest.fixture
def site(letsacme, pebbles, account, csr, key):
    """A Site."""
    with tempfile.TemporaryDirectory(prefix="letsacme-site-") as folder:
        made = Site(Path(folder), letsacme, pebbles(http_port=PORT), account, csr, key)
        yield made
        made.stop()


@pytest.mark.parametrize("program, template, language, mark", [
    ("nginx", NGINX, "nginx", "listen 80"), ("nginx", NGINX_SITE, "nginx", "alias"),
    ("apache2", APACHE, "apache", "Alias /"), ("caddy", CADDY, "caddyfile", "handle_path"),
    ("lighttpd", LIGHTTPD, "lighttpd", "alias.url")], ids=lambda text: text.split()[0])
def test_web_server(site, program, template, language, mark):
    """3.1 and 3.2: each server block serves the challenge files of both names."""
    site.serve(program, template, block(language, mark))
    site.issue(*(site.roots if mark == "listen 80" else ("--acme-dir", site.challenges)))


def test_redirect_to_a_plain_site(site):
    """3.3: mod_rewrite sends the challenges to a directory of another host."""
    (site.root / ".htaccess").write_text(site.fill(block("apache", "R=302")))
    (site.folder / "www" / site.names[1]).symlink_to(site.root)
    site.serve("apache2", APACHE, "UseCanonicalName Off\nVirtualDocumentRoot FOLDER/www/%0")
    site.issue("--acme-dir", site.landing)


@pytest.mark.parametrize("program, template, catch, language, mark, remedy", [
    ("apache2", APACHE, "RewriteEngine On\nRewriteRule ^index - [L]\nRewriteRule . /index.html [L]",
     "apache", "[END]", "Another page comes instead"),
    ("nginx", NGINX_SITE, "location ~ /\\. { deny all; }", "nginx", "^~",
     "A rule forbids names")], ids=["by a framework", "by a rule for dots"])
def test_caught(site, program, template, catch, language, mark, remedy):
    """3.3: a rule of the site catches the challenges, until that of README.md comes first."""
    (site.root / "index.html").write_text("<!DOCTYPE html>\n<title>A page of the site</title>\n")
    for text, remedies in (catch, (FETCH, remedy)), (block(language, mark) + catch, ()):
        if program == "apache2":
            (site.root / ".htaccess").write_text(text)
        site.serve(program, template, "" if program == "apache2" else text)
        site.issue(*site.roots, remedies=remedies)


@pytest.mark.parametrize("program, template, language, mark", [
    ("nginx", NGINX, "nginx", "443 ssl"), ("apache2", APACHE, "apache", "SSLEngine")])
def test_tls(site, program, template, language, mark):
    """Step 5: the web server shows the whole chain, and a client trusts it."""
    site.serve()
    (site.folder / "fullchain.crt").write_text(site.issue(*site.roots).out)
    shutil.copy(site.key, site.folder / "domain.key")
    site.port = free_port()
    site.serve(program, template, block(language, mark))
    for name in site.names:
        subprocess.run([support.tool("curl"), "-sS", "--noproxy", "*", "--cacert", site.ca.root,
                        "--resolve", "%s:%d:127.0.0.1" % (name, site.port),
                        "https://%s:%d/" % (name, site.port)], check=True, env=support.tools_env())


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
    which then has nothing to do."""
    site.serve()
    [top], [text] = blocks("sh", "letsacme"), blocks("sh", "In short")
    site.shell(text.partition("python3 letsacme.py")[0], tmp_path)
    lines = commands(text + top)
    assert len(lines) == 3
    for line, output in zip(lines, (False, True, True)):
        run_as_shown(site, line, tmp_path)
        assert (tmp_path / "fullchain.crt").exists() == output


def test_step_by_step(site, tmp_path):
    """Steps 1, 2 and 4: keys for their owner alone, requests with the names, each command line."""
    site.serve()
    for text in blocks("sh", "1.") + blocks("sh", "2."):
        assert all("(umask 077;" in line for line in text.splitlines() if ".key)" in line)
        site.shell(text.replace(" 4096", " 2048"), tmp_path)    # which are found sooner
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("*.key")}
    assert modes == {"account.key": 0o600, "domain.key": 0o600}
    shutil.copy(site.folder / "config.json", tmp_path)
    challenges = site.root / ".well-known/acme-challenge"
    challenges.mkdir(parents=True)
    lines = commands("".join(blocks("sh", "4.")))
    assert len(lines) == 3
    for line in lines:
        run_as_shown(site, [word.replace("/var/www/challenges", str(challenges)) for word in line],
                     tmp_path)


def test_configuration_keys():
    """The keys that README.md names are those that letsacme.py knows (see test_parsing.py)."""
    [told] = re.findall(r"^\*\*In the configuration\*\*((?:.+\n)+)", README, re.M)
    named = {word for word in QUOTED.findall(told) if re.fullmatch("[A-Z][A-Za-z]+", word)}
    assert named - support.module().KEYS.keys() == {"DocumentRoot"}


def test_shell_and_cron():
    """Shell code is portable and free of the usual traps; so is a line of a crontab, after a time,
    not on the hour, and perhaps a user."""
    code = blocks("sh")
    for line in blocks("crontab"):
        time, command = re.fullmatch(r"((?:[0-9*,/]+ ){5})(?:root )?(.*\n)", line).groups()
        assert "%" not in command and int(time.split()[0]) % 15
        code.append(command)
    for text in code:
        done = subprocess.run([support.tool("shellcheck"), "--shell=sh", "-"], input=text,
                              text=True, capture_output=True, env=support.tools_env())
        assert done.returncode == 0, text + done.stdout + done.stderr


def test_units(tmp_path):
    """systemd accepts the units, and they call the script as the cron line does."""
    for text in blocks("systemd"):
        path = Path(text.splitlines()[0].strip("# "))
        assert path.parent == Path("/etc/systemd/system")
        (tmp_path / path.name).write_text(text)
    units = sorted(tmp_path.iterdir())
    assert len(units) == 4
    # It writes to /run, even if it is only to verify.
    inside = OWN_MOUNTS + support.shell('mount -t tmpfs tmpfs /run && exec "$@"')
    done = subprocess.run([*inside, support.tool("systemd-analyze"), "verify", "--man=no", *units],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env=support.tools_env(SYSTEMD_UNIT_PATH="%s:" % tmp_path))
    # Where systemd is only unpacked, the commands that the units run are not in their places.
    said = done.stdout.splitlines()
    assert not [line for line in said if "is not executable" not in line]
    assert done.returncode == 0 or said
    start = re.search("ExecStart=/usr/bin/(.*)", (tmp_path / "letsacme.service").read_text())[1]
    assert start + " --quiet && " in block("crontab", "runuser")


def test_cpanel(site, tmp_path):
    """The recipe installs what was renewed, once, tries again what was not installed, and says in
    a line what is wrong."""
    site.serve()
    folder = tmp_path / "letsacme"
    folder.mkdir()
    config = json.loads(site.fill(block("json", "/home/USER")))
    config[site.name]["DocumentRoot"] = str(site.root)
    config.update(CA=site.ca.directory, CheckPort=site.port)

    def make(name, text):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    make("config.json", json.dumps(config))
    make("install.py", block("python", "uapi"))
    make("renew.sh", site.fill(block("sh", "install.py")))
    make("python3", '#!/bin/sh\nexec %s "$@"\n' % shlex.join(support.interpreter().command))
    for source, name in ((support.SCRIPT, "letsacme.py"), (site.account, "account.key"),
                         (site.csr, "domain.csr"), (site.key, "domain.key")):
        shutil.copy(source, folder / name)
    env = site.letsacme.environment(site.ca, {
        "HOME": str(tmp_path), "PATH": support.search_path(folder, support.script_path())})

    def said(*command):
        return subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, cwd=folder).stdout
    # What may go wrong: no argument, no certificate yet, no document root, no uapi or a bad one.
    assert "python3 install.py DOMAIN" in said("python3", "install.py")
    missing = "No such file or directory\n"
    assert said("python3", "install.py", site.name) == "install.py: signed.crt: " + missing
    site.root.rmdir()
    assert re.fullmatch("E: .*%s.*\n" % re.escape(str(site.root)), said("sh", "renew.sh"))
    site.root.mkdir()
    assert said("sh", "renew.sh") == "install.py: uapi: " + missing
    answer = """echo "$*" > call\necho '{"result": {"status": %s}, "data": {}}'"""
    for script, words in (("exit 1", "install.py: uapi did not answer as it should\n"),
                          (answer % '0, "errors": ["No fit.", "Bad."]', "uapi: No fit.; Bad.\n"),
                          (answer % '1, "errors": null', ""), ("echo not to be called", "")):
        make("uapi", "#!/bin/sh\n" + script)
        assert said("sh", "renew.sh") == words
    form, section, function, *words = (folder / "call").read_text().rstrip("\n").split(" ")
    assert (form, section, function) == ("--output=json", "SSL", "install_ssl")
    values = dict(word.split("=", 1) for word in words)
    assert re.fullmatch("[A-Za-z0-9%._-]+", "".join(values.values()))
    values = {name: unquote(value) for name, value in values.items()}
    check_chain(values["cert"] + values["cabundle"], site.names, site.key, site.ca.root)
    assert values == {"domain": site.name, "key": site.key.read_text(),
                      "cert": (folder / "signed.crt").read_text(),
                      "cabundle": (folder / "chain.crt").read_text()}


# What messages of test_words.py, given by a part of each, lead to
REMEDIES = {
    "without a password": ["Steps 1 and 2 make good ones"],
    "but CERTIFICATE": ["Steps 1 and 2 make good ones"],
    "none.key": ["Paths are relative to where"], "neither": ["The name has no entry"],
    "no directory chalenges": ["or its directory does not exist"],
    "root may not be written": ["belongs to someone else"],
    "is not overwritten": ["An output has the path of another file"],
    "openssl is missing": ["have `PATH` find it"], "No space": ["The disk is full"],
    "status 404": [FETCH, "The server looks elsewhere"],
    "after a redirect": [FETCH, "Port 80 is closed"], "is no https URL": ["`--ca` is mistyped"],
    "is no directory of": ["`--ca` is mistyped"], "verify failed": ["Install `ca-certificates`"],
    "externalAccount": ["The CA hands out a pair"], "rateLimited": ["Wait as long as it says"],
}


def test_mistakes():
    """README.md has remedies for the mistakes that people make most."""
    for part, remedies in REMEDIES.items():
        leads_to(next(told for _, told in MISTAKES if part in told), *remedies)


def test_the_ca_refuses(site, csr, pebbles):
    """Nothing that the CA can reach; a name that is not in DNS; a profile or an account that it
    does not give; and it is down."""
    site.issue(*site.roots, "--disable-check", remedies=["could not fetch the file although"])
    site.issue("--csr", csr(["letsacme.invalid"]), "--acme-dir", site.challenges,
               remedies=[FETCH, "The name is not in DNS"])
    site.issue(*site.roots, "--profile", "none", remedies=["The CA has no such profile"])
    pair = ("--eab-kid", "kid-0", "--eab-hmac-key", "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0")
    result = site.issue(*site.roots, *pair, ca=pebbles(externalAccountBindingRequired=True),
                        remedies=["The CA refuses the account"])
    assert "Registering account...\nE: " in result.err
    closed = "https://localhost:%d/dir" % free_port()
    site.issue(*site.roots, "--ca", closed, ca=None, scale=0.01, remedies=["The CA is down"])


def test_look_by_hand(site):
    """The command with which a challenge directory can be looked at."""
    site.serve()
    directory = site.root / ".well-known/acme-challenge"
    directory.mkdir(parents=True)
    text = site.fill(block("sh", "DIR")).replace("DIR", str(directory)).replace(
        "curl -L", "%s -s -L --noproxy '*' --resolve %s:%d:127.0.0.1" % (
            support.tool("curl"), site.name, site.port))
    done = subprocess.run(["sh", "-ec", text], capture_output=True, text=True,
                          env=support.tools_env())
    assert (done.stdout, done.stderr) == ("ok\n", "") and not list(directory.iterdir())


def test_remedies_are_for_what_is_said():
    """Each message of the tables is one of letsacme.py's own, of the system's or of a CA's."""
    source = support.SCRIPT.read_text(encoding="utf-8")
    others = re.compile("error:[a-zA-Z]+|During secondary validation|cannot contain more than|"
                        "SERVFAIL|SyntaxError|No such file or directory|Permission denied|E:|"
                        "No space left on device|certificate verify failed|Connection refused|"
                        "timed out|Name or service not known|name resolution")
    for message, _ in ERRORS:
        for fragment in QUOTED.findall(message):
            fragment = re.sub("PEM$|CERTIFICATE REQUEST in PEM| [0-9]+$", "", fragment)
            assert fragment in source or others.fullmatch(fragment), fragment
