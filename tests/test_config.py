"""The config JSON: options by their CamelCase keys, and a directory for each name."""
import json
import re

import pytest
import support


@pytest.fixture
def run(letsacme, account, csr, pebble):
    """run(config, hosts, ...) runs with a config JSON: an object, a text, or a file's bytes."""
    def make(config, hosts=(), *arguments, **options):
        """A run with a CSR for the hosts, or for one that nobody has."""
        if isinstance(config, bytes):
            (letsacme.folder / "config.json").write_bytes(config)
            config = "config.json"
        elif not isinstance(config, str):
            config = json.dumps(config)
        return letsacme("--account-key", account, "--csr", csr(hosts or ["nobody.example"]),
                        "--config-json", config, *arguments, ca=pebble, **options)
    return make


def roots(nginx, hosts):
    """The part of a config JSON that tells the document root of each host."""
    return {host: {"DocumentRoot": str(nginx.root(host))} for host in hosts}


# --- options --------------------------------------------------------------------------------------

@pytest.mark.core
def test_everything_in_the_file(letsacme, account, csr, pebble, nginx, names, key):
    """A whole run is possible with --config-json alone; paths are relative to where it runs."""
    hosts = names(2)
    csr(hosts).rename(letsacme.folder / "domain.csr")
    (letsacme.folder / "config.json").write_text(json.dumps({
        "AccountKey": account.name, "CSR": "domain.csr", "CA": pebble.directory,
        "CheckPort": pebble.http_port, "Contact": "mailto:me@mail.example", "Quiet": True,
        "CertFile": "cert.pem", "ChainFile": "chain.pem", "FullchainFile": "fullchain.pem",
        "_note": ["what", {"ever": 1}], "_": {"example.org": 5}, **roots(nginx, hosts)}))
    result = letsacme("--config-json", "config.json", env={"SSL_CERT_FILE": str(pebble.ca_file)})
    assert (result.status, result.out, result.err) == (0, "", "")
    cert, chain, both = [(letsacme.folder / name).read_text()
                         for name in ("cert.pem", "chain.pem", "fullchain.pem")]
    assert both == cert + chain
    support.check_chain(both, hosts, key(), pebble.root)


@pytest.mark.parametrize("config, certificates, logged", [
    ({}, 2, True), ({"NoChain": True}, 1, True), ({"NoChain": "True"}, 1, True),
    ({"NoCert": "true"}, 1, True), ({"Quiet": "TRUE"}, 2, False), ({"Quiet": "False"}, 2, True),
    ({"Quiet": True, "NoCert": False, "NoChain": "false"}, 2, False),
    ({"DisableCheck": True, "Force": True, "Renew": False, "Test": "FALSE"}, 2, True),
], ids=str)
def test_flags(config, certificates, logged, run, names, nginx):
    """Flags are true, false, or these words in any case."""
    hosts = names()
    result = run({**config, **roots(nginx, hosts)}, hosts)
    assert result.status == 0, result.err
    assert len(support.load_chain(result.out)) == certificates
    assert bool(result.err) == logged


def test_command_line_wins(run, names, nginx, letsacme):
    """What the command line says counts, whatever the file says."""
    hosts = names()
    config = {"AccountKey": "/nonexistent/key", "CSR": "/nonexistent/csr", "CheckPort": 1,
              "CA": "https://localhost:1/dir", "CertFile": "/nonexistent/cert", "Quiet": False,
              "Contact": "tel:0", **roots(nginx, hosts)}
    result = run(config, hosts, "--cert-file", "cert.pem", "--quiet",
                 "--contact", "me@mail.example")
    assert (result.status, result.err) == (0, "")
    assert (letsacme.folder / "cert.pem").exists()


def test_flags_stay(run, names, nginx):
    """A flag that is true in the file needs nothing on the command line beside it."""
    hosts = names()
    result = run({"NoChain": True, **roots(nginx, hosts)}, hosts, "--quiet")
    assert result.status == 0
    assert len(support.load_chain(result.out)) == 1


@pytest.mark.parametrize("contact, right", [
    ("mailto:me@mail.example", True), ("me@mail.example", True), ([], True),
    (["me@mail.example", "mailto:you@mail.example"], True), (["me@mail.example", "tel:0"], False)])
def test_contact(contact, right, run, names, nginx):
    """Contact is a text or a list of texts, and all of it reaches the CA."""
    hosts = names()
    result = run({"Contact": contact, **roots(nginx, hosts)}, hosts)
    assert result.status == (0 if right else 1), result.err
    assert right or re.search('^E: .*"tel"', result.err, re.M)


def test_ca_without_path(run, names, nginx, letsacme, csr, account, pebble):
    """A CA with no path means /directory under it."""
    hosts, base = names(), pebble.directory[:-len("/dir")]
    for ca in (base, base + "/"):
        result = letsacme("--account-key", account, "--csr", csr(hosts), "--config-json",
                          json.dumps({"CA": ca, **roots(nginx, hosts)}),
                          env={"SSL_CERT_FILE": str(pebble.ca_file)})
        assert result.status == 1
        assert re.search("^E: .*%s/directory: " % base, result.err, re.M)


def test_test_in_the_file(run, names, nginx, letsacme, account, csr, pebble):
    """Test wins over the file's CA, and --ca over Test."""
    hosts = names()
    config = {"Test": True, "CA": "https://localhost:1/dir", "FullchainFile": "new.pem",
              "CheckPort": pebble.http_port, **roots(nginx, hosts)}
    result = letsacme("--account-key", account, "--csr", csr(hosts),
                      "--config-json", json.dumps(config),
                      constants={"LETS_ENCRYPT_STAGING": pebble.directory},
                      env={"SSL_CERT_FILE": str(pebble.ca_file)})
    assert result.status == 0, result.err
    assert result.out and "(test mode)" in result.err
    assert not (letsacme.folder / "new.pem").exists()
    result = run(config, hosts)
    assert (result.status, result.out) == (0, ""), result.err
    assert "test mode" not in result.err and (letsacme.folder / "new.pem").exists()


# --- directories ----------------------------------------------------------------------------------

RIGHT, ROOT, WRONG = "challenges that nginx shows", "their document root", "a directory that is not"


def fill_in(value, replacements):
    """A copy of a JSON value with texts replaced."""
    if isinstance(value, dict):
        return {replacements.get(key, key): fill_in(each, replacements)
                for key, each in value.items()}
    return replacements.get(value, value)


@pytest.mark.parametrize("config, arguments", [
    pytest.param({"NAME": {"AcmeDir": RIGHT}}, [], marks=pytest.mark.core),
    ({"NAME": {"DocumentRoot": ROOT}}, []),
    ({"NAME": {"AcmeDir": RIGHT, "DocumentRoot": WRONG}}, []),
    ({"NAME": {"AcmeDir": RIGHT, "_note": 1}, "AcmeDir": WRONG}, []),
    ({"NAME": {"DocumentRoot": ROOT}, "AcmeDir": WRONG, "DocumentRoot": WRONG}, []),
    ({"NAME": {"DocumentRoot": ROOT}}, ["--acme-dir", WRONG]),
    ({"NAME": {"DocumentRoot": ROOT}, "TWIN": {"AcmeDir": WRONG}}, []),
    ({"TWIN": {"DocumentRoot": ROOT}}, []),
    ({"TWIN": {"AcmeDir": RIGHT}, "AcmeDir": WRONG}, ["--acme-dir", WRONG]),
    ({"AcmeDir": RIGHT, "other.example": {"AcmeDir": WRONG}}, []),
    ({"DocumentRoot": ROOT}, []),
    ({"AcmeDir": RIGHT, "DocumentRoot": WRONG}, []),
    ({"AcmeDir": WRONG, "DocumentRoot": WRONG}, ["--acme-dir", RIGHT]),
    ({"DocumentRoot": WRONG}, ["--acme-dir", RIGHT]),
], ids=str)
@pytest.mark.parametrize("www", [False, True], ids=["", "www"])
def test_directories(config, arguments, www, run, names, nginx, letsacme, tmp_path):
    """The directory for a name: its own, that of its www. twin, or the global one."""
    bare = names()[0]
    name, twin = ("www." + bare, bare) if www else (bare, "www." + bare)
    letsacme.add_host(name)
    right, wrong = nginx.root(name) / ".well-known/acme-challenge", tmp_path / "wrong"
    right.mkdir(parents=True)
    wrong.mkdir()
    replacements = {"NAME": name, "TWIN": twin, RIGHT: str(right), ROOT: str(nginx.root(name)),
                    WRONG: str(wrong)}
    arguments = [replacements.get(word, word) for word in arguments]
    result = run(fill_in(config, replacements), [name], *arguments)
    assert result.status == 0, result.err
    assert not list(wrong.iterdir()) and not list(right.iterdir())


def test_twins_together(run, names, nginx, letsacme):
    """One entry serves a name and its www. twin in one certificate."""
    [bare] = names()
    letsacme.add_host("www." + bare)
    site = nginx.root("www." + bare)
    site.rmdir()
    site.symlink_to(nginx.root(bare))
    result = run(roots(nginx, [bare]), [bare, "www." + bare])
    assert result.status == 0, result.err


@pytest.mark.parametrize("entry", [
    {"DocumentRoot": "{tmp}/missing"}, {"DocumentRoot": "{tmp}/account.key"},
    {"AcmeDir": "{tmp}/missing"}, {"AcmeDir": "{tmp}/account.key"}], ids=str)
def test_directory_that_is_none(entry, run, names, tmp_path):
    """A directory that is missing or none is told before the CA is asked, and not made."""
    [host] = names()
    entry = {key: value.format(tmp=tmp_path) for key, value in entry.items()}
    result = run({host: entry}, [host])
    assert result.status == 1
    [path] = entry.values()
    assert re.search("^E: .*%s.*%s" % (re.escape(host), re.escape(path)), result.err, re.M)
    assert "Registering" not in result.err
    assert not (tmp_path / "missing").exists()


def test_paths_in_all_alphabets(run, names, nginx):
    """Paths may hold any letters, in a file or in literal JSON, even in a bare locale."""
    [host] = names()
    site, real = nginx.root(host), nginx.root("d\u00f6kumente-\u4e2d-" + host)
    site.rmdir()
    site.symlink_to(real)
    config = {host: {"DocumentRoot": str(real)}}
    text = json.dumps(config, ensure_ascii=False, indent=1)
    for source in (text, "\n " + text, json.dumps(config), text.encode(), text.encode("utf-8-sig")):
        result = run(source, [host], env={"LC_ALL": "C"})
        assert result.status == 0, result.err


# --- what is refused ------------------------------------------------------------------------------

@pytest.mark.parametrize("config, words", [
    pytest.param({"AcountKey": "account.key"}, "AcountKey", marks=pytest.mark.core),
    ({"acmedir": "/tmp"}, "acmedir"),
    ({"Acme-Dir": "/tmp"}, "Acme-Dir"), ({"--quiet": True}, "--quiet"),
    ({"DocumentRot": "/tmp"}, "DocumentRot"), ({"Version": "yes"}, "version"),
    ({"example.org": "/var/www"}, "example.org"), ({"example.org": None}, ""),
    ({"example.org": {"DocumentRot": "/tmp"}}, "DocumentRot"),
    ({"example.org": {"AcmeDir": 5}}, ""), ({"AcmeDir": True}, "acme-?dir"),
    ({"CertFile": None}, ""), ({"DocumentRoot": 7}, ""),
    ({"Quiet": "yes"}, "quiet"), ({"Quiet": 1}, "quiet"), ({"Quiet": None}, ""),
], ids=str)
def test_refused_keys(config, words, run):
    """An unknown key is named, and a value of the wrong type is an error in words."""
    result = run(config)
    assert result.status == 2
    assert re.fullmatch("E: .*%s.*\n" % words, result.err, re.I)


@pytest.mark.parametrize("text", [
    "{", '{"AcmeDir": "/tmp",}', "{'AcmeDir': '/tmp'}", b"", b"{\"AcmeDir\": \"/t", b"[]", b"null",
    pytest.param(b'"text"', marks=pytest.mark.core), b"5", b"\xff\xfe{\0}\0",
    b'{"AcmeDir": "/tmp\xff"}', "{}}"], ids=str)
def test_malformed(text, run):
    """What is no JSON, or no object, is wrong usage."""
    result = run(text)
    assert result.status == 2
    assert re.fullmatch("E: .*\n", result.err)


def test_missing_file(run):
    """A file that is not there is told of."""
    result = run("no-such.json")
    assert result.status in (1, 2)
    assert re.fullmatch("E: .*(no-such.json|--config-json).*\n", result.err)


@pytest.mark.parametrize("tail", ["}", ",}", ', "Bogus": 1}', ', "EabKid": 5.5}', "", "} --bogus"])
def test_secrets_are_not_told(tail, run):
    """Whatever is wrong with the configuration, the EAB key in it does not get into a log."""
    secret = "VGhpcyBpcyBhIHNlY3JldA"
    text = '{"EabHmacKey": "%s"%s' % (secret, tail)
    for source in (text, text.encode()):
        result = run(source)
        assert result.status != 0
        assert secret not in result.err
