#!/usr/bin/env python
"""Get a certificate from Let's Encrypt, or another ACME CA (RFC 8555), and print it.

  --account-key FILE     the private key of your account with the CA, in PEM
  --csr FILE             your certificate signing request, in PEM
  --config-json JSON     a configuration: a JSON file or the JSON text itself
  --acme-dir DIR         challenge directory for the names that have none in the configuration
  --cert-file FILE       write the certificate to this file
  --chain-file FILE      write the chain to this file
  --fullchain-file FILE  write certificate and chain to this file instead of printing them
  --renew                only act if the certificate in --fullchain-file is due for renewal
  --ca, --directory-url URL  directory of the CA; to a URL without a path, /directory is added
  --profile NAME         the CA's certificate profile to ask for
  --contact ADDRESS ...  mail addresses for the account, should it be new
  --eab-kid ID           key identifier for external account binding, if the CA asks for that
  --eab-hmac-key KEY     its key in base64url; the configuration is the better place for it
  --no-chain             do not print the chain
  --no-cert              do not print the certificate
  --quiet                log errors only
  --force                delete a directory that has the name of a challenge file
  --disable-check        do not fetch the challenge files before the CA does
  --check-port PORT      fetch them from this port instead of 80
  --test                 print a test certificate, leave all files alone; no effect beside --ca
  -h, --help, --version  print this, or the version
Exit status: 0 issued, 1 failed, 2 wrong usage, 3 nothing was due, 128 + N ended by signal N.
"""
from __future__ import division, unicode_literals
import argparse, atexit, base64, binascii, calendar, contextlib, errno, hashlib, hmac, json, os
import re, shutil, signal, socket, ssl, subprocess, sys, time
from email.utils import formatdate, mktime_tz, parsedate_tz
try:
    from http.client import HTTPException, HTTPSConnection
    from urllib.request import Request, urlopen
except ImportError:  # Python 2
    from httplib import HTTPException, HTTPSConnection
    from urllib2 import Request, urlopen
VERSION = '1.0.0'
WrongUsage = argparse.ArgumentTypeError  # which makes the exit status 2
LETS_ENCRYPT = 'https://acme-v02.api.letsencrypt.org/directory'
LETS_ENCRYPT_STAGING = 'https://acme-staging-v02.api.letsencrypt.org/directory'
OPTIONS = re.findall('^  --([a-z-]+)(?:, (--[a-z-]+))?( [A-Z]+)?', __doc__, re.M)
SECOND = 1.0  # every timeout, pause and bound is a multiple of it, so that tests can shorten them
WELL_KNOWN = b'/.well-known/acme-challenge'
HEADERS = {'User-Agent': 'letsacme/' + VERSION, 'Content-Type': 'application/jose+json'}
LIMIT = 1 << 20  # bytes read of anything
HOST_NAME = re.compile(r'([a-z0-9_-]+\.)*[a-z][a-z0-9-]*\Z').match
RSA = b'\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01'  # 1.2.840.113549.1.1.1, as it stands in DER
CURVES = {b'\x2a\x86\x48\xce\x3d\x03\x01\x07': ('P-256', 'ES256'),  # 1.2.840.10045.3.1.7
          b'\x2b\x81\x04\x00\x22': ('P-384', 'ES384')}  # 1.3.132.0.34
COMMON_NAME, ALT_NAMES, AUTHORITY = b'\x55\x04\x03', b'\x55\x1d\x11', b'\x55\x1d\x23'

class Error(Exception):
    """Trouble in words for the person at the keyboard."""

def require(condition, message, error=Error):
    """Raise an error with this message unless the condition holds."""
    if not condition:
        raise error(message)

def text(value):
    """Give a value as text in which nothing can steer a terminal or forge a line of the log."""
    value = value.decode('utf-8', 'replace') if isinstance(value, bytes) else '%s' % (value,)
    return re.sub('[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069]', '?', value)

def log(line):
    """Write a line to standard error, in UTF-8; --quiet leaves only errors."""
    if not log.quiet or line.startswith('E:'):
        try:
            os.write(2, (text(line) + '\n').encode('utf-8', 'replace'))
        except OSError:  # a full disk under the log, for one, must not stop a renewal
            pass
log.quiet, log.about = False, 'letsacme'  # a file or URL, to name it when an error does not

def to_path(name):
    """Give a file's name as bytes, which mean the same in every locale and Python."""
    return name if isinstance(name, bytes) else name.encode('utf-8', 'surrogateescape')

def read_file(path):
    """Give the first LIMIT bytes of a file."""
    with open(path, 'rb') as stream:
        return stream.read(LIMIT)

def remove(path):
    """Remove a file if that can be done."""
    try:
        os.remove(path)
    except EnvironmentError:
        pass

def write_new(path, content, flags=0, old=None):
    """Write bytes to a new file, with the mode and owner of an old one; at exit it is gone."""
    remove(path)
    atexit.register(remove, path)
    with os.fdopen(os.open(path, flags | os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), 'wb') as new:
        new.write(content)
        if old:
            os.fchmod(new.fileno(), old.st_mode & 0o7777)
            os.fchown(new.fileno(), old.st_uid, old.st_gid)

def der(data):
    """Give tag and content of each element in DER data (X.690, 8.1); ValueError if it is cut."""
    elements, start = [], 0
    while start < len(data):
        (tag, length), start = bytearray(data[start:start + 2]), start + 2
        if length > 127:  # then it is the length of the length
            start += length - 128
            length = int(binascii.hexlify(data[start - length + 128:start]), 16)
        elements.append((tag, data[start:start + length]))
        start += length
    require(start <= len(data), 'DER is cut short', ValueError)
    return elements

def find(data, identifier):
    """Give what stands last beside each such object identifier in DER data, level by level."""
    found, level = [], [data]
    for _ in range(8):  # names are that deep in a CSR
        groups = [der(content) for content in level]
        found += [group[-1][1] for group in groups if group[:1] == [(6, identifier)]]
        level = [content for group in groups for tag, content in group if tag & 0x20]
    return found

class Signed(object):
    """A CSR (RFC 2986, 4) or certificate (RFC 5280, 4.1); ValueError, LookupError if it is none."""
    def __init__(self, data):
        [(_, signed)] = der(data)
        self.der, self.fields, self.names = data, der(der(signed)[0][1]), []
        self.public_key = [content for tag, content in self.fields if tag == 0x30][-1]
        for tag, content in [e for value in find(data, ALT_NAMES) for e in der(der(value)[0][1])]:
            name = content.decode('latin-1').lower()
            if tag == 0x87:
                name = socket.inet_ntop(socket.AF_INET6 if content[4:] else socket.AF_INET, content)
            self.names.append(({0x82: 'dns', 0x87: 'ip'}.get(tag, 'other'), name))

def read_pem(data, label):
    """Give each such block of PEM data (RFC 7468) as Signed; raise as that if one is broken."""
    blocks = re.findall(b'-----BEGIN (?:NEW )?' + label + b'-----([^-]+)-----END ', data)
    require(blocks and len(blocks) == data.count(b'-----BEGIN '), 'no PEM in it', ValueError)
    return [Signed(base64.b64decode(block)) for block in blocks]

def read_csr(path):
    """Give the CSR in a file with all names it asks for, as (type, value); raise Error."""
    log.about = path
    [csr] = read_pem(read_file(path), b'CERTIFICATE REQUEST')
    add = [('dns', cn.decode('latin-1').lower()) for cn in find(csr.der, COMMON_NAME) if b'.' in cn]
    csr.names = sorted(set(csr.names + [cn for cn in add if HOST_NAME(cn[1].replace('*.', ''))]))
    bad = [v for t, v in csr.names if not (t == 'ip' or t == 'dns' and HOST_NAME(v))]
    require(csr.names and not bad, 'the CSR asks for %s, which http-01 cannot prove: names and '
            'addresses only; a dns-01 client can prove a wildcard' % (', '.join(bad) or 'nothing'))
    return csr

def b64(data):
    """Give bytes in base64url without padding (RFC 7515, 2)."""
    return base64.urlsafe_b64encode(data).decode('ascii').rstrip('=')

def compact_json(value):
    """Give JSON in bytes with sorted keys and no spaces, which thumbprints need (RFC 7638, 3)."""
    return json.dumps(value, sort_keys=True, separators=(',', ':')).encode('utf-8')

def jws(protected, payload, sign):
    """Give a signed JSON object (RFC 7515, 7.2.2); a payload of None means POST-as-GET."""
    head, body = b64(compact_json(protected)), '' if payload is None else b64(compact_json(payload))
    signature = b64(sign((head + '.' + body).encode('ascii')))
    return {'protected': head, 'payload': body, 'signature': signature}

def explain(answer):
    """Give a problem of the CA with its subproblems (RFC 8555, 6.7), or a status, in words."""
    words = ['%s %s %s' % ((part.get('identifier') or {}).get('value', ''), part.get('detail', ''),
                           part.get('type') or part.get('status', ''))
             for part in [answer] + (answer.get('subproblems') or [])]
    return text('; '.join(words)).strip()[:4000]

class Client(object):
    """An ACME client: the account's key, of which only openssl opens the private half, and a CA."""
    def __init__(self, key_path, directory_url):
        self.key_path, self.url, self.directory, self.process = key_path, directory_url, None, None
        self.nonces, self.connections, self.tls = [], {}, ssl.create_default_context()
        atexit.register(self.close)
        [(_, self.public_key)] = der(self.openssl(b'', 'pkey', '-pubout', '-outform', 'DER', '-in'))
        (_, algorithm), (_, bits) = der(self.public_key)  # RFC 5280, 4.1.2.7
        kinds, bits = [content for _, content in der(algorithm)], bits[1:]
        if kinds[0] == RSA:
            numbers = [b64(number.lstrip(b'\0')) for _, number in der(der(bits)[0][1])]
            self.algorithm, self.jwk = 'RS256', {'kty': 'RSA', 'n': numbers[0], 'e': numbers[1]}
        elif kinds[-1] in CURVES and bits[:1] == b'\x04':  # a point that is not compressed
            (curve, self.algorithm), half = CURVES[kinds[-1]], len(bits) // 2 + 1
            self.jwk = {'kty': 'EC', 'crv': curve, 'x': b64(bits[1:half]), 'y': b64(bits[half:])}
        else:
            raise Error('the account key %s must be RSA, P-256 or P-384' % text(key_path))
        self.thumbprint = b64(hashlib.sha256(compact_json(self.jwk)).digest())  # RFC 7638
        self.signer = {'jwk': self.jwk}  # the URL of the account, once that is known

    def start(self, *arguments):
        """Start an openssl command, which waits for data; the key's path is put last."""
        log.about, pipe = 'openssl', subprocess.PIPE
        self.process = subprocess.Popen(('openssl',) + arguments + (self.key_path, '-passin',
                                        'pass:none'), stdin=pipe, stdout=pipe, stderr=pipe)

    def openssl(self, data, *arguments):
        """Give the output of an openssl command for data, of the one that waits if there is one."""
        if not self.process or self.process.poll() is not None:
            self.start(*arguments)
        output, trouble = self.process.communicate(data)
        require(not self.process.returncode, 'cannot use %s, which must be a private key in PEM, '
                'without a password: %s' % (text(self.key_path), text(trouble.partition(b'\n')[0])))
        return output

    def sign(self, data):
        """Give the signature of data as JWS wants it (RFC 7518, 3.3 and 3.4)."""
        signature = self.openssl(data, 'dgst', '-sha' + self.algorithm[2:], '-sign')
        self.start('dgst', '-sha' + self.algorithm[2:], '-sign')  # while the CA is at work
        if self.algorithm == 'RS256':
            return signature
        size = int(self.algorithm[2:]) // 8  # bytes of each of the two numbers
        return b''.join(n.lstrip(b'\0').rjust(size, b'\0') for _, n in der(der(signature)[0][1]))

    def resource(self, name):
        """Give what the CA's directory has under a name (RFC 8555, 7.1.1), {} if it may lack it."""
        self.directory = self.directory or self.ask(self.url, method='GET')
        return self.directory[name] if name[:3] == 'new' else self.directory.get(name, {})

    def ask(self, url, payload=None, method='POST', answer=None, busy=(), order_decides=False):
        """Give the answer, asking for two minutes, or ten if `busy`, while trouble may pass."""
        end = os.times()[4] + (600 if busy else 120) * SECOND  # a clock that nobody sets
        pause, bad_nonces, troubled = 0, 0, False
        while True:
            try:
                answer = answer or self.send(url, payload, method, troubled)
            except (EnvironmentError, HTTPException) as error:
                require('CERTIFICATE_VERIFY_FAILED' not in str(error), '%s: %s' % (url, error))
                self.close()
                answer, self.status, self.header = {'detail': 'no answer: %r' % error}, 503, {}.get
            when = self.header('Retry-After') or ''  # seconds or a date (RFC 9110, 10.2.3)
            date = parsedate_tz(when)
            after = int(when) * SECOND if when.isdigit() else date and mktime_tz(date) - time.time()
            passing = self.status >= 500 or self.status == 429 and after is not None
            wait = max(pause, after or 0)
            if text(answer.get('type')).endswith(':badNonce') and bad_nonces < 20:
                bad_nonces += 1
            elif (passing or answer.get('status') in busy) and os.times()[4] + wait < end:
                time.sleep(wait)
                pause = min(max(1.2 * pause, 0.25 * SECOND), 5 * SECOND)
                troubled = troubled or passing
            elif self.status // 100 == 2 and answer.get('status') not in busy:
                return answer
            elif order_decides and troubled and not passing:
                return None  # since a refusal may mean that an earlier try got through
            else:
                words = explain(answer or {'detail': 'HTTP status %d' % self.status})
                raise Error('%s: %s%s' % (url, words, ', retry in %d s' % after if after else ''))
            answer = None

    def send(self, url, payload, method, troubled):
        """Give the answer to one request, signed if it is a POST (RFC 8555, 6.2 to 6.5)."""
        body = None
        if method == 'POST':
            if not self.nonces:
                self.ask(self.resource('newNonce'), method='HEAD')
            protected = dict(self.signer, alg=self.algorithm, nonce=self.nonces.pop(), url=url)
            body = compact_json(jws(protected, payload, self.sign))
        log.about = url
        match = re.match(r'https://([A-Za-z0-9.:\[\]-]+)(/[!-~]*)$', url)
        require(match, '%s is not an https URL' % url)
        if troubled:  # some CAs close a connection after each answer and do not say so
            self.close()
        connection = self.connections.setdefault(match.group(1), HTTPSConnection(
            match.group(1), timeout=30 * SECOND, context=self.tls))
        connection.request(method, match.group(2), body, HEADERS)
        with contextlib.closing(connection.getresponse()) as reply:
            self.status, self.header, self.body = reply.status, reply.getheader, reply.read(LIMIT)
        require(not reply.length, 'cut short, or longer than %d bytes' % LIMIT, HTTPException)
        self.nonces += re.findall('^[A-Za-z0-9_-]+$', self.header('Replay-Nonce', ''))
        return json.loads(self.body.decode('utf-8')) if self.body.strip()[:1] == b'{' else {}

    def close(self):
        """Close the connections; a request opens its own again. End an openssl that still runs."""
        for connection in self.connections.values():
            connection.close()
        if self.process:
            if self.process.poll() is None:
                self.process.kill()
            for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
                pipe.close()
            self.process.wait()

def register(ca, args):
    """Find the account of the key or make one, to sign with from now on (RFC 8555, 7.3)."""
    log('Registering account...' + ' (test mode)' * args.test)
    contact = [to if ':' in to else 'mailto:' + to for to in ' '.join(args.contact or []).split()]
    url, account = ca.resource('newAccount'), {'termsOfServiceAgreed': True, 'contact': contact}
    try:  # a key for external account binding may be good for one use, so it comes second
        ca.ask(url, {'onlyReturnExisting': True} if args.eab_kid else account)
    except Error as error:
        if not args.eab_kid or ':accountDoesNotExist' not in '%s' % error:
            raise
        key = base64.urlsafe_b64decode((args.eab_hmac_key + '==').encode('ascii'))
        account['externalAccountBinding'] = jws(  # RFC 8555, 7.3.4
            {'alg': 'HS256', 'kid': args.eab_kid, 'url': url}, ca.jwk,
            lambda data: hmac.new(key, data, hashlib.sha256).digest())
        ca.ask(url, account)
    require(ca.header('Location'), '%s: the answer has no Location' % url)
    ca.signer = {'kid': ca.header('Location')}
    log('  %s, terms: %s' % (ca.signer['kid'], ca.resource('meta').get('termsOfService')))

def place_order(ca, names, profile, old):
    """Give a new order and its URL (RFC 8555, 7.4); it may replace an old one (RFC 9773, 5)."""
    url, order = ca.resource('newOrder'), {'identifiers': [dict(type=t, value=v) for t, v in names]}
    known = sorted(ca.resource('meta').get('profiles') or {})
    require(not profile or profile in known, 'no profile %s of: ' % profile + ', '.join(known))
    order.update({'profile': profile} if profile else {})
    if old and old.renewal_id and ca.resource('renewalInfo'):
        try:
            return ca.ask(url, dict(order, replaces=old.renewal_id)), ca.header('Location')
        except Error as error:
            log('W: ordering again without "replaces": %s' % error)
    return ca.ask(url, order), ca.header('Location')

def challenge_directory(name, args):
    """Give the path of the challenge directory for a name; raise Error if it cannot be used."""
    twin = name[4:] if name.startswith('www.') else 'www.' + name
    path = (args.domains.get(name) or args.domains.get(twin)
            or to_path(args.acme_dir or '').rstrip(b'/') or args.domains.get('', b''))
    if os.path.isdir(re.sub(re.escape(WELL_KNOWN) + b'$', b'/', path)) and not os.path.isdir(path):
        os.makedirs(path)
    require(os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK), '%s: --config-json or '
            '--acme-dir must give a directory that may be written, not "%s"' % (name, text(path)))
    return path

def publish(ca, name, token, directory, args):
    """Write a challenge file and fetch it as the CA will; give a list of what is wrong."""
    require(re.match(r'[A-Za-z0-9_-]{22,200}\Z', token),  # since it becomes a part of a path
            '%s: the CA sent an unsafe token: %.200s' % (name, text(token)))
    path, content = os.path.join(directory, token.encode('ascii')), token + '.' + ca.thumbprint
    if args.force and os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)  # does nothing to a link
    write_new(path, content.encode('ascii'))
    if args.disable_check:
        return []
    host = (('[%s]' if ':' in name else '%s') % name + ':' + (args.check_port or '')).rstrip(':')
    url = 'http://%s/.well-known/acme-challenge/%s' % (host, token)
    try:  # without verifying TLS, as the CA does it when it is sent on to https
        with contextlib.closing(urlopen(Request(url, headers=HEADERS), timeout=30 * SECOND,
                                        context=ssl._create_unverified_context())) as response:
            found = response.read(LIMIT).rstrip()
    except (EnvironmentError, HTTPException, ValueError) as error:
        getattr(error, 'close', list)()  # it may be an answer, such as 404
        found = str(error)
    return [] if found == content.encode('ascii') else [
        "Wrote file to %s, but couldn't download %s: %s" % (text(path), url, text(found)[:200])]

def prove(ca, order, order_url, directories, args):
    """Prove control of all names at once by http-01; give the order after that (RFC 8555, 8.3)."""
    urls, failures = [], []
    for authorization in [ca.ask(url) for url in order['authorizations']]:
        name = authorization['identifier']['value'].lower()
        require(name in directories, 'the CA wants a proof for %s, not ordered' % text(name))
        if authorization['status'] != 'valid':
            log('Verifying %s...' % name)
            [challenge] = [c for c in authorization['challenges'] if c['type'] == 'http-01']
            failures += publish(ca, name, challenge['token'], directories[name], args)
            urls.append(challenge['url'])
    require(not failures, '\n'.join(failures))
    answers = [ca.ask(url, {}, order_decides=True) or {} for url in urls]
    if any(a.get('error') and a['status'] in ('pending', 'invalid') for a in answers):
        return order  # which some CAs leave pending for ever, and even such a challenge
    return ca.ask(order_url, answer=order, busy=('pending', 'processing'))

def get_chain(ca, csr, directories, args, old):
    """Give the certificate that the CA issues, checked, and its chain (RFC 8555, 7.4)."""
    order, order_url = place_order(ca, csr.names, args.profile, old)
    order = prove(ca, order, order_url, directories, args)
    if order['status'] == 'ready':
        log('  Verified!')
        log('Signing certificate...' + ' (test mode)' * args.test)
        order = ca.ask(order['finalize'], {'csr': b64(csr.der)}, order_decides=True)
    order = ca.ask(order_url, answer=order, busy=('processing',))
    if order['status'] != 'valid':
        lines = ['%s: %s' % (text(authorization['identifier']['value']), explain(each['error']))
                 for authorization in [ca.ask(url) for url in order['authorizations']]
                 for each in authorization['challenges'] if each.get('error')]
        raise Error('\n'.join(lines) or 'the order failed: %s' % explain(order.get('error', order)))
    ca.ask(order['certificate'])
    chain = read_pem(ca.body, b'CERTIFICATE')
    require(set(csr.names) <= set(chain[0].names) and csr.public_key == chain[0].public_key,
            'the CA sent a certificate for another key or without all the names')
    log('  Certificate signed!')
    return chain

def read_old(path):
    """Give the certificate in a file and its lifetime, None if there is none that can be read."""
    try:
        old = read_pem(read_file(path), b'CERTIFICATE')[0]
        validity = [content for tag, content in old.fields if tag == 0x30][2]
        old.starts, old.ends = [calendar.timegm(time.strptime(  # RFC 5280, 4.1.2.5
            stamp.decode('ascii'), '%y%m%d%H%M%SZ' if len(stamp) == 13 else '%Y%m%d%H%M%SZ'))
                                for _, stamp in der(validity)]
        serial = [content for tag, content in old.fields if tag == 2][0]
        keys = [der(der(value)[0][1])[0] for value in find(old.der, AUTHORITY)]
        old.renewal_id = ''.join(b64(key) + '.' + b64(serial) for tag, key in keys if tag == 0x80)
        return old
    except (Error, EnvironmentError, ValueError, LookupError, TypeError):
        return None

def is_due(ca, old, csr, outputs):
    """Say whether an old certificate is to be renewed now (RFC 9773, 4.2)."""
    if (old is None or not all(os.path.exists(path) for path in outputs)
            or set(csr.names) - set(old.names) or csr.public_key != old.public_key):
        return True
    lifetime = old.ends - old.starts
    moment = old.ends - lifetime / (2 if lifetime < 10 * 86400 else 3)
    try:
        if ca.resource('renewalInfo') and old.renewal_id:
            url = ca.resource('renewalInfo').rstrip('/') + '/' + old.renewal_id
            window = ca.ask(url, method='GET')['suggestedWindow']
            start, end = [calendar.timegm(time.strptime(window[edge][:19], '%Y-%m-%dT%H:%M:%S'))
                          for edge in ('start', 'end')]
            require(start < end, 'its window ends before it starts')
            # The second half is left for another try: the CA has rate limits outside the window.
            share = int(hashlib.sha256(old.der).hexdigest()[:8], 16) / 2 ** 32
            moment = min(start + share * (end - start) / 2, old.ends)
    except (Error, ValueError, LookupError, TypeError, AttributeError) as error:
        log('W: no renewal information, the lifetime decides: %s' % error)
    log('Due for renewal: %s' % formatdate(moment, usegmt=True))
    return moment <= time.time()

def check_outputs(outputs):
    """Raise Error if an output cannot be written or if that would destroy something else."""
    for path in outputs:
        require(outputs.count(path) == 1 and (not os.path.lexists(path) or os.path.isfile(path)
                and not re.search(b'PRIVATE KEY|CERTIFICATE REQUEST', read_file(path))),
                '%s must be a file of its own, with no key and no CSR in it' % text(path))
        require(os.access(os.path.dirname(path), os.W_OK | os.X_OK) or os.access(path, os.W_OK),
                '%s may not be written' % text(path))

def replace_files(paths, contents):
    """Write files, all to new ones first; then each of these is put in place in one step."""
    suffix = b'.' + binascii.hexlify(os.urandom(4))
    for path, content in zip(paths, contents):
        try:
            write_new(path + suffix, content, os.O_SYNC, os.path.exists(path) and os.stat(path))
        except EnvironmentError as error:  # nothing may be written there, or given away
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
    for path, content in zip(paths, contents):
        try:
            os.rename(path + suffix, path)
        except EnvironmentError:
            log('W: %s is overwritten in place' % text(path))
            with open(path, 'r+b') as stream:
                stream.write(content)
                stream.truncate()

def configuration(source):
    """Give a configuration as words of a command line and challenge directories by name."""
    words, domains, below = [], {}, {'AcmeDir': b'', 'DocumentRoot': WELL_KNOWN}
    keys = dict((name.title().replace('-', ''), '--' + name) for name, _, _ in OPTIONS)
    keys.update(CSR='--csr', CA='--ca')
    if os.path.isfile(to_path(source)) or '{' not in source:
        source = read_file(to_path(source)).decode('utf-8-sig')
    for key, value in json.loads(source).items():
        if key == 'DocumentRoot':
            key, value = '', {key: value}  # for all names, as AcmeDir is
        if key[:1] != '_' and isinstance(value, dict):
            for part in sorted(value, reverse=True):  # so that AcmeDir wins
                if part[:1] != '_' and value[part]:
                    domains[key.lower()] = to_path(value[part]).rstrip(b'/') + below[part]
        elif key[:1] != '_':
            word = '%s' % value if isinstance(value, (int, type(''))) else ' '.join(value)
            words += {'true': [keys[key]], 'false': []}.get(word.lower(), [keys[key] + '=' + word])
    return words, domains

def settings(argv):
    """Give the settings that the command line and its configuration make."""
    parser = argparse.ArgumentParser(usage='%(prog)s [options]', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda words: require(False, re.sub('=[^ ]*', '', words), WrongUsage)
    parser.add_argument('--version', action='version', version=VERSION, help=argparse.SUPPRESS)
    for name, alias, value in OPTIONS:
        kind = {'nargs': '*' if name == 'contact' else None} if value else {'action': 'store_true'}
        parser.add_argument('--' + name, *[alias] if alias else [], help=argparse.SUPPRESS, **kind)
    given, rest = parser.parse_known_args(argv)
    require(not rest, 'unknown: ' + ', '.join(re.findall('--[a-z-]+', ' '.join(rest))), WrongUsage)
    try:
        words, domains = configuration(given.config_json or '{}')
    except (EnvironmentError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise WrongUsage('wrong --config-json: %s' % (getattr(error, 'strerror', None) or error))
    args = parser.parse_args(words + argv)
    args.domains, log.quiet = domains, args.quiet
    args.test = args.test and not given.ca
    args.renew = args.renew and not args.test
    args.ca = LETS_ENCRYPT_STAGING if args.test else args.ca or LETS_ENCRYPT
    args.ca = re.sub('^(https://[^/]+)/?$', '\\1/directory', args.ca)
    require(args.account_key and args.csr, '--account-key and --csr are needed', WrongUsage)
    require(args.fullchain_file or not args.renew, '--renew needs --fullchain-file', WrongUsage)
    valid = re.match('([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{2,3}=*)?$', args.eab_hmac_key or '')
    require(valid and bool(args.eab_kid) == bool(args.eab_hmac_key), '--eab-kid and --eab-hmac-key '
            'need each other, the key in base64url', WrongUsage)
    return args

def run(args):
    """Get the certificate and put it where it is wanted; give the exit status."""
    csr = read_csr(to_path(args.csr))
    log('letsacme %s, %s: %s%s' % (VERSION, formatdate(usegmt=True), ' (test mode)' * args.test,
                                   ' '.join(name for _, name in csr.names)))
    log('Parsing account key...')
    ca = Client(to_path(args.account_key), args.ca)
    require(ca.public_key != csr.public_key, 'the CSR has the account key, it needs its own')
    names = [args.cert_file, args.chain_file, args.fullchain_file]  # what --renew reads comes last
    outputs = [os.path.realpath(to_path(name)) for name in names if name]
    check_outputs(outputs)
    os.write(1, b'')  # raises an error if it is closed
    old = args.renew and read_old(outputs[-1])
    if args.renew and not is_due(ca, old, csr, outputs):
        return 3
    directories = dict((name, challenge_directory(name, args)) for _, name in csr.names)
    register(ca, args)
    chain = get_chain(ca, csr, directories, args, old)
    blocks = [ssl.DER_cert_to_PEM_cert(signed.der).encode('ascii') for signed in chain]
    if args.test:
        log('W: test mode: the output files are left alone')
    contents = [b''.join(c) for name, c in zip(names, (blocks[:1], blocks[1:], blocks)) if name]
    replace_files([] if args.test else outputs, contents)
    if args.test or not args.fullchain_file:
        with os.fdopen(os.dup(1), 'wb') as stream:
            stream.write(b''.join(blocks[args.no_cert:1] + blocks[1:] * (not args.no_chain)))
    return 0

def on_signals(action):
    """Set what is done on a signal, except one that was ignored at the start, as nohup has it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, action)

def stop(number, _):
    """End the run on a signal; SystemExit has all cleaned up, which no other signal stops."""
    on_signals(lambda *_: None)  # not SIG_IGN: Python complains if one is pending by then
    log('E: ended by signal %d%s' % (number, ', after an hour' * (number == signal.SIGALRM)))
    sys.exit(1 if number == signal.SIGALRM else 128 + number)

def main(argv):
    """Run letsacme with these arguments and give its exit status."""
    on_signals(stop)
    signal.setitimer(signal.ITIMER_REAL, 3600 * SECOND)
    while os.open(os.devnull, os.O_RDONLY) < 3:
        pass  # so that no file of ours becomes a standard output that was closed
    os.umask(0o022)
    try:
        argv = [word.decode('utf-8') if isinstance(word, bytes) else word for word in argv]
        return run(settings(argv))
    except Exception as error:
        about = text(getattr(error, 'filename', None) or log.about)
        words = getattr(error, 'strerror', None) or error
        told = '%s: %s (%s)' % (about, words, type(error).__name__)
        for line in ('%s' % error if isinstance(error, (Error, WrongUsage)) else told).split('\n'):
            log('E: ' + line[:5000])
        return 2 if isinstance(error, WrongUsage) else 1
    finally:
        on_signals(signal.SIG_IGN)  # what is left to do is to clean up

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
