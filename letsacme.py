#!/usr/bin/env python3
r"""Get a certificate from Let's Encrypt, or from another ACME CA, and print it.

For example, in a cron job:

  letsacme.py --account-key account.key --csr domain.csr --renew \
      --acme-dir /var/www/challenges --fullchain-file fullchain.crt

  --account-key FILE     private key of your account with the CA, in PEM
  --csr FILE             your certificate signing request, in PEM
  --config-json JSON     configuration: a JSON file, or the JSON text itself
  --acme-dir DIR         challenge directory of the names without an entry in it
  --cert-file FILE       write the certificate to this file
  --chain-file FILE      write the chain to this file
  --fullchain-file FILE  write both to this file instead of printing them
  --renew                only act if what is in --fullchain-file is due
  --ca, --directory-url URL
                         directory of the CA; /directory if it has no path
  --profile NAME         the CA's certificate profile to ask for
  --contact ADDRESS ...  mail addresses for the account, should it be new
  --eab-kid ID           external account binding, if the CA asks for it, ...
  --eab-hmac-key KEY     ... and its key, which is better kept in a JSON file
  --no-chain             do not print the chain
  --no-cert              do not print the certificate
  --quiet                log errors only
  --force                delete a directory that is in a challenge file's place
  --disable-check        do not fetch the challenge files before the CA does
  --check-port PORT      fetch them from this port instead of 80
  --test                 print a test certificate, leave the output files alone;
                         has no effect beside --ca
  -h, --help, --version  print this, or the version

Running it agrees to the CA's terms of service.
Exit status: 0 issued, 1 failed, 2 wrong usage, 3 nothing was due,
128 + N ended by signal N.
"""
import base64
import contextlib
import hashlib
import hmac
import http.client
import io
import ipaddress
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
import traceback
import types
import urllib.request  # and urllib.error
from email.utils import formatdate, mktime_tz, parsedate_tz

VERSION = '2.0.0'
LETS_ENCRYPT = 'https://acme-v02.api.letsencrypt.org/directory'
LETS_ENCRYPT_STAGING = 'https://acme-staging-v02.api.letsencrypt.org/directory'
# {'--ca': 'URL', '--renew': '', ...}: what stands above, by option; '' if it takes no value
OPTIONS = dict(re.findall(r'^  (--[a-z-]+)(?:, --[a-z-]+)?(?: ([A-Z]+))?', __doc__, re.M))
WELL_KNOWN = '/.well-known/acme-challenge'
USER_AGENT = {'User-Agent': f'letsacme/{VERSION}'}
MOST_BYTES = 1000000  # of a file or an answer
ANSWER_TIMEOUT = 40  # in seconds, as all times; smallstep's CA takes 30 for a failed challenge
REQUEST_PATIENCE = 120  # with a CA that is down, busy or silent
WORK_PATIENCE = 600  # with a validation or an issuance
DOUBT_PATIENCE, SLOW_AFTER = 10, 4  # with a validation: if the CA complains; to look at names
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_POLL_PAUSE, LONGEST_RUN = 0.25, 5, 30, 3600
TEMPORARY = []  # paths of files that are removed at the end

# ---- The story of getting a certificate

def main(argv):
    """Run letsacme with these arguments; return the exit status."""
    os.umask(0o022)  # since the web server has to read the challenge files
    status = 2  # until the settings are read, what is wrong is the usage
    try:
        end_on_signals()
        settings = read_settings(argv)
        status = 1
        return run(settings)
    except Exception as error:
        lines = error.args
        if not isinstance(error, Error):
            place = traceback.extract_tb(error.__traceback__)[-1]
            lines = [f'a mistake in letsacme, please report it: {place.name}, line {place.lineno}']
        for line in lines:
            log(f'E: {line}')
        return status
    finally:
        remove(*TEMPORARY)

def run(settings):
    """Get the certificate, if it is wanted now, and deliver it; return the exit status."""
    csr = SigningRequest(settings.csr)
    log(f'letsacme {VERSION}, {formatdate(usegmt=True)}{settings.mode}: {" ".join(csr.names)}')
    if settings.mode:
        log('W: test mode: the output files are left alone')
    log('Parsing account key...')
    key = AccountKey(settings.account_key)
    require(key.public_key != csr.public_key, f'{settings.csr} has the account key, not its own')
    directories = {name: challenge_directory(name, settings) for name in csr.names}
    outputs = check_outputs(settings)
    with contextlib.closing(CA(settings.ca, key)) as ca:
        old = read_old(settings.fullchain_file) if settings.renew else None
        if old and not is_due(ca, csr, old, outputs):
            return 3
        register(ca, settings)
        order = place_order(ca, csr, old, settings.profile)
        order_url = order.location()
        if order['status'] == 'pending':
            challenges = prove(ca, order, directories, settings)
            order = validate(ca, order_url, challenges)
        log(f'Signing certificate...{settings.mode}')
        chain = issue(ca, order_url, order, csr)
    deliver(chain, {} if settings.mode else outputs, settings)
    return 0

def register(ca, settings):
    """Find the account of the key or make one, and sign with it from now on (RFC 8555, 7.3)."""
    log(f'Registering account...{settings.mode}')
    url = ca.directory()['newAccount']
    account = {'termsOfServiceAgreed': True, 'contact': settings.contact}
    # A pair for external account binding may be good for one use, so it is not sent at first.
    answer = ca.ask(url, {'onlyReturnExisting': True} if settings.eab_kid else account)
    if settings.eab_kid and answer.problem in ('accountDoesNotExist', 'externalAccountRequired'):
        secret = base64.urlsafe_b64decode(settings.eab_hmac_key + '==')
        protected = {'alg': 'HS256', 'kid': settings.eab_kid, 'url': url}  # RFC 8555, 7.3.4
        binding = jws(protected, ca.key.jwk, lambda data: hmac.new(secret, data, 'sha256').digest())
        answer = ca.ask(url, dict(account, externalAccountBinding=binding))
    ca.signer = {'kid': answer.accepted().location()}
    terms = [f'{meta.get("termsOfService", "")}' for meta in ca.directory().objects('meta')]
    log(f'  {answer.location()}, terms of service: {"".join(terms) or "none"}')

def place_order(ca, csr, old, profile):
    """Return a new order (RFC 8555, 7.4), which may replace an old certificate (RFC 9773, 5)."""
    order = {'identifiers': list(csr.names.values())}
    if profile:
        order['profile'] = profile
    if old and old.renewal_id and ca.directory().get('renewalInfo'):
        answer = ca.ask(ca.directory()['newOrder'], dict(order, replaces=old.renewal_id))
        if answer.code // 100 != 4 or answer.code == 429 or answer.problem == 'rateLimited':
            return answer.accepted()
        log(f'W: ordering again without "replaces": {answer.words()}')
    return ca.ask(ca.directory()['newOrder'], order).accepted()

def prove(ca, order, directories, settings):
    """Put a challenge file in place for each name that is not valid yet, and fetch it as the CA is
    going to (RFC 8555, 7.5 and 8.3). Return {name: (URL of authorization, URL of challenge)}; raise
    Error if anything is wrong."""
    challenges, failures = {}, []
    for url in order['authorizations']:
        authorization = ca.read(url)
        name = authorization['identifier']['value'].lower()
        require(name in directories, f'the CA wants a proof for {name}, which was not ordered')
        if authorization['status'] == 'valid':
            log(f'Already verified: {name}, skipping...')
            continue
        log(f'Verifying {name}...')
        offered = {f'{each.get("type")}': each for each in authorization.objects('challenges')}
        kinds = ', '.join(offered) or 'nothing'
        require('http-01' in offered, f'{name}: the CA offers no http-01, but {kinds}')
        token = offered['http-01']['token']
        # An unsafe one must not become a part of a path.
        require(re.fullmatch('[A-Za-z0-9_-]{22,200}', token), f'{name}: unsafe token {token:.300}')
        path = os.path.join(directories[name], token)
        content = f'{token}.{ca.key.thumbprint}'
        publish(path, content, settings.force)
        if not settings.disable_check:
            failures += self_check(name, path, content, settings.check_port)
        challenges[name] = url, offered['http-01']['url']
    require(not failures, *failures)
    return challenges

def publish(path, content, force):
    """Write a challenge file; raise Error if that cannot be done."""
    with about(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if force and os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)  # does nothing to a link
        remove(path)
        require(not os.path.isdir(path), 'a directory is in its place, which --force deletes')
        TEMPORARY.append(path)
        with open(path, 'x') as file:  # which never opens what is there, be it a link
            file.write(content)

def self_check(name, path, content, port):
    """Fetch a name's challenge file as the CA is going to; return a list of what is wrong."""
    host = f'[{name}]' if ':' in name else name
    host += f':{port}' if port else ''
    request = urllib.request.Request(
        f'http://{host}{WELL_KNOWN}/{os.path.basename(path)}', headers=USER_AGENT)
    # A redirect may lead to a certificate that has expired.
    tls = urllib.request.HTTPSHandler(context=ssl._create_unverified_context())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), tls)
    try:
        with opener.open(request, timeout=ANSWER_TIMEOUT) as answer:
            found = answer.read(MOST_BYTES).rstrip().decode('utf-8', 'replace')
        require(found == content, f'something else is there: {found:.80}')
        return []
    except (Error, *NETWORK_TROUBLE) as error:
        trouble = reason(error)
    for target in getattr(request, 'redirect_dict', []):  # where urllib has noted them
        trouble += f', after a redirect to {target}'
    return [f"Wrote file to {path}, but couldn't download {request.full_url}: {trouble}"]

def validate(ca, order_url, challenges):
    """Have the CA validate all names; return the order after that (RFC 8555, 7.5.1). Raise Error if
    it cannot, which CAs show in the answer to a challenge, the authorization or the order."""
    complaints = answer_challenges(ca, challenges)
    with about('; '.join(complaints.values())):  # if there are any, and no more words come
        order = await_validation(ca, order_url, challenges, bool(complaints))
        verified = order['status'] in ('ready', 'processing', 'valid')
        failures = [] if verified else list_failures(ca, order, challenges, complaints)
    require(verified, *failures)
    log('  Verified!')
    return order

def answer_challenges(ca, challenges):
    """Tell the CA that the files are there (RFC 8555, 7.5.1); return its complaints by name. The
    order decides all the same, but gets little time then to show that all is well."""
    complaints = {}
    for name, (_, url) in challenges.items():
        try:
            answer = ca.ask(url, {})
            require(answer.code < 500, f'{answer.url}: {answer.refusal()}')
        except Error as error:  # if the CA is down, the other challenges would take as long
            complaints[name] = f'{name}: {error}'
            break
        if answer.has_failed():
            complaints[name] = f'{name}: {answer.refusal()}'
    return complaints

def await_validation(ca, order_url, challenges, in_doubt):
    """Return the order once it is not pending, or a name has failed, or patience is at its end."""
    waiting = [url for url, _ in challenges.values()]
    started, order = time.monotonic(), ca.read(order_url)
    for pause in pauses(DOUBT_PATIENCE if in_doubt else WORK_PATIENCE, FIRST_PAUSE):
        if order['status'] != 'pending':
            break
        # Some CAs show a failure in the authorization alone.
        look = in_doubt or time.monotonic() - started > SLOW_AFTER
        while look and waiting:
            authorization = ca.read(waiting[0])
            if authorization['status'] != 'valid':
                break
            del waiting[0]
        if look and waiting and authorization.has_failed():
            break
        time.sleep(pause if in_doubt else max(pause, order.poll_pause()))
        order = ca.read(order_url)
    return order

def list_failures(ca, order, challenges, complaints):
    """Return a line for each name that is not valid: the first complaint, and how it stands."""
    lines = []
    for name, (url, _) in challenges.items():
        authorization = ca.read(url)
        before = f'{complaints[name]}; then ' if name in complaints else ''
        if authorization['status'] != 'valid' or before:
            lines.append(before + authorization.words())
    if 'error' in order or not lines:
        lines.append(f'{order.url}: {order.words()}')
    return lines

def issue(ca, order_url, order, csr):
    """Return the certificate that the CA issues for an order (RFC 8555, 7.4), and its chain."""
    complaint = ''
    if order['status'] == 'ready':
        order = ca.ask(order['finalize'], {'csr': b64(csr.der)})
        if order.code >= 300:  # perhaps since an earlier try got through: the order decides
            complaint = f'{order.refusal()}; then '
            with about(f'{order_url}: {order.refusal()}'):
                order = ca.read(order_url)
    for pause in pauses(WORK_PATIENCE):
        incomplete = order['status'] == 'valid' and not order.get('certificate')
        if order['status'] != 'processing' and not incomplete:
            break
        time.sleep(max(pause, order.poll_pause()))
        order = ca.read(order_url)
    require(order['status'] == 'valid', f'{order_url}: {complaint}{order.words()}')
    chain = read_certificates(ca.read(order['certificate']).body, order['certificate'])
    require(chain[0].public_key == csr.public_key, 'the CA sent a certificate for another key')
    missing = sorted(csr.names.keys() - chain[0].names.keys())
    require(not missing, f'the CA sent a certificate without {", ".join(missing)}')
    log('  Certificate signed!')
    return chain

def deliver(chain, outputs, settings):
    """Write the output files, and print what is to be printed."""
    pem = [ssl.DER_cert_to_PEM_cert(each.der) for each in chain]
    contents = {'cert_file': pem[:1], 'chain_file': pem[1:], 'fullchain_file': pem}
    write_outputs({path: ''.join(contents[option]).encode() for option, path in outputs.items()})
    if 'fullchain_file' not in outputs:
        printed = ([] if settings.no_cert else pem[:1]) + ([] if settings.no_chain else pem[1:])
        with about('standard output'), open(1, 'wb', closefd=False) as output:
            output.write(''.join(printed).encode())
    log(f'The certificate is valid until {formatdate(chain[0].ends, usegmt=True)}')

# ---- Renewal

def read_old(path):
    """Return the certificate in a file, None if there is none of use."""
    with contextlib.suppress(Error):
        old = read_certificates(read_file(path), path)[0]
        return None if old.self_signed or old.ends <= time.time() else old
    return None

def is_due(ca, csr, old, outputs):
    """Return whether a certificate is to be renewed now; each run finds the same moment for it."""
    complete = all(os.path.exists(path) and (option == 'chain_file' or os.path.getsize(path))
                   for option, path in outputs.items())
    if csr.names.keys() - old.names.keys() or csr.public_key != old.public_key or not complete:
        log('Due for renewal: now, since another key, name or output file is wanted')
        return True
    lifetime = old.ends - old.starts
    moment = old.ends - lifetime / (2 if lifetime < 10 * 86400 else 3)
    try:
        if ca.directory().get('renewalInfo') and old.renewal_id:  # RFC 9773, 4.2
            url = f'{ca.directory()["renewalInfo"].rstrip("/")}/{old.renewal_id}'
            window = ca.ask(url, method='GET').accepted()['suggestedWindow']
            start, end = read_time(window['start']), read_time(window['end'])
            require(start < end, f'{url}: the window ends before it starts')
            # The second half is left for another try: a CA lifts its limits in the window only.
            share = int(hashlib.sha256(old.der).hexdigest()[:8], 16) / 2 ** 32
            moment = min(start + share * (end - start) / 2, old.ends - lifetime / 10)
    except Error as error:
        log(f'W: no renewal information, so the lifetime decides: {error}')
    log(f'Due for renewal: {formatdate(moment, usegmt=True)}')
    return moment <= time.time()

# ---- The CA

class CA:
    """The CA: its directory, the connections to it, and what signing a request takes."""

    def __init__(self, url, key):
        self.url, self.key, self.signer = url, key, {'jwk': key.jwk}  # until there is an account
        self.known_directory, self.nonce, self.connections = None, None, {}
        with about('SSL_CERT_FILE or SSLKEYLOGFILE'):
            self.tls = ssl.create_default_context()  # SSL_CERT_FILE: the root of a private CA

    def directory(self):
        """Return the CA's directory (RFC 8555, 7.1.1), fetched once; raise Error if it is none."""
        if not self.known_directory:
            answer = self.ask(self.url, method='GET')
            if answer.code >= 500 or answer.code == 429:
                answer.accepted()
            found = f'{answer.words()}: {answer.beginning}'
            require('newOrder' in answer, f'{self.url} is no directory of an ACME CA: {found}')
            self.known_directory = answer
        return self.known_directory

    def read(self, url):
        """Return what is at a URL (POST-as-GET: RFC 8555, 6.3); raise Error if it is refused."""
        return self.ask(url).accepted()

    def ask(self, url, payload=None, method='POST'):
        """Return the CA's answer, be it a refusal, to a request that is repeated while trouble may
        pass. If it does not pass, that is the answer: see send()."""
        reached, told, earlier, end = True, False, '', time.monotonic() + REQUEST_PATIENCE
        for tries, pause in enumerate(pauses(REQUEST_PATIENCE)):
            if method == 'POST' and not self.nonce:  # by a HEAD, which needs none itself
                answer = self.ask(self.directory()['newNonce'], method='HEAD')
                if answer.code >= 300:
                    return answer
                require(self.nonce, f'{answer.url}: the answer has no Replay-Nonce')
            if not reached:  # the CA may close each connection in silence, that of the nonce too
                self.close()
            answer = self.send(method, url, self.sign(url, payload) if method == 'POST' else None)
            reached = answer.code != UNREACHED.status
            if answer.problem == 'badNonce' and answer.code < 429 and tries < 100:
                continue  # at once, with the nonce that came with the refusal
            after = answer.retry_after()
            if answer.code < 500 and (answer.code != 429 or after is None):
                answer.earlier = earlier
                return answer
            left, wait, words = end - time.monotonic(), max(pause, after or 0), answer.words()
            if wait >= left:
                return answer
            if wait and (pause == FIRST_PAUSE or not told):  # not if it was just idle
                log(f'W: {url}: {words}; trying again for {left:.0f} s')
                told = True
            earlier = earlier or (f'{words}; then ' if reached else '')
            time.sleep(wait)
        return answer

    def send(self, method, url, body):
        """Return the answer to one request, or one with the status of UNREACHED and in words what
        kept it from coming; raise Error if that is not going to pass."""
        match = re.fullmatch(r'https://((?:[\w.-]+|\[[\w:]+\])(?::[0-9]+)?)(/[!-~]*)', url, re.A)
        require(match, f'{url} is no https URL, so nothing is sent there')
        host, path = match.groups()
        # Some servers refuse a GET that has a type.
        headers = {**USER_AGENT, 'Content-Type': 'application/jose+json'} if body else USER_AGENT
        connection = self.connections.setdefault(host, http.client.HTTPSConnection(
            host, timeout=ANSWER_TIMEOUT, context=self.tls))  # which is opened by a request
        try:
            connection.request(method, path, body, headers)
            with contextlib.closing(connection.getresponse()) as response:
                content = response.read(MOST_BYTES + 1)
            require(len(content) <= MOST_BYTES, f'{url}: the answer exceeds {MOST_BYTES} bytes')
            if response.length:
                raise http.client.IncompleteRead(content)
        except NETWORK_TROUBLE as error:
            # A bad certificate (Python 3.6 says so in words only), or a URL that cannot be one
            final = isinstance(error, (ValueError, OverflowError))
            final = final or 'CERTIFICATE_VERIFY_FAILED' in str(error)
            require(not final, f'{url}: {reason(error)}')
            return Answer({'detail': reason(error)}, url, UNREACHED, b'')
        nonce = response.getheader('Replay-Nonce', '')
        self.nonce = nonce if re.fullmatch('[A-Za-z0-9_-]+', nonce) else None
        return read_answer(url, response, content)

    def sign(self, url, payload):
        """Return the body of a signed request (RFC 8555, 6.2 to 6.5), and use up the nonce."""
        protected = dict(self.signer, alg=self.key.algorithm, nonce=self.nonce, url=url)
        self.nonce = None
        return compact_json(jws(protected, payload, self.key.sign))

    def close(self):
        """Close all connections; a request opens its own again."""
        for connection in self.connections.values():
            connection.close()

UNREACHED = types.SimpleNamespace(status=599, headers={})  # stands in for a response

def pauses(seconds, pause=0):
    """Yield the pauses before further looks or tries, which grow, until so many seconds are over.
    The first is often none: the CA may be ready, or an idle connection just have been closed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield pause
        pause = min(max(1.3 * pause, FIRST_PAUSE), LONGEST_PAUSE)

class Answer(dict):
    """The JSON object in an answer of the CA, or one inside of it, and what came with it. With []
    a field must be there and of its type; get() and objects() take what there is."""

    KINDS = {'authorizations': list, 'identifier': dict, 'suggestedWindow': dict}  # else text

    def __init__(self, fields, url, response, body):
        super().__init__(fields)
        self.url, self.code, self.headers, self.body = url, response.status, response.headers, body
        self.beginning = body[:200].decode('utf-8', 'replace')
        self.earlier = ''  # what the CA has said to earlier tries
        self.problem = f'{self.get("type")}'.rpartition(':')[2]  # RFC 8555, 6.7

    def __getitem__(self, field):
        """Return a field; raise Error if it is missing or of another type."""
        value = self.get(field)
        good = isinstance(value, self.KINDS.get(field, str))
        if isinstance(value, list):  # of URLs
            good = good and all(isinstance(url, str) for url in value)
        require(good, f'{self.url}: the answer has no usable "{field}": {self.beginning}')
        return value

    def location(self):
        """Return the URL of what was made or found; raise Error if the CA has not told it."""
        url = self.headers.get('Location', '')
        good = url.startswith('https://')
        require(good, f'{self.url}: the answer has no usable "Location": {self.beginning}')
        return url

    def objects(self, field):
        """Return the objects in a field, which may hold one, a list of them, or neither."""
        value = self.get(field)
        values = value if isinstance(value, list) else [value]
        return [each for each in values if isinstance(each, Answer)]

    def has_failed(self):
        """Return whether this, or a challenge in it, shows that a validation failed."""
        return (self.code >= 300
                or self.get('status') in ('invalid', 'expired', 'deactivated', 'revoked')
                or self.get('status') == 'pending' and 'error' in self  # smallstep's CA
                or any(each.has_failed() for each in self.objects('challenges')))

    def words(self):
        """Return a problem (RFC 8555, 6.7), an order, authorization or challenge in words."""
        known = [self.get(field) for field in ('detail', 'type', 'status')]
        words = ', '.join(each for each in known if isinstance(each, str))
        names = [f'{each.get("value")}: ' for each in self.objects('identifier')]
        words = words or f'HTTP status {self.get("status", self.code)}'
        parts = [self.earlier + ''.join(names) + words]
        for each in [self] + self.objects('challenges'):
            parts += [part.words() for part in each.objects('error') + each.objects('subproblems')]
        return '; '.join(parts)[:4000]

    def accepted(self):
        """Return the answer; raise Error if it is a refusal."""
        require(self.code // 100 == 2, f'{self.url}: {self.refusal()}')
        return self

    def refusal(self):
        """Return in words what the CA has refused, and when to come back if it says that."""
        after = self.retry_after()
        if not after or self.code < 400:
            return self.words()
        return f'{self.words()}; come back after {formatdate(time.time() + after, usegmt=True)}'

    def retry_after(self):
        """Return the seconds that the CA wants to pass (RFC 9110, 10.2.3), None if not told."""
        value = self.headers.get('Retry-After', '')
        if re.fullmatch('[0-9]{1,9}', value):
            return int(value)
        with contextlib.suppress(Exception):  # the Pythons differ about a date that is none
            return min(max(0, mktime_tz(parsedate_tz(value)) - time.time()), 10 ** 9)
        return None

    def poll_pause(self):
        """Return for how many seconds not to look again: some CAs ask for hours."""
        return min(self.retry_after() or 0, LONGEST_POLL_PAUSE)

def read_answer(url, response, body):
    """Return the Answer in a response; without a JSON object it has no fields."""
    value = None
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(body, object_hook=lambda fields: Answer(fields, url, response, body))
    return value if isinstance(value, Answer) else Answer({}, url, response, body)

# ---- The account key, and JOSE

class AccountKey:
    """The account key: its public half as a JWK; only openssl reads the private one."""

    def __init__(self, path):
        self.path = path
        with about(path):
            open(path).close()  # since openssl has no good words for a file that is missing
            public = self.openssl(b'', 'pkey', '-pubout', '-outform', 'DER', '-in', path)
            [(_, self.public_key)] = elements(public)
            # RFC 5280, 4.1.2.7; the first byte of the bits counts the unused ones.
            *identifiers, bits = [content for _, content in leaves(public)]
            if identifiers[0] == RSA:
                n, e = [b64(number.lstrip(b'\0')) for _, number in leaves(bits[1:])]
                self.algorithm, self.jwk = 'RS256', {'kty': 'RSA', 'n': n, 'e': e}
            else:
                require(identifiers[-1] in CURVES and bits[1:2] == UNCOMPRESSED,
                        'it must be RSA, P-256 or P-384; "openssl genrsa 4096" makes one')
                curve, self.algorithm, self.size = CURVES[identifiers[-1]]
                x, y = b64(bits[2:2 + self.size]), b64(bits[2 + self.size:])
                self.jwk = {'kty': 'EC', 'crv': curve, 'x': x, 'y': y}
        self.thumbprint = b64(hashlib.sha256(compact_json(self.jwk)).digest())  # RFC 7638

    def openssl(self, data, *arguments):
        """Return what an openssl command gives for data; raise Error if it fails."""
        require(shutil.which('openssl'), 'the command openssl is missing: please install it')
        command = ['openssl', *arguments, '-passin', 'pass:none']  # lest it asks for a password
        done = subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        words = done.stderr.decode('utf-8', 'replace').partition('\n')[0]
        require(done.returncode == 0,
                f'no private key in PEM without a password; openssl says: {words:.300}')
        return done.stdout

    def sign(self, data):
        """Return the signature of data as JWS has it (RFC 7518, 3.3 and 3.4)."""
        with about(self.path):
            signature = self.openssl(data, 'dgst', f'-sha{self.algorithm[2:]}', '-sign', self.path)
            if self.algorithm == 'RS256':
                return signature
            return b''.join(n.lstrip(b'\0').rjust(self.size, b'\0') for _, n in leaves(signature))

def jws(protected, payload, sign):
    """Return a signed JSON object (RFC 7515, 7.2.2), whose payload is empty if it is None."""
    head = b64(compact_json(protected))
    body = '' if payload is None else b64(compact_json(payload))
    return {'protected': head, 'payload': body, 'signature': b64(sign(f'{head}.{body}'.encode()))}

def b64(data):
    """Return bytes in base64url without padding (RFC 7515, 2)."""
    return base64.urlsafe_b64encode(data).decode().rstrip('=')

def compact_json(value):
    """Return JSON in bytes, sorted and without spaces, as thumbprints need it (RFC 7638, 3)."""
    return json.dumps(value, sort_keys=True, separators=(',', ':')).encode()

# ---- Requests and certificates: PEM (RFC 7468) and DER (X.690)

BOOLEAN, OBJECT_ID, CONSTRUCTED, VERSION_FIELD = 0x01, 0x06, 0x20, 0xa0  # tags, or a bit of them
KEY_IDENTIFIER, DNS_NAME, IP_ADDRESS = 0x80, 0x82, 0x87
RSA = bytes.fromhex('2a864886f70d010101')  # 1.2.840.113549.1.1.1
# 2.5.4.3, 2.5.29.17 and 2.5.29.35
COMMON_NAME, ALT_NAMES, AUTHORITY_KEY = map(bytes.fromhex, ('550403', '551d11', '551d23'))
CURVES = {bytes.fromhex('2a8648ce3d030107'): ('P-256', 'ES256', 32),  # 1.2.840.10045.3.1.7
          bytes.fromhex('2b81040022'): ('P-384', 'ES384', 48)}  # 1.3.132.0.34; bytes in a number
UNCOMPRESSED = b'\x04'  # RFC 5480, 2.2
HOST_NAME = re.compile(r'([a-z0-9_-]+\.)*[a-z][a-z0-9-]*\Z')

# A request is [[version, subject, public key, attributes], algorithm, signature], a certificate
# [[version, serial, algorithm, issuer, [start, end], subject, public key, ...], algorithm, ...],
# and an extension in them [identifier, critical or nothing, bytes that are DER again].

class SigningRequest:
    """The CSR in a file (RFC 2986, 4): its DER, its public key, and its names as identifiers."""

    def __init__(self, path):
        with about(path):
            self.der, *more = read_pem(read_file(path), 'CERTIFICATE REQUEST')
            require(not more, 'holds more than one certificate signing request')
            [(_, request)] = elements(self.der)
            (_, information), *_ = elements(request)
            _, (_, subject), (_, self.public_key), *_ = elements(information)
            self.names = alt_names(self.der)
            for value in values_of(COMMON_NAME, subject):
                name = value.decode('latin-1')
                if '.' in name and HOST_NAME.match(name.lower().replace('*.', '')):
                    self.names.setdefault(name.lower(), {'type': 'dns', 'value': name})
            require(self.names, 'asks for no name at all; it needs a subjectAltName')
            for name, identifier in self.names.items():
                require('*' not in name, f'asks for {name}, a wildcard: take lego, for dns-01')
                host = identifier['type'] == 'dns' and HOST_NAME.match(name)
                require(host or identifier['type'] == 'ip', f'asks for "{name}", no DNS name or IP')

class Certificate:
    """A certificate (RFC 5280, 4.1) in DER; Error, ValueError or the like if it is none."""

    def __init__(self, der):
        self.der = der
        [(_, certificate)] = elements(der)
        (_, signed), *_ = elements(certificate)
        fields = [content for tag, content in elements(signed) if tag != VERSION_FIELD]
        serial, _, issuer, validity, subject, self.public_key, *_ = fields
        self.self_signed = issuer == subject
        self.names = alt_names(der)
        self.starts, self.ends = [read_time(stamp.decode()) for _, stamp in elements(validity)]
        key = dict(leaves(b''.join(values_of(AUTHORITY_KEY, der)))).get(KEY_IDENTIFIER)
        self.renewal_id = f'{b64(key)}.{b64(serial)}' if key else None  # RFC 9773, 4.1

def read_certificates(data, source):
    """Return the certificates in PEM data; raise Error if there is none, or anything else."""
    with about(source):
        return [Certificate(der) for der in read_pem(data, 'CERTIFICATE')]

def read_pem(data, label):
    """Return the DER in each block of PEM data; raise Error if there is none, or another label."""
    pattern = '-----BEGIN (?:NEW )?([A-Z0-9 ]*)-----(?:([^-]+)-----END )?'
    found = re.findall(pattern, data.decode('latin-1'))
    labels = ', '.join(sorted({each for each, _ in found})) or 'something else'
    require(labels == label, f'no {label} in PEM, but {labels}')
    return [base64.b64decode(block) for _, block in found]

def alt_names(der):
    """Return the identifiers (RFC 8555, 9.7.7) in a SubjectAltName, by name in small letters."""
    names = {}
    for value in values_of(ALT_NAMES, der):
        [(_, entries)] = elements(value)
        for tag, content in elements(entries):
            kind = 'dns' if tag == DNS_NAME else 'ip' if tag == IP_ADDRESS else 'other'
            name = str(ipaddress.ip_address(content)) if kind == 'ip' else content.decode('latin-1')
            names[name.lower()] = {'type': kind, 'value': name}
    return names

def values_of(identifier, data):
    """Return what follows each such object identifier in DER data, "critical" aside."""
    found = [leaf for leaf in leaves(data) if leaf[0] != BOOLEAN]
    pairs = zip(found, found[1:])
    return [value for leaf, (_, value) in pairs if leaf == (OBJECT_ID, identifier)]

def leaves(data):
    """Return tag and content of each element of DER data that holds no others, in their order."""
    found = []
    for tag, content in elements(data):
        found += leaves(content) if tag & CONSTRUCTED else [(tag, content)]
    return found

def elements(data):
    """Return tag and content of each element of DER data (X.690, 8.1); raise Error if it is cut."""
    found, stream = [], io.BytesIO(data)
    while stream.tell() < len(data):
        tag, length = stream.read(2)
        if length > 127:  # then it is the length of the length
            length = int.from_bytes(stream.read(length - 128), 'big')
        content = stream.read(length)
        require(len(content) == length, 'DER that is cut short')
        found.append((tag, content))
    return found

def read_time(text):
    """Return the seconds since 1970 at a time in UTC, as it stands in certificates (RFC 5280,
    4.1.2.5) or in renewal information (RFC 3339); raise Error if it is none."""
    with about(f'{text:.40} as a time in UTC'):
        [stamp] = re.findall(r'([^.]*[0-9])(?:\.[0-9]+)?(?:Z|\+00:00)\Z', text.upper())
        digits = re.sub('[-:T]', '', stamp)
        form = '%Y%m%d%H%M%S' if len(digits) == 14 else '%y%m%d%H%M%S'
        return mktime_tz((*time.strptime(digits, form), 0))

# ---- Files

# An output is replaced: a new file, of the same owner and mode, is written beside it and takes its
# place in one step. Where that cannot be done, the file itself is overwritten. may_be_replaced()
# tells which, before the CA is asked and again when it is done; what it cannot foresee is that root
# lacks the power to give files away, which write_beside() tells.

# Certificates in PEM and nothing else; the last one may be cut, as by a crash
CERTIFICATES = (rb'\s*(-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]*'
                rb'(-----END CERTIFICATE-----\s*)?)*(-[A-Z -]*)?')

def challenge_directory(name, settings):
    """Return the directory for a name's challenge file; raise Error if it cannot be used."""
    twin = name[4:] if name.startswith('www.') else f'www.{name}'
    find = settings.directories.get
    path = (find(name) or find(twin) or find('') or '').rstrip('/')
    require(path, f'{name}: there is neither "{name}" in --config-json nor an --acme-dir')
    root = path[:-len(WELL_KNOWN)] or '/' if path.endswith(WELL_KNOWN) else path
    require(os.path.isdir(root), f'{name}: there is no directory {root}')
    # What is missing below a document root is made later.
    present = next(filter(os.path.lexists, (path, os.path.dirname(path), root)))
    require(os.access(present, os.W_OK | os.X_OK),
            f'{name}: {present} may not be written by this user')
    return path

def check_outputs(settings):
    """Return the real paths of the outputs by option; raise Error unless each may be written, with
    nothing in it that would be a loss."""
    outputs = {}
    for option in ('cert_file', 'chain_file', 'fullchain_file'):  # what --renew reads comes last
        if getattr(settings, option):
            path = os.path.realpath(getattr(settings, option))
            require(path not in outputs.values(), f'{path} cannot be two outputs at once')
            require(os.path.isdir(os.path.dirname(path)), f'{path}: there is no such directory')
            if os.path.lexists(path):
                require(os.path.isfile(path), f'{path} is not a file')
                require(re.fullmatch(CERTIFICATES, read_file(path)),
                        f'{path} holds something else than certificates: it is not overwritten')
            require(may_be_replaced(path) or os.access(path, os.W_OK),
                    f'{path} may not be written by this user')
            outputs[option] = path
    return outputs

def may_be_replaced(path):
    """Return whether a new file, of the same owner and group, can take the place of a file."""
    if not os.access(os.path.dirname(path), os.W_OK | os.X_OK) or is_mounted(path):
        return False
    if not os.path.exists(path):
        return True
    if os.geteuid() == 0:
        return os.access(path, os.W_OK)  # or it is immutable, even for root
    old = os.stat(path)
    return old.st_uid == os.geteuid() and old.st_gid in (os.getegid(), *os.getgroups())

def is_mounted(path):
    """Return whether a file is a mount point, as in a container, so that nothing can replace it."""
    with contextlib.suppress(OSError), open('/proc/self/mountinfo', 'rb') as mounts:
        # os.path.ismount() misses those from the same file system.
        return os.fsencode(path.replace(' ', '\\040')) in mounts.read().split()
    return os.path.ismount(path)

def write_outputs(contents):
    """Write files (bytes by path): first new ones beside all that can be replaced, then each takes
    its place in one step; the others are overwritten."""
    new = {path: write_beside(path, contents[path]) for path in filter(may_be_replaced, contents)}
    for path, content in contents.items():
        with about(path):
            if new.get(path):
                os.rename(new[path], path)
            else:
                log(f'W: {path} is overwritten, since it cannot be replaced in one step')
                # A link or a pipe that has come into its place is an error.
                write_file(path, os.O_NOFOLLOW | os.O_NONBLOCK, content, None)
            log(f'Written: {path}')

def write_beside(path, content):
    """Write a new file beside an output, of the old one's owner and mode, and return its path; None
    if the owner cannot be given."""
    beside = os.path.join(os.path.dirname(path), f'.letsacme-{os.urandom(4).hex()}')
    TEMPORARY.append(beside)
    with about(path):
        old = os.stat(path) if os.path.exists(path) else None
        try:
            write_file(beside, os.O_CREAT | os.O_EXCL, content, old)
            return beside
        except PermissionError:
            return None

def write_file(path, flags, content, old):
    """Write a file, to the disk, with the owner and mode of an old one if there is one."""
    with open(os.open(path, os.O_WRONLY | flags, 0o666), 'wb') as file:
        if old:
            os.chown(file.fileno(), old.st_uid, old.st_gid)
            os.chmod(file.fileno(), old.st_mode & 0o7777)
        file.write(content)
        file.truncate()  # what is left of a longer file; it also flushes
        os.fsync(file.fileno())

def read_file(path):
    """Return the bytes of a file, up to MOST_BYTES; raise Error if it cannot be read."""
    with about(path), open(path, 'rb') as file:
        data = file.read(MOST_BYTES + 1)
        require(len(data) <= MOST_BYTES, f'has more than {MOST_BYTES} bytes')
        return data

def remove(*paths):
    """Remove files as far as that can be done."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.remove(path)

# ---- Settings

# {'AccountKey': '--account-key', ...}
KEYS = {name.title().replace('-', ''): name for name in OPTIONS}
KEYS.update({'CA': KEYS.pop('Ca'), 'CSR': KEYS.pop('Csr')})

def read_settings(argv):
    """Return what the command line and its configuration want; raise Error if that is wrong."""
    if not argv or {'-h', '--help', '--version'} & {*argv}:
        words = VERSION if '--version' in argv else __doc__.rstrip()
        with about('standard output'):
            print(words, file=sys.stdout if argv else sys.stderr, flush=True)
        sys.exit(0 if argv else 2)
    given = read_command_line(argv)
    configured, named = read_configuration(given.get('--config-json', '{}'))
    options = {**dict.fromkeys(OPTIONS, ''), '--ca': LETS_ENCRYPT, **configured, **given}
    settings = types.SimpleNamespace(**{key[2:].replace('-', '_'): options[key] for key in options})
    settings.directories = {**named, '': settings.acme_dir or named.get('')}
    log.quiet, settings.mode = settings.quiet, ''
    if settings.test and '--ca' in given:
        log('W: --test has no effect beside --ca')
    elif settings.test:
        settings.mode, settings.ca, settings.renew = ' (test mode)', LETS_ENCRYPT_STAGING, False
    settings.ca = re.sub(r'^(https://[^/]+)/?$', r'\1/directory', settings.ca)
    settings.contact = [to if ':' in to else f'mailto:{to}' for to in settings.contact.split()]
    require(settings.account_key and settings.csr, 'both --account-key and --csr are needed')
    require('\n' not in settings.account_key + settings.csr, '--account-key and --csr are paths')
    require(settings.fullchain_file or not settings.renew, '--renew needs a --fullchain-file')
    require(re.fullmatch('[0-9]{0,5}', settings.check_port), '--check-port must be a number')
    base64url = re.fullmatch(r'([\w-]{4})*([\w-]{2,3}=*)?', settings.eab_hmac_key, re.ASCII)
    require(base64url and bool(settings.eab_kid) == bool(settings.eab_hmac_key),
            '--eab-kid and --eab-hmac-key need each other, and the key must be base64url')
    return settings

def read_command_line(argv):
    """Return the values on a command line by option, True for flags; or raise Error."""
    given, words = {}, [*argv]
    while words:
        name, *values = re.sub(r'^--directory-url(?=$|=)', '--ca', words.pop(0)).split('=', 1)
        # A long word may be a key for external account binding, which must not get into a log.
        told = name if re.fullmatch('--[a-z-]+|.{1,15}', name) else '(not shown)'
        require(name in OPTIONS, f'unknown option or word: {told} (-h tells what there is)')
        takes = OPTIONS[name]
        while words and words[0][:2] != '--' and (takes == 'ADDRESS' or takes and not values):
            values.append(words.pop(0))
        require(any(values) == bool(takes), f'{name} {"needs a" if takes else "takes no"} value')
        given[name] = ' '.join(values) or True
    return given

def read_configuration(word):
    """Return the options of a configuration and challenge directories by name; or raise Error."""
    literal = re.search('[{"]|: ', word)  # else it is a file's path, which can be told
    what, data = ('--config-json', word) if literal else (word, read_file(word))
    with about(f'{what} must be a JSON object'):
        fields = {key: value for key, value in json.loads(data).items() if key[:1] != '_'}
    options, directories = {}, {}
    for key, value in fields.items():
        if isinstance(value, dict) and key not in KEYS:
            directories[key.lower()] = directory_in(key, value)
        elif key == 'DocumentRoot':
            directories[''] = directory_in(key, {key: value})  # of all other names
        elif OPTIONS.get(KEYS.get(key)):
            texts = value if key == 'Contact' and isinstance(value, list) else [value]
            texts = [str(value)] if key == 'CheckPort' else texts  # which may be a number
            options[KEYS[key]] = ' '.join(to_path(f'"{key}"', text) for text in texts)
        else:
            require(key in KEYS, f'"{key}" must be {{"DocumentRoot": PATH}}: it is no option')
            require(f'{value}'.lower() in ('true', 'false'), f'"{key}" must be true or false')
            options[KEYS[key]] = f'{value}'.lower() == 'true'
    return options, directories

def directory_in(name, entry):
    """Return the challenge directory in a name's entry; raise Error if that is wrong."""
    paths = {key: path for key, path in entry.items() if key[:1] != '_'}
    good = paths and all(paths.values()) and paths.keys() <= {'AcmeDir', 'DocumentRoot'}
    require(good, f'"{name}" must be {{"DocumentRoot": PATH}} or {{"AcmeDir": PATH}}')
    paths = {key: to_path(f'"{name}": "{key}"', path) for key, path in paths.items()}
    return paths.get('AcmeDir') or paths['DocumentRoot'].rstrip('/') + WELL_KNOWN

def to_path(what, value):
    """Return text from JSON as paths are here (in the C locale, Python 3.6 takes them for ASCII);
    raise Error if it cannot be one, with a NUL in it, half a character, or lines (a key?)."""
    good = isinstance(value, str) and not re.search('[\0\n\ud800-\udc7f\udd00-\udfff]', value)
    require(good, f'{what} must be one line of text')
    return os.fsdecode(value.encode('utf-8', 'surrogateescape'))

# ---- Trouble, words and signals

class Error(Exception):
    """Trouble in words for the person at the keyboard, one line an argument."""

NETWORK_TROUBLE = OSError, http.client.HTTPException, ValueError, OverflowError
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM

def require(condition, *lines):
    """Raise Error with these lines unless the condition holds."""
    if not condition:
        raise Error(*lines)

@contextlib.contextmanager
def about(what):
    """Have trouble in this block become an Error that says, once, what it is about."""
    try:
        yield
    except Exception as error:
        words = reason(error)
        raise Error(words if words.startswith(what) else f'{what}: {words}') from None

def reason(error):
    """Return in words, none of them only Python's, what an exception means."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f'HTTP status {error.code}'
    if isinstance(error, json.JSONDecodeError):
        return f'see line {error.lineno}, column {error.colno}'
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    known = isinstance(cause, (Error, OSError, ssl.CertificateError))
    words = f'{getattr(cause, "strerror", None) or cause}' if known else ''
    words = re.sub(r'\[SSL.*?\] | ?\(?_ssl\.c:[0-9]+[):]* ?', '', words)
    if isinstance(cause, ssl.CertificateError) or 'certificate verify failed' in words:
        words = 'certificate verify failed: ' + words.replace('certificate verify failed: ', '')
        words += ' (SSL_CERT_FILE can name the root certificate of a private CA)'
    return words or 'cut short, or not as it should be'

def log(line):
    """Write a line, with nothing in it to steer a terminal, to stderr; --quiet leaves errors."""
    line = ''.join(letter if letter.isprintable() else '?' for letter in line[:4900])
    if sys.stderr and (line.startswith('E:') or not log.quiet):
        with contextlib.suppress(OSError):  # a full disk under the log must not stop a renewal
            os.write(2, f'{line}\n'.encode())
log.quiet = False

def end_on_signals():
    """Have signals and the hour's alarm end the run and remove the files; ignored ones do not."""
    def stop(number, _):
        """End the run for this signal."""
        for each in SIGNALS:
            signal.signal(each, lambda *_: None)  # for those that are on their way to Python
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # for all others, to the very end
        remove(*TEMPORARY)  # since main() may have been interrupted in doing so
        log('E: an hour is over' if number == signal.SIGALRM else f'E: ended by signal {number}')
        sys.exit(1 if number == signal.SIGALRM else 128 + number)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_RUN)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
