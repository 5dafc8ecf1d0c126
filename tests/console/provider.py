"""
A small OpenID Connect provider that keeps to the protocol (discovery, keys, code flow with PKCE, signed answers), and breaks it when told to.

It logs everybody in as `email` without asking. `spoil` changes one answer.
"""

import base64
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

CLIENT, SECRET = "penstock-console", "the-clients-secret"


@dataclass(slots=True)
class Provider:
    email: str = "dana@example.com"
    spoil: Mapping[str, Any] = field(default_factory=dict)
    """Claims that are other than they should be; `alg`, `key`: how the answer is signed."""
    asked: list[dict[str, str]] = field(default_factory=list)
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)
    _key: Any = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"}))
    _server: ThreadingHTTPServer | None = None

    @property
    def issuer(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                at = urlsplit(self.path)
                match at.path:
                    case "/.well-known/openid-configuration":
                        self._json(200, outer.document())
                    case "/keys":
                        self._json(200, {"keys": [outer._key.as_dict(private=False)]})
                    case "/authorize":
                        self.send_response(303)
                        self.send_header("Location", outer.authorize(dict(parse_qsl(at.query))))
                        self.end_headers()
                    case _:
                        self._json(404, {})

            def do_POST(self) -> None:
                body = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
                self._json(*outer.token(body, self.headers.get("Authorization", "")))

            def _json(self, status: int, data: Mapping[str, Any]) -> None:
                raw = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def document(self) -> dict[str, Any]:
        return {
            "issuer": self.spoil.get("issuer", self.issuer),
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def authorize(self, query: dict[str, str]) -> str:
        assert query["client_id"] == CLIENT
        assert query["response_type"] == "code"
        assert "openid" in query["scope"].split()
        assert query["code_challenge_method"] == "S256"
        self.asked.append(query)
        code = f"code-{len(self.asked)}"
        self._codes[code] = query
        answer = {"error": self.spoil["error"]} if "error" in self.spoil else {"code": code}
        return f"{query['redirect_uri']}?{urlencode({**answer, 'state': self.spoil.get('state', query['state'])})}"

    def token(self, body: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        known = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if authorization != f"Basic {known}":
            return 401, {"error": "invalid_client"}
        asked = self._codes.pop(body["code"], None)  # a code counts once
        challenge = base64.urlsafe_b64encode(sha256(body.get("code_verifier", "").encode()).digest()).decode().rstrip("=")
        if asked is None or challenge != asked["code_challenge"] or body["redirect_uri"] != asked["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        now = int(time.time())
        claims = {"iss": self.issuer, "sub": "1", "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": asked["nonce"]}
        claims |= {"email": self.email, "email_verified": True}
        claims |= {k: v for k, v in self.spoil.items() if k in {*claims, "azp"}}
        return 200, {"access_token": "a", "token_type": "Bearer", "id_token": self._signed(claims)}

    def _signed(self, claims: dict[str, Any]) -> str:
        match self.spoil.get("signed"):
            case "none":
                parts = ({"alg": "none"}, claims)
                return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts) + "."
            case "secret":
                return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET))
            case "another":
                return jwt.encode({"alg": "RS256", "kid": "one"}, claims, RSAKey.generate_key(2048, {"kid": "one"}))
            case _:
                return jwt.encode({"alg": "RS256", "kid": "one"}, claims, self._key)
