"""The stack's folder, ``.winnow/``: where everything lies, what was chosen, and the generated secrets.

stack.json     ports and choices, remembered          secrets.json   keys and tokens, mode 0600
run/           pid files, the lock                    logs/          a log per component
certificates/  of the S3 server's parts                seaweedfs/  mlflow/  prefect/  endpoint/   their data
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from infra import ports
from infra.faults import StackMisconfigured

SCHEMA = 1
T = TypeVar("T", "Settings", "Secrets")

#: Who logs in to MLflow and Prefect.
USER = "winnow"
#: Ports that nobody needs to know: SeaweedFS listens on nine more, Prefect's worker on one.
INNER_PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3.grpc", "admin", "worker")
#: SeaweedFS's own worker looks for the admin's gRPC so much above its HTTP port, whatever the flag says.
ADMIN_GRPC = 10000


def inner_ports(kept: Mapping[str, int] | None = None) -> dict[str, int]:
    """A free port for each inner purpose, those given kept."""
    found = dict(kept or {})
    for name in INNER_PORTS:
        while name not in found:
            [port] = ports.pick(1, twin=ADMIN_GRPC if name == "admin" else 0)
            if port not in found.values():
                found[name] = port
    return found


@dataclass(frozen=True)
class Settings:
    """What was chosen, in ``stack.json``."""

    ports: dict[str, int] = field(default_factory=lambda: {port.name: port.default for port in ports.PUBLIC})
    inner_ports: dict[str, int] = field(default_factory=inner_ports)
    #: an S3 endpoint that is not ours; empty: the embedded server
    s3_endpoint: str = ""
    store: str = "s3://winnow"
    region: str = "us-east-1"


@dataclass(frozen=True)
class Secrets:
    """What nobody else may read, in ``secrets.json``."""

    access_key: str = field(default_factory=lambda: "WINNOW" + secrets.token_hex(7).upper())
    secret_key: str = field(default_factory=lambda: secrets.token_urlsafe(30))
    admin_token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    #: of MLflow and Prefect, for the user above
    password: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    #: without signing keys SeaweedFS's inner ports would let every local user read and write all objects
    signing_key: str = field(default_factory=lambda: secrets.token_hex(32))
    #: the URL of MLflow's database, which may hold a password; empty: SQLite in the folder
    mlflow_db: str = ""


class Home:
    """The folder and its two small files."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.settings_file = self.path / "stack.json"
        self.secrets_file = self.path / "secrets.json"

    @classmethod
    def from_environment(cls) -> Home:
        """WINNOW_HOME, by default ``.winnow`` in the working directory."""
        return cls(Path(os.environ.get("WINNOW_HOME") or ".winnow"))

    def create(self) -> None:
        """Make the folder, closed to other users, where missing."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
            if self.path.parent != self.path and not (self.path / ".gitignore").exists():
                (self.path / ".gitignore").write_text("*\n")  # keys and data never land in a user's repository
        except OSError as error:
            raise StackMisconfigured(
                f"cannot write the stack's folder {self.path} ({error.strerror}); "
                "set WINNOW_HOME to a folder that you can write"
            ) from error

    def settings(self) -> Settings | None:
        """What was chosen before; None in a fresh folder."""
        return self._load(self.settings_file, Settings)

    def secrets(self) -> Secrets | None:
        """The secrets generated before; None in a fresh folder."""
        return self._load(self.secrets_file, Secrets)

    def save(self, settings: Settings, secrets: Secrets) -> None:
        """Write both files; a file that says the same already is left alone."""
        self.create()
        self._store(self.settings_file, settings, 0o644)
        self._store(self.secrets_file, secrets, 0o600)

    def restore(self, settings: Settings | None, secrets: Secrets | None) -> None:
        """Write what was there before; None: there was nothing."""
        if settings is not None and secrets is not None:
            self.save(settings, secrets)
        else:
            self.settings_file.unlink(missing_ok=True)
            self.secrets_file.unlink(missing_ok=True)

    def _load(self, path: Path, kind: type[T]) -> T | None:
        try:
            found: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StackMisconfigured(f"cannot read {path}: {error}; fix it, or move it away to start afresh") from error
        if found.get("schema") != SCHEMA:
            raise StackMisconfigured(
                f"{path} has schema {found.get('schema')!r}, this Winnow knows {SCHEMA}; use the Winnow that wrote it"
            )
        known = {one.name for one in fields(kind)}
        return kind(**{name: value for name, value in found.items() if name in known})

    def _store(self, path: Path, value: Settings | Secrets, mode: int) -> None:
        text = json.dumps({"schema": SCHEMA, **asdict(value)}, indent=2) + "\n"
        if path.exists() and path.read_text() == text:
            return
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
