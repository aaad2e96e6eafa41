"""The certificates by which the S3 server's parts know each other, made once for each stack.

SeaweedFS is a handful of servers that talk over loopback, where every local user may listen in and ask. With these
each of them answers only who holds a certificate of our own authority. Its key is thrown away once it has signed the
only one there will ever be.

Run as ``python -m infra.certificates FOLDER COMMAND ...``: makes them where there are none, and becomes the command.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

_AUTHORITY, _CERTIFICATE, _KEY = "authority.crt", "inner.crt", "inner.key"
#: Sections of SeaweedFS's security.toml for its gRPC and its HTTP servers; CLIENT is for all calls of theirs.
_GRPC = ("MASTER", "VOLUME", "FILER", "S3", "ADMIN", "WORKER", "CLIENT")
_HTTPS = ("MASTER", "VOLUME", "FILER", "ADMIN", "CLIENT")
#: What its servers call themselves: on loopback, and in compose.yaml.
_NAMES = ("localhost", "s3")


def main(arguments: list[str]) -> int:
    """Does not return where the command can be started."""
    if len(arguments) < 2:
        sys.stderr.write("usage: python -m infra.certificates FOLDER COMMAND ...\n")
        return 2
    folder, command = Path(arguments[0]).absolute(), arguments[1:]
    if not (folder / _KEY).exists():
        make_certificates(folder)
    os.execvpe(command[0], command, {**os.environ, **inner_tls(folder)})


def inner_tls(folder: Path) -> dict[str, str]:
    """SeaweedFS's settings, as environment variables: each of its ports asks for a certificate, and shows one."""
    authority, certificate, key = (str(folder / name) for name in (_AUTHORITY, _CERTIFICATE, _KEY))
    found = {"WEED_GRPC_CA": authority, "WEED_HTTPS_CLIENT_ENABLED": "true"}
    found |= {f"WEED_HTTPS_{section}_CA": authority for section in _HTTPS}
    for prefix in [*(f"WEED_GRPC_{section}" for section in _GRPC), *(f"WEED_HTTPS_{section}" for section in _HTTPS)]:
        found |= {f"{prefix}_CERT": certificate, f"{prefix}_KEY": key}
    return found


def make_certificates(folder: Path) -> None:
    """Write authority, certificate and key into the folder, which appears whole and is closed to other users."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Winnow, this stack only")])

    def sign(name: x509.Name, holder: ec.EllipticCurvePrivateKey, *, is_authority: bool) -> bytes:
        made = (
            x509.CertificateBuilder(issuer_name=issuer, subject_name=name, public_key=holder.public_key())
            .serial_number(x509.random_serial_number())
            # It ends with the stack. A wrong clock or an old home must not end it before: RFC 5280, 4.1.2.5.
            .not_valid_before(datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
            .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if not is_authority:
            names = [x509.DNSName(text) for text in _NAMES]
            addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            made = made.add_extension(x509.SubjectAlternativeName([*names, *addresses]), critical=False)
            made = made.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        return made.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    holder = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "winnow")])
    contents = {
        _AUTHORITY: sign(issuer, authority, is_authority=True),
        _CERTIFICATE: sign(holder, key, is_authority=False),
        _KEY: key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))  # mode 0700
    for name, content in contents.items():
        with os.fdopen(os.open(partial / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(content)
    shutil.rmtree(folder, ignore_errors=True)  # one that lost its key
    partial.rename(folder)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
