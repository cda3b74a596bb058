"""Forged tokens by the million: none may be accepted, and each must be refused as an authorization is.

``attack`` makes them from genuine ones of every kind and algorithm; a seed repeats what it chooses.
``timing`` measures whether a wrong signature takes another time by where it is wrong.
"""

import gc
import hashlib
import hmac
import json
import math
import sys
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import get_context
from random import Random
from statistics import fmean, variance
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from points_platform.core import InvalidAuthorizationError
from points_platform.queue import AuthorizationKey, AuthorizationVerifier, QueueAuthorizer
from points_platform.wallets import (
    QueueAuthorization,
    QueuePartialSettlementAuthorization,
    QueueRefundAuthorization,
    QueueSettlementAuthorization,
)

Json = dict[str, Any]
Sign = Callable[[bytes], bytes]
LONG = 1_000_000
ORDER_OF_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
COMMON: Json = {"queue_item_id": "queue-1", "escrow_id": "01890a5d-ac96-774b-bcce-b302099a8057", "user_id": "ana"}
ACTIONS: dict[type[QueueAuthorization], Json] = {
    QueueSettlementAuthorization: {**COMMON, "reason": "performance_completed", "model_id": "luna", "amount": 1},
    QueueRefundAuthorization: {**COMMON, "reason": "queue_timeout", "amount": 1},
    QueuePartialSettlementAuthorization: {
        **COMMON,
        "reason": "partial_performance",
        "model_id": "luna",
        "refund_amount": 1,
        "settle_amount": 2,
    },
}


class Accepted(AssertionError):  # noqa: N818 - what was found, not what went wrong
    """A forged token was taken for genuine, or was refused in another way than it must be."""


@dataclass(frozen=True)
class Genuine:
    """A token that is valid, and what it is made of."""

    authorization: Any
    kind: type[QueueAuthorization]
    id: str
    header: Json
    claims: Json
    sign: Sign

    @property
    def token(self) -> str:
        token: str = self.authorization.token
        return token


@dataclass(frozen=True)
class Forged:
    """A token that must be refused, for one of these causes if any are named."""

    token: Any
    causes: frozenset[str] = frozenset()


def part(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def unpart(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def compact(header: Any, claims: Any, sign: Sign) -> str:
    head, body = (
        part(value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
        for value in (header, claims)
    )
    return f"{head}.{body}.{part(sign(f'{head}.{body}'.encode()))}"


def hs256(secret: bytes) -> Sign:
    return lambda message: hmac.digest(secret, message, "sha256")


# ── what is genuine ──


class Mint:
    """A verifier with a key of each algorithm, and genuine tokens of each kind by each of them."""

    def __init__(self, random: Random) -> None:
        self.random = random
        secret = random.randbytes(32)
        self.ed25519 = Ed25519PrivateKey.from_private_bytes(random.randbytes(32))
        self.p256 = derive_private_key(random.randrange(1, ORDER_OF_P256), SECP256R1())
        es256 = jwt.get_algorithm_by_name("ES256")
        keys: list[tuple[Any, Sign]] = [
            (secret, hs256(secret)),
            (self.ed25519, self.ed25519.sign),
            (self.p256, lambda message: es256.sign(message, self.p256)),
        ]
        self.verifier = AuthorizationVerifier([key for key, _ in keys])
        self.genuine = [self._genuine(key, sign, kind) for key, sign in keys for kind in ACTIONS]
        self.kinds = {each.token: each.kind for each in self.genuine}
        self.kids = [AuthorizationKey.of(key).kid for key, _ in keys]
        self.public = list(self._public())
        self.strangers = [Ed25519PrivateKey.from_private_bytes(random.randbytes(32)).sign for _ in range(3)]

    def _genuine(self, key: Any, sign: Sign, kind: type[QueueAuthorization]) -> Genuine:
        authorizer = QueueAuthorizer(key)
        authorize: dict[type[QueueAuthorization], Any] = {
            QueueSettlementAuthorization: authorizer.authorize_settlement,
            QueueRefundAuthorization: authorizer.authorize_refund,
            QueuePartialSettlementAuthorization: authorizer.authorize_partial_settlement,
        }
        authorization = authorize[kind](**ACTIONS[kind], expires_in=timedelta(days=1))
        # Verified once, so that what the verifier remembers of it is there to be abused.
        found = self.verifier.verify(authorization, kind, ACTIONS[kind])
        header, body, _ = authorization.token.split(".")
        return Genuine(authorization, kind, found, json.loads(unpart(header)), json.loads(unpart(body)), sign)

    def _public(self) -> Sequence[bytes]:
        """What everybody may know of our keys, in every form that somebody could take for a secret."""
        spki = PublicFormat.SubjectPublicKeyInfo
        known = [
            key.public_key().public_bytes(encoding, spki)
            for key in (self.ed25519, self.p256)
            for encoding in (Encoding.PEM, Encoding.DER)
        ]
        known.append(self.ed25519.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
        known.append(self.p256.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
        return [*known, *(each.strip() for each in known), *(kid.encode() for kid in self.kids), b""]


# ── without any key: the bytes of a genuine token ──

LOOKALIKES = {"A": "\u0410", "a": "\u0430", "e": "\u0435", "o": "\u03bf", "0": "\uff10", ".": "\u3002", "-": "\u2010"}
ODD = ["=", "==", "\n", "\r\n", " ", "\t", "\0", ".", "..", "é", "\ud800", "\u200b", "\ufeff", "+", "/", "%2E", "😀"]


def _flipped(mint: Mint, genuine: Genuine) -> Any:
    """One to eight bits of the bytes that a segment stands for."""
    segments = genuine.token.split(".")
    which = mint.random.randrange(3)
    data = bytearray(unpart(segments[which]))
    for _ in range(mint.random.choice((1, 1, 1, 2, 8))):
        data[mint.random.randrange(len(data))] ^= 1 << mint.random.randrange(8)
    segments[which] = part(bytes(data))
    return ".".join(segments)


def _character(mint: Mint, genuine: Genuine) -> Any:
    place = mint.random.randrange(len(genuine.token))
    return genuine.token[:place] + mint.random.choice(ALPHABET) + genuine.token[place + 1 :]


def _cut(mint: Mint, genuine: Genuine) -> Any:
    start, end = sorted(mint.random.choices(range(len(genuine.token) + 1), k=2))
    token = genuine.token
    return mint.random.choice((token[:end], token[start:], token[:start] + token[end:], token[:end] + token[start:]))


def _inserted(mint: Mint, genuine: Genuine) -> Any:
    text = mint.random.choice((mint.random.choice(ODD), mint.random.choice(ALPHABET)))
    place = mint.random.choice((0, len(genuine.token), mint.random.randrange(len(genuine.token))))
    return genuine.token[:place] + text + genuine.token[place:]


def _replaced(mint: Mint, genuine: Genuine) -> Any:
    place, odd = mint.random.randrange(len(genuine.token)), mint.random.choice(ODD)
    text = LOOKALIKES.get(genuine.token[place], odd)
    return genuine.token[:place] + text + genuine.token[place + 1 :]


def _unused_bits(mint: Mint, genuine: Genuine) -> Any:
    """Another text for the very same bytes: a lenient decoder reads over the bits that are left."""
    segments = genuine.token.split(".")
    which = mint.random.choice([n for n, segment in enumerate(segments) if len(segment) % 4])
    bits = {2: 4, 3: 2}[len(segments[which]) % 4]
    last = ALPHABET.index(segments[which][-1]) ^ mint.random.randrange(1, 1 << bits)
    segments[which] = segments[which][:-1] + ALPHABET[last]
    return ".".join(segments)


def _rearranged(mint: Mint, genuine: Genuine) -> Any:
    segments = genuine.token.split(".")
    chosen = mint.random.choices([*segments, "", *mint.random.choice(mint.genuine).token.split(".")], k=3)
    return ".".join(mint.random.choice((chosen, [*segments[:2], chosen[2]], [*segments, chosen[0]], segments[::-1])))


def _other_form(mint: Mint, genuine: Genuine) -> Any:
    """JSON serialization, JWE, bytes, and what somebody may have wrapped around a token."""
    token = genuine.token
    header, body, signature = token.split(".")
    flat = {"payload": body, "protected": header, "signature": signature}
    forms: list[Any] = [
        *(token.encode(), bytearray(token.encode()), memoryview(token.encode()), [token], (token,), {"token": token}),
        json.dumps(flat),
        json.dumps({"payload": body, "signatures": [{"protected": header, "signature": signature}]}),
        *(flat, f"{header}.{body}.{signature}.{body}.{signature}", f"{header}..{body}.{signature}.AAAA"),
        *(f"Bearer {token}", f'"{token}"', f"{token},{token}", token * 2, token.upper(), token.swapcase()),
        *(token.replace("_", "/").replace("-", "+") + "=", f"{header}.{body}", f"{header}.{body}."),
        *(f"{header}..{signature}", f".{body}.{signature}", ".." + signature, token.encode("utf-16").decode("latin-1")),
        *(0, 1, True, 1.5, object(), token + "A" * mint.random.randrange(20_000)),
    ]
    return mint.random.choice(forms)


# ── with a key, but not with ours ──

ALGORITHMS = ["none", "None", "NONE", "nOnE", "", "HS256", "HS384", "HS512", "RS256", "PS256", "ES256", "ES256K"]
ALGORITHMS += ["EdDSA", "Ed25519", "dir", "A256GCM", "hs256", "HS256 ", "../../dev/null"]
HOSTILE_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1.0, 1e308, 10**400, "", "x", "\0", "../../etc/passwd", "' OR 1=1 --", [], {}, [[]]),
    *("file:///dev/zero", {"kty": "oct", "k": ""}, float("nan"), float("inf"), "\u202e", "x" * 5000, ["HS256"]),
]


def _header(mint: Mint, genuine: Genuine) -> Json:
    """Another algorithm, key or extension, in the header of a genuine token."""
    random = mint.random
    jwk = jwt.get_algorithm_by_name("EdDSA").to_jwk(mint.ed25519.public_key(), as_dict=True)
    edits: list[Json] = [
        {"alg": random.choice([*ALGORITHMS, random.choice(HOSTILE_VALUES)])},
        {"kid": random.choice([*mint.kids, *HOSTILE_VALUES])},
        {"alg": random.choice(ALGORITHMS), "kid": random.choice(mint.kids)},
        {"jwk": jwk, "alg": "EdDSA"},
        {random.choice(("jku", "x5u", "x5c", "x5t", "jwk", "typ", "cty", "zip", "enc")): random.choice(HOSTILE_VALUES)},
        {"crit": random.choice((["b64"], ["exp"], ["kid"], [], "b64", *HOSTILE_VALUES))},
        {"b64": False, "crit": ["b64"]},
        {"zip": "DEF"},
    ]
    return genuine.header | random.choice(edits)


def _signatures(mint: Mint, genuine: Genuine) -> Sign:
    """Every signature that a stranger can make: none, an old one, one of his own keys, one of our public keys."""
    random = mint.random
    old = unpart(genuine.token.rpartition(".")[2])
    known = random.choice(mint.public)
    strangers: list[Sign] = [
        lambda message: old,
        lambda message: b"\0",
        lambda message: bytes(64),
        lambda message: hashlib.sha256(message).digest(),
        lambda message: hmac.new(known, message, random.choice(("sha256", "sha384", "sha512"))).digest(),
        hs256(known),
        hs256(b"a secret of somebody else, 32 bytes and more"),
        *mint.strangers,
    ]
    return random.choice(strangers)


def _other_header(mint: Mint, genuine: Genuine) -> Any:
    return compact(_header(mint, genuine), genuine.claims, _signatures(mint, genuine))


def _other_claims(mint: Mint, genuine: Genuine) -> Any:
    name = mint.random.choice([*genuine.claims, "cnf", "amount "])
    claims = genuine.claims | {name: mint.random.choice((mint.random.randrange(2**60), *HOSTILE_VALUES))}
    return compact(genuine.header, claims, _signatures(mint, genuine))


def _other_json(mint: Mint, genuine: Genuine) -> Any:
    """Claims or header in a form of JSON that parsers disagree about."""
    random = mint.random
    header, claims = (json.dumps(each).encode() for each in (genuine.header, genuine.claims))
    which = random.choice(("header", "claims"))
    text = header if which == "header" else claims
    name = random.choice([*(genuine.header if which == "header" else genuine.claims)])
    forms: list[bytes] = [
        b"\xef\xbb\xbf" + text,
        *(text.decode().encode(encoding) for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-7")),
        text[:-1] + f', "{name}": {random.choice(("1", "null", "NaN", "-Infinity", "1e999", "9" * 4400))}}}'.encode(),
        b'{"' + name.encode() + b'": 2, ' + text[1:],
        *(b"[" * random.randrange(1, 9000), b'{"a":' * random.randrange(1, 2000), b"[" + text + b"]"),
        *(text + b"\0", text + text, b" " + text, b"", b"null", b"\xff\xfe", text.replace(b'"', b"'")),
        text.replace(name.encode(), b"".join(b"\\u%04x" % letter for letter in name.encode())),
    ]
    parts = {"header": header, "claims": claims} | {which: random.choice(forms)}
    return compact(parts["header"], parts["claims"], _signatures(mint, genuine))


# ── with our own key: a genuine token for something else ──

OF_ACTION = frozenset({"claim_mismatch", "claim_missing"})
# PyJWT looks at the form of these before it hands them out.
OF_FORM = OF_ACTION | {"malformed"}
OTHERS: dict[type, list[Any]] = {
    int: [True, 1.0, 2.0, "1", "2", [1], {"1": 1}, 0, -1, 3, 2**53, 2**64, 10**400, 1.5, float("inf"), None, False],
    str: ["", "x", "\0", 0, 1, True, 1.5, [], {}, None, "\u202e"],
}


def _for_something_else(mint: Mint, genuine: Genuine) -> Any:
    name = mint.random.choice(
        [name for name in genuine.claims if name not in {"iss", "aud", "jti", "iat", "nbf", "exp"}]
    )
    value = genuine.claims[name]
    near = (
        [f"{value} ", f" {value}", f"{value}\0", value.upper(), value[:-1], [value]] if isinstance(value, str) else []
    )
    others = [other for other in [*OTHERS[type(value)], *near] if type(other) is not type(value) or other != value]
    claims = genuine.claims | {name: mint.random.choice(others)}
    if mint.random.random() < 0.1:
        del claims[name]
    return Forged(compact(genuine.header, claims, genuine.sign), OF_FORM if name == "sub" else OF_ACTION)


def _of_another_kind(mint: Mint, genuine: Genuine) -> Any:
    other = mint.random.choice([each for each in mint.genuine if each.kind is not genuine.kind])
    return Forged(other.token, OF_ACTION)


def _twin(mint: Mint, genuine: Genuine) -> str | None:
    """The other signature that ECDSA has for the same message, which anybody can compute."""
    if genuine.header["alg"] != "ES256":
        return None
    start, _, signature = genuine.token.rpartition(".")
    raw = unpart(signature)
    other = ORDER_OF_P256 - int.from_bytes(raw[32:])
    return f"{start}.{part(raw[:32] + other.to_bytes(32))}"


ORDER_OF_ED25519 = 2**252 + 27742317777372353535851937790883648493


def _shifted(mint: Mint, genuine: Genuine) -> Any:
    """A signature plus a multiple of the group's order: equal for whoever forgets to check its range."""
    start, _, signature = genuine.token.rpartition(".")
    raw = unpart(signature)
    order, ends = (ORDER_OF_ED25519, "little") if genuine.header["alg"] == "EdDSA" else (ORDER_OF_P256, "big")
    which = slice(32, 64) if genuine.header["alg"] == "EdDSA" or mint.random.random() < 0.5 else slice(0, 32)
    shifted = int.from_bytes(raw[which], ends) + mint.random.choice((order, 2 * order, -order))  # type: ignore[arg-type]
    data = bytearray(raw)
    data[which] = (shifted % 2**256).to_bytes(32, ends)  # type: ignore[arg-type]
    return f"{start}.{part(bytes(data))}"


FORGERIES: dict[Callable[[Mint, Genuine], Any], int] = {
    _flipped: 24,
    _character: 14,
    _cut: 8,
    _inserted: 8,
    _replaced: 6,
    _unused_bits: 6,
    _rearranged: 6,
    _other_form: 4,
    _shifted: 3,
    _other_header: 6,
    _other_claims: 5,
    _other_json: 4,
    _for_something_else: 4,
    _of_another_kind: 2,
}


# ── the attack ──


def attack(count: int, seed: int, workers: int = 1) -> dict[str, int]:
    """Have so many forged tokens refused; returns how often each cause was given.

    ``es256 twin`` counts what is no forgery: the second signature that ECDSA has for the same claims must
    stand for the very same authorization. Raises ``Accepted`` for the first forged token that was not
    refused as it must be.
    """
    if workers == 1:
        return dict(_attack(count, seed))
    shares = [count // workers + (number < count % workers) for number in range(workers)]
    total: Counter[str] = Counter()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for counts in pool.map(_attack, shares, [seed * 1000 + number for number in range(workers)]):
            total += counts
    return dict(total)


def _attack(count: int, seed: int) -> Counter[str]:
    random = Random(seed)
    mint = Mint(random)
    counts: Counter[str] = Counter()
    for genuine in mint.genuine:
        if twin := _twin(mint, genuine):
            if verify(mint, genuine, twin) != genuine.id:
                raise Accepted("the second signature of the same claims stands for something else")
            counts["es256 twin"] += 1
    chosen = iter(random.choices([*FORGERIES], [*FORGERIES.values()], k=count))
    for forge in chosen:
        counts[_refusal(mint, forge)] += 1
    for genuine in mint.genuine:
        if verify(mint, genuine, genuine.token) != genuine.id:
            raise Accepted("what was refused has changed what is accepted")
    return counts


def _refusal(mint: Mint, forge: Callable[[Mint, Genuine], Any]) -> str:
    while True:
        genuine = mint.random.choice(mint.genuine)
        made = forge(mint, genuine)
        forged = made if isinstance(made, Forged) else Forged(made)
        # What is left unchanged is genuine, and so is any other token of ours for the same action.
        if not isinstance(forged.token, str) or mint.kinds.get(forged.token) is not genuine.kind:
            break
    told = f"{forge.__name__} of a {genuine.kind.action} by {genuine.header['alg']}: {forged.token!r:.2000}"
    try:
        verify(mint, genuine, forged.token)
    except InvalidAuthorizationError as refusal:
        cause: str = refusal.details["cause"]
        if forged.causes and cause not in forged.causes:
            raise Accepted(f"refused for {cause}: {told}") from refusal
        return cause
    except Exception as error:
        raise Accepted(f"{error!r} from {told}") from error
    raise Accepted(f"accepted: {told}")


def verify(mint: Mint, genuine: Genuine, token: Any) -> str:
    """Present the token for what the genuine one permits."""
    return mint.verifier.verify(replace(genuine.authorization, token=token), genuine.kind, ACTIONS[genuine.kind])


# ── the time that a refusal takes ──


@dataclass(frozen=True)
class Timing:
    """The largest |t| of Welch's test over all crops of the slow tail; below 4.5 nothing can be told apart.

    ``chance`` is the same where both sides are wrong in any byte, so what this machine's noise makes of nothing;
    ``control`` is that of a comparison that stops at the first wrong byte, so that it must be large.
    """

    samples: int
    t: float
    chance: float
    control: float


def timing(seed: int, samples: int = 100_000) -> Timing:
    """Compare signatures that are wrong in their first byte with those that are wrong in their last, as dudect does."""
    random = Random(seed)
    authorizer = QueueAuthorizer(random.randbytes(32))
    kind = QueueRefundAuthorization
    genuine = authorizer.authorize_refund(**ACTIONS[kind], expires_in=timedelta(days=1))
    start, _, text = genuine.token.rpartition(".")
    signature = unpart(text)

    def verify(given: Any) -> None:
        try:
            authorizer.verify(given, kind, ACTIONS[kind])
        except InvalidAuthorizationError:
            return
        raise Accepted("a wrong signature was accepted")

    def compare(given: bytes) -> bool:
        return all(left == right for left, right in zip(given, signature, strict=True))

    wrong = [(side, _wrong(signature, place, bits)) for side, place in enumerate((0, 31)) for bits in range(1, 256)]
    # Made in no order, so that neither side is where the memory is nearer.
    random.shuffle(wrong)
    envelopes = [(side, replace(genuine, token=f"{start}.{part(each)}")) for side, each in wrong]
    mixed = [(number % 2, envelope) for number, (_, envelope) in enumerate(envelopes)]
    return Timing(
        samples=samples,
        t=_largest_t(random, verify, envelopes, samples),
        chance=_largest_t(random, verify, mixed, samples),
        control=_largest_t(random, compare, wrong, samples // 10),
    )


def _wrong(signature: bytes, place: int, bits: int) -> bytes:
    return signature[:place] + (signature[place] ^ bits).to_bytes() + signature[place + 1 :]


def _largest_t(
    random: Random, measured: Callable[[Any], object], given: Sequence[tuple[int, Any]], count: int
) -> float:
    clock, collecting = time.perf_counter_ns, gc.isenabled()
    chosen = random.choices(given, k=count)
    times = [0] * count
    gc.disable()
    try:
        for number, (_, each) in enumerate(chosen):
            begun = clock()
            measured(each)
            times[number] = clock() - begun
    finally:
        if collecting:
            gc.enable()
    in_order = sorted(times)
    crops = [in_order[int(count * (1 - 0.5 ** (n / 2)))] for n in range(1, 20)]
    sides = [[t for t, (of, _) in zip(times, chosen, strict=True) if of == side] for side in (0, 1)]
    return max(abs(welch_t(*([t for t in side if t <= crop] for side in sides))) for crop in [*crops, in_order[-1]])


def welch_t(left: Sequence[float], right: Sequence[float]) -> float:
    """Welch's t of two samples; 0 where one is too small to tell."""
    if len(left) < 2 or len(right) < 2:
        return 0.0
    spread = variance(left) / len(left) + variance(right) / len(right)
    return (fmean(left) - fmean(right)) / math.sqrt(spread) if spread else 0.0


if __name__ == "__main__":
    begun = time.perf_counter()
    found = attack(int(sys.argv[1]) if len(sys.argv) > 1 else LONG, seed=int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    print(found, f"{time.perf_counter() - begun:.1f} s")
    print(timing(1))
