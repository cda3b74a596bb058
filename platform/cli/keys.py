"""The commands for the queue's keys and tokens: make a pair, and look into a token."""

import json
import os
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import jwt
import typer
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from ..core import InvalidAuthorizationError, InvalidRequestError
from ..core.values import now
from ..queue import AuthorizationKey, AuthorizationVerifier
from ..queue.models import keys_of_file, read_key_file
from ..queue.service import AUDIENCE, ISSUER, TIMES
from ..wallets import QueueAuthorization
from ..wallets.authorization import MAX_TOKEN_LENGTH, action_fields, claimed_time, compact_form
from .terminal import JsonOption, Refusal, console

OWN, EVERYBODY = 0o600, 0o644
NAME_WIDTH = 17

commands = typer.Typer()
token = typer.Typer(help="What a token of the queue says.")
commands.add_typer(token, name="token")


class Algorithm(StrEnum):
    """The algorithms of key pairs."""

    EDDSA = "EdDSA"
    ES256 = "ES256"


@commands.command(epilog="Example: points-platform keygen queue.pem")
def keygen(
    private: Annotated[Path, typer.Argument(metavar="FILE.pem", help="where the private key goes")],
    public: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="where the public key goes, else FILE.pub.pem"),
    ] = None,
    algorithm: Annotated[
        Algorithm, typer.Option(help="Ed25519, or P-256 where something else needs it")
    ] = Algorithm.EDDSA,
) -> None:
    """Make a pair of keys: the private one for the queue, the public one for the wallets."""
    public = private.with_suffix(f".pub{private.suffix or '.pem'}") if public is None else public
    made = Ed25519PrivateKey.generate() if algorithm is Algorithm.EDDSA else generate_private_key(SECP256R1())
    # The public one first: a private key that nobody needs must not stay behind.
    _create(public, made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), EVERYBODY)
    try:
        _create(private, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), OWN)
    except BaseException:
        public.unlink()
        raise
    key = AuthorizationKey.of(made)
    _line("kid", key.kid)
    _line("algorithm", key.algorithm)
    _line("private key", f"{private} (for the queue alone)")
    _line("public key", f"{public}")


@token.command(epilog="Exit status: 0, or 1 where keys are given and none of them accepts the token.")
def show(
    text: Annotated[str, typer.Argument(metavar="TOKEN|-", help="the token; - reads it from standard input")],
    key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", show_default=False, help="would a verifier with these keys accept it? PEM or JWK(S)"
        ),
    ] = None,
    issuer: Annotated[str, typer.Option(metavar="NAME", help="whose tokens the keys are for")] = ISSUER,
    audience: Annotated[str, typer.Option(metavar="NAME", help="for whom")] = AUDIENCE,
    as_json: JsonOption = False,
) -> None:
    """Header and claims of a token, when it is valid, and which keys accept it now. The token itself is not shown."""
    read = _read(sys.stdin.read(MAX_TOKEN_LENGTH + 2) if text == "-" else text)
    header, claims = _opened(read)
    verdicts = [verdict for path in key or () for verdict in _verdicts(read, path, issuer, audience)]
    if as_json:
        times = {name: time.isoformat() for name in TIMES if (time := _time(claims, name)) is not None}
        typer.echo(json.dumps({"header": header, "claims": claims, "times": times, "keys": verdicts}))
    else:
        _print(header, claims, verdicts)
    if key and not any(verdict["accepts"] for verdict in verdicts):
        raise typer.Exit(1)


def _create(path: Path, content: bytes, mode: int) -> None:
    """A new file; one that is there, or a link, stays as it is."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise Refusal(f"{path} is there already; a key that was in use may still be needed") from None
    with open(descriptor, "wb") as file:
        file.write(content)


def _read(text: str) -> str:
    try:
        return compact_form(text.strip())
    except InvalidAuthorizationError:
        raise Refusal(
            "that is no token: it has three parts of letters, digits, - and _, with dots between them"
        ) from None


def _opened(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return jwt.get_unverified_header(text), jwt.decode(text, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        raise Refusal(f"that is no token that can be read: {_shown(str(error))}") from None


def _verdicts(text: str, path: Path, issuer: str, audience: str) -> Iterator[dict[str, Any]]:
    """For each key of a file what a verifier with it would say; the first fault is the one that it names."""
    try:
        keys = keys_of_file(read_key_file(path))
    except InvalidRequestError as error:
        yield {"file": str(path), "accepts": False, "why": f"no keys: {error}"}
        return
    for each in keys:
        verifier = AuthorizationVerifier(each, issuer=issuer, audience=audience)
        about = {"file": str(path), "kid": each.kid, "algorithm": each.algorithm}
        try:
            envelope = QueueAuthorization.from_token(text)
            action = {name: getattr(envelope, name) for name in action_fields(type(envelope))}
            verifier.verify(envelope, type(envelope), action)
            yield {**about, "accepts": True, "why": ""}
        except InvalidAuthorizationError as error:
            yield {**about, "accepts": False, "why": str(error), "cause": error.details["cause"]}


def _print(header: dict[str, Any], claims: dict[str, Any], verdicts: list[dict[str, Any]]) -> None:
    for title, members in (("header", header), ("claims", claims)):
        console.print(title, style="bold")
        for name, value in members.items():
            _line(_shown(name), f"{_shown(value)}{_moment(claims, name) if members is claims else ''}")
    console.print(_validity(claims), style="bold")
    for verdict in verdicts:
        named = (
            f"{_shown(verdict['file'])} ({verdict['algorithm']}, kid {verdict['kid']})"
            if "kid" in verdict
            else verdict["file"]
        )
        said = "accepts it" if verdict["accepts"] else f"does not accept it: {verdict['why']}"
        console.print(f"{named}: {said}", style="green" if verdict["accepts"] else "bold red")


def _line(name: str, value: str) -> None:
    console.print(f"  {name:<{NAME_WIDTH}} {value}")


def _shown(value: object) -> str:
    """A text as it is, anything else as JSON; what could steer a terminal is escaped."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def _moment(claims: dict[str, Any], name: str) -> str:
    time = _time(claims, name) if name in TIMES else None
    return "" if time is None else f"  {time:%Y-%m-%d %H:%M:%S} UTC"


def _time(claims: dict[str, Any], name: str) -> datetime | None:
    try:
        return claimed_time(claims, name)
    except InvalidAuthorizationError:
        return None


def _validity(claims: dict[str, Any]) -> str:
    """Whether it is valid now, by this machine's clock, without leeway."""
    moment = now()
    begins = [time for name in ("iat", "nbf") if (time := _time(claims, name)) is not None]
    ends = _time(claims, "exp")
    if ends is None or len(begins) < 2:
        return "without the times that a token needs: never valid"
    if moment >= ends:
        return f"expired {_age(moment - ends)} ago"
    if moment < max(begins):
        return f"valid in {_age(max(begins) - moment)}"
    return f"valid for another {_age(ends - moment)}"


def _age(span: timedelta) -> str:
    return f"{timedelta(seconds=int(span.total_seconds()))}"
