"""Becomes another user where it may, and has no key: tries ports and sockets, and prints what they answered.

Standard library only. Standard input holds ``{"ports": [...], "sockets": [...]}``; what is printed is, for each, a list
of ``[how, request, status, beginning of the answer]``, those left out that were answered nothing.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - all is imported before nobody, who may not read our Python, needs it
import http.client
import json
import os
import socket
import ssl
import sys

NOBODY = 65534
REQUESTS = (
    ("GET", "/"),
    ("GET", "/dir/status"),
    ("GET", "/dir/assign"),
    ("GET", "/dir/lookup?volumeId=1"),
    ("GET", "/vol/status"),
    ("GET", "/cluster/status"),
    ("GET", "/col/delete?collection=winnow-records"),
    ("GET", "/status"),
    ("GET", "/1,01"),
    ("GET", "/winnow/private"),
    ("GET", "/buckets/?limit=10"),
    ("GET", "/buckets/winnow/private"),
    ("PUT", "/buckets/winnow/planted"),
    ("DELETE", "/buckets/winnow/private"),
    ("DELETE", "/winnow/private"),
    ("PUT", "/winnow/planted"),
    ("POST", "/api/2.0/mlflow/experiments/search"),
    ("GET", "/get-artifact?path=x&run_uuid=y"),
    ("GET", "/graphql"),
    ("POST", "/api/flows/filter"),
    ("POST", "/api/deployments/filter"),
    ("POST", "/api/work_pools/filter"),
    ("GET", "/api/admin/settings"),
    ("POST", "/api/admin/database/clear"),
    ("GET", "/admin/models"),
    ("POST", "/admin/models/m/traffic"),
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def speaks_grpc(sock: socket.socket) -> bool:
    """Whether it greets a client of HTTP/2, as every gRPC server does."""
    try:
        sock.sendall(PREFACE)
        return sock.recv(9)[3:4] == b"\4"
    except OSError:
        return False


def try_http(port: int, context: ssl.SSLContext | None) -> list[tuple[str, str, int, str]]:
    found = []
    for method, path in REQUESTS:
        connection = (
            http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            if context is None
            else http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
        )
        try:
            connection.request(method, path, body=b"{}" if method in ("POST", "PUT") else None)
            answer = connection.getresponse()
            text = answer.read(200).decode(errors="replace")
            found.append(("plain" if context is None else "tls", f"{method} {path}", answer.status, text))
        except (OSError, http.client.HTTPException):
            if context is not None:
                break  # no handshake, no request
        finally:
            connection.close()
    return found


def main() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    asked = json.load(sys.stdin)
    anybody = ssl._create_unverified_context()  # what a server shows does not matter here
    anybody.set_alpn_protocols(["h2", "http/1.1"])
    http1 = ssl._create_unverified_context()
    found: dict[str, list[tuple[str, str, int, str]]] = {}
    for port in asked["ports"]:
        seen = try_http(port, None) + try_http(port, http1)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            if speaks_grpc(sock):
                seen.append(("grpc", "plain", 200, ""))
        try:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
                anybody.wrap_socket(sock) as secured,
            ):
                if speaks_grpc(secured):
                    seen.append(("grpc", "tls", 200, ""))
        except OSError:
            pass
        found[str(port)] = seen
    for path in asked["sockets"]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            try:
                sock.connect(path)
            except OSError:
                found[path] = []
            else:
                found[path] = [("grpc", "plain", 200, "")] if speaks_grpc(sock) else []
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
