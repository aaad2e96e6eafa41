"""TLS for the data plane: certificates that are taken over while it runs when they are renewed."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

log = logging.getLogger("winnow.serving")


class TlsMisconfigured(Exception):
    """The certificate, its key or the clients' authorities cannot be used; names the file."""


class Tls:
    """A server's side of TLS 1.2 and 1.3.

    Args:
        certificate: PEM, with the chain behind it; ``key``: its private key, PEM.
        clients: authorities whose certificates clients must show (mTLS); None: clients show none.

    Attributes:
        context: for a server; new connections use what was loaded last.

    Raises:
        TlsMisconfigured: one of them cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, clients: Path | None = None) -> None:
        self._certificate, self._key, self._clients = certificate, key, clients
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._seen = self._signature()
        self._load()

    def reload(self) -> None:
        """Take over what has been renewed; what cannot be used leaves the old ones in place."""
        seen = self._signature()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._load()
        except TlsMisconfigured as error:
            log.error("the certificate stays as it was: %s", error)
        else:
            log.info("the certificate %s was taken over", self._certificate)

    def _load(self) -> None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)  # both, or none
            self.context.load_cert_chain(self._certificate, self._key)
            if self._clients is not None:
                self.context.load_verify_locations(self._clients)
                self.context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            files = " with ".join(str(file) for file in (self._certificate, self._key, self._clients) if file)
            raise TlsMisconfigured(f"{files} cannot be used for TLS: {error}") from error

    def _signature(self) -> tuple[tuple[int, int], ...]:
        files = [file for file in (self._certificate, self._key, self._clients) if file is not None]
        return tuple((file.stat().st_mtime_ns, file.stat().st_ino) if file.exists() else (0, 0) for file in files)
