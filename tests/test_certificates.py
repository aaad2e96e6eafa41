"""The certificates of the S3 server's parts: for them alone, made once, and never out of date."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from infra.certificates import inner_tls, make_certificates

PRINT = "import os; print(*(f'{k}={v}' for k, v in sorted(os.environ.items()) if k.startswith('WEED_')), sep='\\n')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("home") / "certificates"
    make_certificates(made)
    return made


def test_nobody_else_can_read_them(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == dict.fromkeys(("authority.crt", "inner.crt", "inner.key"), 0o600)
    assert [path.name for path in folder.parent.iterdir()] == ["certificates"]


def test_the_authority_has_no_key_any_more(folder: Path) -> None:
    keys = [path.name for path in folder.iterdir() if "PRIVATE KEY" in path.read_text()]
    assert keys == ["inner.key"]
    ssl.create_default_context(cafile=str(folder / "authority.crt")).load_cert_chain(
        folder / "inner.crt", folder / "inner.key"
    )


def test_they_outlive_wrong_clocks_and_old_homes(folder: Path) -> None:
    for name in ("authority.crt", "inner.crt"):
        found = x509.load_pem_x509_certificate((folder / name).read_bytes())
        assert (found.not_valid_before_utc.year, found.not_valid_after_utc.year) == (2000, 9999)


def test_both_sides_must_show_one(folder: Path) -> None:
    """A client without, or with one of another stack, gets no connection."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "authority.crt"))
    server.load_cert_chain(folder / "inner.crt", folder / "inner.key")
    server.verify_mode = ssl.CERT_REQUIRED
    other = folder.parent / "other"
    make_certificates(other)

    def shakes_hands(certificates: Path | None) -> bool:
        client = ssl.create_default_context(cafile=str(folder / "authority.crt"))
        if certificates is not None:
            client.load_cert_chain(certificates / "inner.crt", certificates / "inner.key")
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [client.wrap_bio(down, up, server_hostname="127.0.0.1"), server.wrap_bio(up, down, server_side=True)]
        for _ in range(4):
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                except ssl.SSLError:
                    return False
        return ends[1].getpeercert() is not None

    assert (shakes_hands(folder), shakes_hands(None), shakes_hands(other)) == (True, False, False)


def test_the_command_is_started_with_them_and_a_second_start_keeps_them(tmp_path: Path) -> None:
    folder = tmp_path / ".winnow" / "certificates"
    command = [sys.executable, "-m", "infra.certificates", str(folder), sys.executable, "-c", PRINT]

    def start() -> tuple[str, bytes]:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=dict(os.environ))
        return done.stdout, (folder / "inner.key").read_bytes()

    printed, key = start()
    assert dict(line.split("=", 1) for line in printed.splitlines()) == inner_tls(folder)
    assert start() == (printed, key)
    (folder / "inner.key").unlink()
    assert start()[1] != key


def test_it_says_how_it_is_used() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.certificates"], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 2 and "usage: python -m infra.certificates FOLDER COMMAND" in done.stderr
