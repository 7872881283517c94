"""A small OpenID provider for tests, on loopback: authorization code, PKCE, RS256, logout."""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT = "canopy"
SECRET = "an open secret of the provider"

Claims = dict[str, Any]
Fields = dict[str, str]


class Provider:
    """The running provider. `person`: who is logged in there, and lets everybody know it.

    `change`: what a test does to the claims of the next token; `sign`: how it is signed.
    """

    def __init__(self, port: int) -> None:
        self.issuer = f"http://127.0.0.1:{port}"
        self.person: Claims | None = None
        self.further: Claims = {}  # at the userinfo endpoint
        self.change: Callable[[Claims], Claims] = dict
        self.sign: Callable[[Claims], str] = self.signed
        self.public = False  # the client has no secret
        self.logouts: list[Fields] = []
        self.metadata: Claims = {}  # in place of the true one
        self.key = RSAKey.generate_key(2048, {"kid": "first"})
        self._codes: dict[str, Fields] = {}
        self._tokens: dict[str, Claims] = {}

    def renew_key(self) -> None:
        """Signs with another key from now on."""
        self.key = RSAKey.generate_key(2048, {"kid": secrets.token_hex(4)})

    def signed(self, claims: Claims) -> str:
        """As it should be."""
        return jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)

    def discovery(self) -> Claims:
        """The provider's own description."""
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "jwks_uri": f"{self.issuer}/keys",
            "end_session_endpoint": f"{self.issuer}/logout",
            "id_token_signing_alg_values_supported": ["RS256", "none", "HS256"],
            **self.metadata,
        }

    def authorize(self, asked: Fields) -> str:
        """Where the browser goes next."""
        assert asked["client_id"] == CLIENT
        assert asked["code_challenge_method"] == "S256"
        back = {"state": asked["state"]}
        if self.person is None:
            return f"{asked['redirect_uri']}?{urlencode({**back, 'error': 'access_denied'})}"
        code = secrets.token_urlsafe()
        self._codes[code] = asked
        return f"{asked['redirect_uri']}?{urlencode({**back, 'code': code})}"

    def token(self, sent: Fields, authorization: str) -> tuple[int, Claims]:
        """The answer to a code, which is good once, for who has the verifier and the secret."""
        asked = self._codes.pop(sent.get("code", ""), None)
        if asked is None or asked["redirect_uri"] != sent.get("redirect_uri"):
            return 400, {"error": "invalid_grant"}
        digest = hashlib.sha256(sent.get("code_verifier", "").encode()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != asked["code_challenge"]:
            return 400, {"error": "invalid_grant"}
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if not self.public and authorization != f"Basic {basic}":
            return 401, {"error": "invalid_client"}
        person = self.person or {}
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 60, **person}
        claims["nonce"] = asked["nonce"]
        access = secrets.token_urlsafe()
        self._tokens[access] = {"sub": person.get("sub"), **self.further}
        token = self.sign(self.change(claims))
        return 200, {"access_token": access, "token_type": "Bearer", "id_token": token}

    def userinfo(self, authorization: str) -> tuple[int, Claims]:
        """Further claims."""
        found = self._tokens.get(authorization.removeprefix("Bearer "))
        return (200, found) if found else (401, {"error": "invalid_token"})


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        provider = cast(_Server, self.server).provider
        parts = urlsplit(self.path)
        fields = dict(parse_qsl(parts.query))
        authorization = self.headers.get("Authorization", "")
        match parts.path:
            case "/.well-known/openid-configuration":
                self._answer(200, provider.discovery())
            case "/keys":
                self._answer(200, {"keys": [provider.key.as_dict(private=False)]})
            case "/authorize":
                self._redirect(provider.authorize(fields))
            case "/userinfo":
                self._answer(*provider.userinfo(authorization))
            case "/logout":
                provider.logouts.append(fields)
                self._redirect(fields["post_logout_redirect_uri"])
            case _:
                self._answer(404, {})

    def do_POST(self) -> None:
        provider = cast(_Server, self.server).provider
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        sent = {name: values[0] for name, values in parse_qs(body).items()}
        self._answer(*provider.token(sent, self.headers.get("Authorization", "")))

    def _answer(self, status: int, content: Claims) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _redirect(self, address: str) -> None:
        self.send_response(302)
        self.send_header("Location", address)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *words: Any) -> None:
        """Nothing."""


class _Server(ThreadingHTTPServer):
    provider: Provider
    daemon_threads = True


@contextmanager
def running_provider() -> Iterator[Provider]:
    """A provider that nobody has logged in to yet."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.provider = Provider(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
