"""The example of a gateway, examples/gateway/haproxy.cfg, on a real HAProxy in front of two servers."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from local.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIGURATION = Path(__file__).parents[2] / "examples" / "gateway" / "haproxy.cfg"
ISSUER = "https://issuer.example.com/"
HAPROXY = shutil.which("haproxy", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="HAProxy is not installed")


class _Server(BaseHTTPRequestHandler):
    """Answers with the name of the server, and with the token if it received one."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, ThreadingHTTPServer)
        body = f"{self.server.server_name} {self.headers.get('Authorization', 'no token')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def key() -> RSAPrivateKey:
    return generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, key: RSAPrivateKey) -> Iterator[str]:
    """The URL of the gateway."""
    issuer = tmp_path_factory.mktemp("gateway") / "issuer.pem"
    issuer.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    address = f"127.0.0.1:{free_port()}"
    environment = {"GATEWAY_ADDRESS": address, "ISSUER_KEY": str(issuer), "TOKEN_ISSUER": ISSUER}
    with ExitStack() as stack:
        for name in ("SA", "SB"):
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), _Server))
            server.server_name = name
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            environment[f"{name}_HOST"] = f"{name.lower()}.example.com"
            environment[f"{name}_ADDRESS"] = f"127.0.0.1:{server.server_port}"
        haproxy = subprocess.Popen(
            [str(HAPROXY), "-db", "-f", CONFIGURATION], env=environment, stdout=subprocess.DEVNULL
        )
        stack.callback(haproxy.wait)
        stack.callback(haproxy.terminate)
        until_listening(haproxy, address)
        yield f"http://{address}"


def until_listening(haproxy: subprocess.Popen[bytes], address: str) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + 60
    while True:
        assert haproxy.poll() is None
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def token(key: RSAPrivateKey | str, algorithm: str = "RS256", **changed: Any) -> str:
    """Return a token that may read, with the given changes to its claims; None removes one."""
    claims = {
        "iss": ISSUER,
        "aud": "db-cache-sync",
        "exp": int(time.time()) + 300,
        "scope": "openid cachesync:read",
        **changed,
    }
    kept = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(kept, key, algorithm=algorithm)


def status(url: str, bearer: str | None, method: str = "GET", path: str = "/students/1") -> int:
    headers = {"Host": "sa.example.com"} | ({"Authorization": f"Bearer {bearer}"} if bearer else {})
    return httpx.request(method, url + path, headers=headers, timeout=30).status_code


def test_each_host_reaches_its_service_and_the_token_stays_at_the_gateway(
    gateway: str, key: RSAPrivateKey
) -> None:
    for name in ("sa", "sb"):
        headers = {"Host": f"{name}.example.com", "Authorization": f"Bearer {token(key)}"}
        answer = httpx.get(f"{gateway}/students/1", headers=headers, timeout=30)
        assert (answer.status_code, answer.text) == (200, f"{name.upper()} no token")
    other = {"Host": "other.example.com", "Authorization": f"Bearer {token(key)}"}
    assert httpx.get(f"{gateway}/students/1", headers=other, timeout=30).status_code == 404


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "https://other.example.com/"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"exp": int(time.time()) - 1},
        {"exp": 0},
        {"exp": None},
    ],
)
def test_token_with_a_wrong_claim_is_refused(
    gateway: str, key: RSAPrivateKey, changed: dict[str, Any]
) -> None:
    assert status(gateway, token(key, **changed)) == 401


def test_token_that_the_issuer_did_not_sign_is_refused(gateway: str, key: RSAPrivateKey) -> None:
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    stranger = generate_private_key(public_exponent=65537, key_size=2048)
    head, claims, signature = token(key).split(".")
    other_claims = token(key, scope="cachesync:read cachesync:write").split(".")[1]
    # With a secret other than the public key, which PyJWT refuses as a secret.
    symmetric = token("a" * 32, "HS256")
    unsigned = f"{jwt.encode({}, '', algorithm='none').split('.')[0]}.{claims}."
    for forged in (
        token(stranger),
        f"{head}.{other_claims}.{signature}",
        f"{head}.{claims}.",
        f"{head}.{claims}",
        symmetric,
        unsigned,
        "garbage",
        public.replace("\n", ""),
    ):
        assert status(gateway, forged) == 401
    assert status(gateway, None) == 401


@pytest.mark.parametrize(
    ("scope", "reading", "writing"),
    [
        ("cachesync:read", 200, 403),
        ("cachesync:write", 403, 200),
        ("cachesync:write openid cachesync:read", 200, 200),
        ("xcachesync:read cachesync:writes", 403, 403),
        ("", 403, 403),
        (None, 403, 403),
    ],
)
def test_scopes_decide_who_may_read_and_who_may_write(
    gateway: str, key: RSAPrivateKey, scope: str | None, reading: int, writing: int
) -> None:
    bearer = token(key, scope=scope)
    assert status(gateway, bearer) == reading
    assert status(gateway, bearer, "DELETE") == writing


@pytest.mark.parametrize("path", ["/metrics", "/health/ready", "/%6detrics"])
def test_paths_of_the_operator_are_not_found(gateway: str, key: RSAPrivateKey, path: str) -> None:
    assert status(gateway, token(key, scope="cachesync:read cachesync:write"), path=path) == 404
