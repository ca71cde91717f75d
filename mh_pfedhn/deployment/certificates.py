"""Certificates and keys of a deployment: an authority, the server's certificate, a key pair a site."""

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import UserError
from common.files import write_bytes

_VALID = datetime.timedelta(days=730)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_ALWAYS = ("localhost", "127.0.0.1")


def make_certs(folder: Path, hosts: Sequence[str], sites: Sequence[str]) -> str:
    """Make what is missing of an authority, a server certificate and the sites' keys; say what goes to whom.

    Nothing that exists is overwritten. Raises UserError for names that cannot be, and when what exists does not fit.
    """
    for site in sites:
        if not _NAME.fullmatch(site):
            raise UserError(f"--site is {site!r}, but must be letters, digits, '.', '_' and '-', such as hospital-a.")
    names = [_general_name(host) for host in dict.fromkeys((*hosts, *_ALWAYS))]
    made: list[str] = []
    try:
        (folder / "sites").mkdir(parents=True, exist_ok=True)
        if (folder / "server.pem").exists():
            _check_hosts(folder, hosts)
        elif not hosts:
            raise UserError("--host is missing: the name or address under which the sites reach the server.")
        else:
            made += _make_server(folder, names)
        for site in dict.fromkeys(sites):
            made += _make_site(folder / "sites" / site)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written or read: {error.strerror}.") from error
    certificate = read_certificate(folder / "server.pem")
    return "\n".join(
        [
            f"{folder}: made {', '.join(made)}." if made else f"{folder}: everything was there already.",
            f"The server's certificate is for {', '.join(sorted(hosts_of(certificate)))}; certificates are valid for "
            f"two years, this one until {certificate.not_valid_after_utc:%Y-%m-%d}.",
            "",
            "to the server   ca.crt, server.pem, server.key, sites/*.pub",
            "to each site    ca.crt and its own sites/NAME",
            "to nobody       ca.key: whoever has it can pretend to be the server",
            "",
            "A site that makes its own key (ssh-keygen -t ecdsa -b 384 -N '' -f NAME) sends only NAME.pub.",
        ]
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST_NAME.fullmatch(host):
            raise UserError(f"--host is {host!r}, but must be a name or an address, without a port.") from None
        return x509.DNSName(host)


def hosts_of(certificate: x509.Certificate) -> set[str]:
    """The names and addresses that a server's certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)}


def _check_hosts(folder: Path, hosts: Sequence[str]) -> None:
    named = hosts_of(read_certificate(folder / "server.pem"))
    if missing := set(hosts) - named:
        raise UserError(
            f"{folder / 'server.pem'} exists and is for {', '.join(sorted(named))}, but not for "
            f"{', '.join(sorted(missing))}: remove server.pem and server.key to have them made again."
        )


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a file. Raises UserError when the file is missing or is no certificate."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not a certificate in PEM form.") from error


def _make_server(folder: Path, names: Sequence[x509.GeneralName]) -> list[str]:
    if (folder / "server.key").exists():
        raise UserError(f"{folder / 'server.key'} exists, but not server.pem: remove the key to have both made again.")
    made, authority, authority_key = _authority(folder)
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = (
        _unsigned("mh-pfedhn server", key, authority.subject)
        .not_valid_after(min(_now() + _VALID, authority.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    _write_private(folder / "server.key", _pem(key))
    write_bytes(folder / "server.pem", certificate.public_bytes(Encoding.PEM))
    return [*made, "server.pem", "server.key"]


def _authority(folder: Path) -> tuple[list[str], x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority of this folder, made if there is none."""
    certificate_path, key_path = folder / "ca.crt", folder / "ca.key"
    if certificate_path.exists() != key_path.exists():
        there, missing = sorted((certificate_path, key_path), key=Path.exists, reverse=True)
        raise UserError(f"{there} exists, but not {missing.name}, which a new server.pem needs.")
    if certificate_path.exists():
        certificate = read_certificate(certificate_path)
        try:
            key = load_pem_private_key(key_path.read_bytes(), None)
        except (ValueError, TypeError) as error:
            raise UserError(f"{key_path} is not a private key in PEM form without a passphrase.") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise UserError(f"{key_path} is not the key of {certificate_path.name}.")
        if certificate.not_valid_after_utc <= _now():
            raise UserError(f"{certificate_path} has expired: use a new folder, and give its ca.crt to every site.")
        return [], certificate, key
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = (
        _unsigned("mh-pfedhn authority", key, None)
        .not_valid_after(_now() + _VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    _write_private(key_path, _pem(key))
    write_bytes(certificate_path, certificate.public_bytes(Encoding.PEM))
    return ["ca.crt", "ca.key"], certificate, key


def _unsigned(name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name | None) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - datetime.timedelta(hours=1))  # for sites whose clocks are behind
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(**allowed: bool) -> x509.KeyUsage:
    kinds = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    kinds += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**(dict.fromkeys(kinds, False) | allowed))


def _make_site(private: Path) -> list[str]:
    """A key pair in the form that `ssh-keygen -t ecdsa -b 384` writes. A public key alone is left as it is."""
    public = private.with_name(private.name + ".pub")
    if public.exists():
        return []
    made = [f"sites/{public.name}"]
    if private.exists():
        key = read_site_key(private)
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        _write_private(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        made = [f"sites/{private.name}", *made]
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_bytes(public, line + f" {private.name}\n".encode())
    return made


def read_site_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key of a site. Raises UserError when the file is missing or is no key that a SuperNode can use."""
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a private key in OpenSSH form without a passphrase.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{path} is not an elliptic-curve key; `ssh-keygen -t ecdsa -b 384` makes one.")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_private(path: Path, content: bytes) -> None:
    """For the owner's eyes only from its first byte on; never over a file that exists."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
