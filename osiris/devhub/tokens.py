"""The tokens of callers: App JWTs, installation tokens that are valid for an hour, and personal
tokens."""

import base64
import json
import secrets
import time
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from osiris.devhub.errors import ApiError

HOUR = 3600
LONGEST_JWT = 600
DRIFT = 60


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    private: str
    public: str


def generate_key_pair() -> KeyPair:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return KeyPair(private=private.decode(), public=public.decode())


def generate_personal_token() -> str:
    return "ghp_" + secrets.token_hex(18)


def generate_installation_token(app_id: int) -> str:
    """Return a token in GitHub's long form: the prefix, the app's id, and three dotted parts."""
    parts = (
        json.dumps({"alg": "ES256"}).encode(),
        secrets.token_bytes(96),
        secrets.token_bytes(64),
    )
    return f"ghs_{app_id}_" + ".".join(
        base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts
    )


def is_jwt(token: str) -> bool:
    return token.startswith("eyJ") and token.count(".") == 2


def read_issuer(token: str) -> str:
    """Return the app that a JWT claims to be from, before anything is verified."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError:
        raise ApiError(401, "A JSON web token could not be decoded") from None
    return str(claims.get("iss", ""))


def verify_jwt(token: str, public_key: str) -> None:
    """Raise ApiError unless the app signed this token and it is valid now.

    The times are compared with the wall clock, not the hub's own clock: the client's library sets
    them.
    """
    options = {"verify_exp": False, "verify_iat": False, "verify_nbf": False, "verify_aud": False}
    try:
        claims = jwt.decode(token, public_key, algorithms=["RS256"], options=options)  # type: ignore[arg-type]
    except jwt.PyJWTError:
        raise ApiError(401, "A JSON web token could not be decoded") from None
    _check_times(claims.get("iat"), claims.get("exp"), time.time())


def _check_times(issued: object, expires: object, now: float) -> None:
    if not isinstance(issued, int | float) or issued > now + DRIFT:
        raise ApiError(
            401,
            "'Issued at' claim ('iat') must be an Integer representing the time that the assertion"
            " was issued",
        )
    if not isinstance(expires, int | float) or expires <= now:
        raise ApiError(
            401,
            "'Expiration time' claim ('exp') must be a numeric value representing the future time"
            " at which the assertion expires",
        )
    if expires > now + LONGEST_JWT + DRIFT or expires - issued > LONGEST_JWT + DRIFT:
        raise ApiError(401, "'Expiration time' claim ('exp') is too far in the future")
