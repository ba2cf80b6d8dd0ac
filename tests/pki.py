"""Keys, requests and certificates: what a client has, what a CA signs, and how they are checked."""
import base64
import contextlib
import datetime
from ipaddress import ip_address
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwcrypto.common import base64url_encode as base64url

DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
PLAIN, PASSWORD = serialization.NoEncryption(), serialization.BestAvailableEncryption(b"password")
KEYS = {
    **{name: lambda size=size: rsa.generate_private_key(65537, size)
       for name, size in (("rsa1024", 1024), ("rsa2048", 2048), ("encrypted-old", 2048))},
    **{name: lambda curve=curve: ec.generate_private_key(curve()) for name, curve in (
        ("p256", ec.SECP256R1), ("p384", ec.SECP384R1), ("p521", ec.SECP521R1),
        ("encrypted", ec.SECP256R1))},
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


def write_key(path, kind):
    """Makes a private key of a kind in KEYS; those that are encrypted have a password."""
    forms = serialization.PrivateFormat
    path.write_bytes(KEYS[kind]().private_bytes(
        PEM, forms.TraditionalOpenSSL if kind == "encrypted-old" else forms.PKCS8,
        PASSWORD if "encrypted" in kind else PLAIN))
    path.chmod(0o600)
    return path


def load_key(path):
    """The private key in a file."""
    return serialization.load_pem_private_key(Path(path).read_bytes(), None)


def public_der(key):
    """A public key's bytes, for comparison."""
    return key.public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def common_name(text):
    """A distinguished name that has only a common name, or nothing."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)] if text else [])


def alt_names(names):
    """The SubjectAltName of host names and addresses (as text), and of entries of other kinds."""
    def entry(name):
        if isinstance(name, x509.GeneralName):
            return name
        with contextlib.suppress(ValueError):
            return x509.IPAddress(ip_address(name))
        return x509.DNSName(name)
    return x509.SubjectAlternativeName(map(entry, names))


def names_of(signed):
    """The names and addresses of a certificate or CSR, as text."""
    found = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(entry.value) for entry in found}


def write_csr(path, names=(), key=None, cn=None, critical=False, extensions=()):
    """Writes a CSR for names (see alt_names); extensions are (value, critical) pairs put before."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(common_name(cn))
    if names:
        extensions = [*extensions, (alt_names(names), critical)]
    for value, is_critical in extensions:
        builder = builder.add_extension(value, is_critical)
    path.write_bytes(builder.sign(load_key(key), hashes.SHA256()).public_bytes(PEM))
    return path


class Issuer:
    """A root, an intermediate, and the certificates that it signs."""

    def __init__(self):
        root = trustme.CA()
        self.ca = root.create_child_ca()
        self.root, self.intermediate = (
            x509.load_pem_x509_certificate(each.cert_pem.bytes()) for each in (root, self.ca))
        self.key = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)

    def leaf(self, names, key, days=(-1, 90), serial=None, authority=None):
        """Sign a certificate for names and a public key, valid from so many days on until then.

        The serial number and what names the issuer's key (bytes or an extension) may be given.
        """
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder(
            self.intermediate.subject, common_name(""), key, serial or x509.random_serial_number(),
            *(now + datetime.timedelta(days=each) for each in days))
        if isinstance(authority, bytes):
            authority = x509.AuthorityKeyIdentifier(authority, None, None)
        usual = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(authority or usual, critical=False)
        if names:
            builder = builder.add_extension(alt_names(names), critical=True)
        return builder.sign(self.key, hashes.SHA256())


def new_key():
    """A private key, of the quick kind."""
    return KEYS["p256"]()


def pem(*certificates):
    """Certificates as PEM."""
    return b"".join(each.public_bytes(PEM) for each in certificates)


def block(data, label=b"CERTIFICATE"):
    """Any bytes as a block of PEM."""
    return b"-----BEGIN %s-----\n%s-----END %s-----\n" % (label, base64.encodebytes(data), label)


def ari_id(certificate):
    """The identifier of a certificate for renewal information (RFC 9773)."""
    extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    serial = certificate.serial_number
    octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    return base64url(extension.value.key_identifier) + "." + base64url(octets)


def load_chain(text):
    """The certificates in a text, which must hold nothing else."""
    chain = x509.load_pem_x509_certificates(text.encode())
    assert pem(*chain).decode() == text, "not just certificates in PEM: %r" % text
    return chain


def check_chain(text, names, key, root):
    """The certificates of a chain, checked: names, key, and signatures up to a root's file."""
    chain = load_chain(text)
    assert names_of(chain[0]) == {str(name) for name in names}
    assert public_der(chain[0].public_key()) == public_der(load_key(key).public_key())
    assert chain[1:], "no chain"
    issuers = [*chain[1:], x509.load_pem_x509_certificate(Path(root).read_bytes())]
    for certificate, issuer in zip(chain, issuers):
        certificate.verify_directly_issued_by(issuer)
    return chain
