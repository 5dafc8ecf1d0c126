"""
OpenID Connect, for the console's login: where to send a browser, and who came back.

The authorization code flow with PKCE, by Authlib and joserfc. Its one rule: a person is who a signature of the issuer says, for this client,
for this browser's own question, and now; anything else is nobody.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from controller.ports import Unavailable

TIMEOUT_S = 5.0
DOCUMENT_LASTS_S = 300.0
LEEWAY_S = 60
"""Between the clocks of two machines."""

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a key that only the issuer has; none that the client's secret, or nobody, could make."""


class NotProven(Exception):
    """Whoever came back is not proven to be anybody; the message says what was wrong, and holds nothing secret."""


class ProviderUnavailable(Unavailable):
    """The provider does not answer, or not with what OpenID Connect asks of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """
    What one browser was sent away with; only it knows them.

    Args:
        state, nonce: Come back in the address and in the signed answer.
        verifier: Proves that whoever brings the code is who asked for it.
        back: Where the provider sends the browser to.
    """

    state: str
    nonce: str
    verifier: str = field(repr=False)
    back: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """Who it is, by the issuer's word."""

    subject: str
    email: str


class OidcProvider:
    """
    Args:
        issuer: Its address, exactly as it calls itself.
        client_id, client_secret: What it knows this console by.

    Raises:
        ValueError: the issuer is no https address (http on loopback is).
    """

    def __init__(self, issuer: str, client_id: str, client_secret: str) -> None:
        parts = urlsplit(issuer)
        if not parts.hostname or not (
            parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1"))
        ):
            raise ValueError(f"{issuer!r} is not an https:// address")
        self.issuer = issuer
        self._client_id = client_id
        self._client_secret = client_secret
        self._document: tuple[float, Mapping[str, Any], KeySet] | None = None

    def where(self, question: Question) -> str:
        """
        The address to send a browser to.

        Raises:
            ProviderUnavailable: the provider's document cannot be read.
        """
        document, _ = self._known()
        with self._session(question) as session:
            url, _ = session.create_authorization_url(
                document["authorization_endpoint"], state=question.state, nonce=question.nonce, code_verifier=question.verifier
            )
        return str(url)

    def who(self, question: Question, answer: Mapping[str, str]) -> Proven:
        """
        Args:
            question: That this browser was sent away with.
            answer: Parameters that it came back with.

        Raises:
            NotProven: nobody, or somebody else's answer.
            ProviderUnavailable: the provider cannot be asked.
        """
        if answer.get("state") != question.state:
            raise NotProven("the answer is to another question: log in again")
        if "code" not in answer:
            raise NotProven(f"the provider refused: {answer.get('error', 'no reason')[:80]}")
        document, _ = self._known()
        try:
            with self._session(question) as session:
                token = session.fetch_token(
                    document["token_endpoint"], code=answer["code"], code_verifier=question.verifier, timeout=TIMEOUT_S
                )
        except AuthlibBaseError as exc:
            raise NotProven(f"the provider does not take its own code: {exc.error}") from exc
        except (requests.RequestException, ValueError) as exc:
            raise ProviderUnavailable(f"the provider at {self.issuer} does not answer") from exc
        return self._read(str(token.get("id_token") or ""), question)

    def _read(self, id_token: str, question: Question) -> Proven:
        claims = self._claims(id_token)
        if claims.get("nonce") != question.nonce:
            raise NotProven("the signed answer is to another question: log in again")
        audience = claims["aud"]
        if isinstance(audience, list) and len(audience) > 1 and claims.get("azp") != self._client_id:
            raise NotProven("the signed answer is for another client")
        email = claims.get("email")
        if not isinstance(email, str) or claims.get("email_verified") is not True:
            raise NotProven("the provider does not vouch for an e-mail address")
        return Proven(subject=str(claims["sub"]), email=email)

    def _claims(self, id_token: str) -> Mapping[str, Any]:
        rules = jwt.JWTClaimsRegistry(
            now=lambda: int(time.time()),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": self.issuer},
            aud={"essential": True, "value": self._client_id},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
        )
        for fresh in (False, True):  # keys are changed now and then
            _, keys = self._known(fresh=fresh)
            try:
                token = jwt.decode(id_token, keys, algorithms=list(ALGORITHMS))
                rules.validate(token.claims)
            except (JoseError, ValueError) as exc:
                problem = exc
                continue
            return token.claims
        raise NotProven(f"the signed answer does not hold: {type(problem).__name__}") from problem

    def _session(self, question: Question) -> Any:
        session = OAuth2Session(
            self._client_id,
            self._client_secret,
            scope="openid email",
            redirect_uri=question.back,
            code_challenge_method="S256",
        )
        session.trust_env = False
        session.max_redirects = 0
        return session

    def _known(self, *, fresh: bool = False) -> tuple[Mapping[str, Any], KeySet]:
        kept = self._document
        if kept is not None and not fresh and time.monotonic() - kept[0] < DOCUMENT_LASTS_S:
            return kept[1], kept[2]
        try:
            with requests.Session() as session:
                session.trust_env = False
                found = session.get(
                    f"{self.issuer.rstrip('/')}/.well-known/openid-configuration", timeout=TIMEOUT_S, allow_redirects=False
                )
                found.raise_for_status()
                document = found.json()
                if document["issuer"] != self.issuer:
                    raise ProviderUnavailable(f"the provider at {self.issuer} calls itself {str(document['issuer'])[:200]!r}")
                for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                    document[name] = str(document[name])
                answer = session.get(document["jwks_uri"], timeout=TIMEOUT_S, allow_redirects=False)
                answer.raise_for_status()
                keys = KeySet.import_key_set(answer.json())
        except (requests.RequestException, ValueError, KeyError, TypeError, JoseError) as exc:
            raise ProviderUnavailable(
                f"the provider at {self.issuer} does not say where to log in: {type(exc).__name__}"
            ) from exc
        self._document = (time.monotonic(), document, keys)
        return document, keys
