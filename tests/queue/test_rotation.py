"""Keys that are replaced while a verifier works: from a list, a document, or a file that is read again."""

import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from points_platform.core import InvalidAuthorizationError, InvalidRequestError
from points_platform.queue import AuthorizationKey, AuthorizationVerifier, KeyFile, QueueAuthorizer, keyring
from points_platform.queue.models import read_key_file
from points_platform.wallets import QueueRefundAuthorization
from support.jwks import private_jwk, public_jwk, public_pem

OLD, NEW, STRANGER = (Ed25519PrivateKey.generate() for _ in range(3))
P256 = ec.generate_private_key(ec.SECP256R1())
SECRET = "the secret that the tests sign with, 2026"
NEW_SECRET = "the secret that comes after it, from 2027"
ACTION: dict[str, Any] = {
    "queue_item_id": "queue-1",
    "escrow_id": "01890a5d-ac96-774b-bcce-b302099a8057",
    "user_id": "ana",
    "reason": "queue_timeout",
    "amount": 30,
}


class Clock:
    """A monotonic clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self._now = 1000.0

    def __call__(self) -> float:
        return self._now

    def tick(self, span: timedelta) -> None:
        self._now += span.total_seconds()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(keyring, "monotonic", clock)
    return clock


def signed(key: Any) -> QueueRefundAuthorization:
    signer = key if isinstance(key, QueueAuthorizer) else QueueAuthorizer(key)
    return signer.authorize_refund(**ACTION)


def verdict(verifier: AuthorizationVerifier, key: Any) -> str:
    """``ok``, or why a token of that key is refused."""
    authorization = key if isinstance(key, QueueRefundAuthorization) else signed(key)
    try:
        verifier.verify(authorization, QueueRefundAuthorization, ACTION)
    except InvalidAuthorizationError as error:
        return str(error.details["cause"])
    return "ok"


def jwks(*keys: Any) -> bytes:
    return json.dumps({"keys": [public_jwk(key) for key in keys]}).encode()


def pems(*keys: Any) -> bytes:
    return b"".join(map(public_pem, keys))


def put(path: Path, content: bytes) -> None:
    """Another file in its place, as one should: at one moment, and whole."""
    path.with_suffix(".new").write_bytes(content)
    os.replace(path.with_suffix(".new"), path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "queue.jwks"
    path.write_bytes(jwks(OLD))
    return path


# ── by hand ──


def test_keys_are_replaced_in_every_form_that_a_verifier_takes(file: Path) -> None:
    put(file, jwks(NEW))
    forms: list[Any] = [
        [NEW.public_key()],
        NEW.public_key(),
        public_pem(NEW),
        AuthorizationKey.of(NEW.public_key()),
        (key for key in [AuthorizationKey.of(NEW)]),
        json.loads(jwks(NEW)),
        jwks(NEW),
        jwks(NEW).decode(),
        KeyFile(file),
    ]
    for form in forms:
        verifier = AuthorizationVerifier([OLD.public_key()])
        assert (verdict(verifier, OLD), verdict(verifier, NEW)) == ("ok", "unknown_key")
        verifier.replace_keys(form)
        assert (verdict(verifier, OLD), verdict(verifier, NEW)) == ("unknown_key", "ok")


@pytest.mark.parametrize("key", [SECRET, OLD, P256], ids=["HS256", "EdDSA", "ES256"])
def test_a_removed_key_is_refused_at_once_also_where_its_header_was_proven(key: Any) -> None:
    verifier = AuthorizationVerifier([key, NEW.public_key()])
    before = signed(key)
    for _ in range(3):
        assert verdict(verifier, before) == "ok"
    verifier.replace_keys([NEW.public_key()])
    assert verdict(verifier, before) == "unknown_key"
    verifier.replace_keys([key, NEW.public_key()])
    assert verdict(verifier, before) == "ok", "and accepted again with its key"


def test_another_key_under_the_same_kid_is_another_key() -> None:
    old, new = (AuthorizationKey.of(key, kid="queue") for key in (SECRET, NEW_SECRET))
    verifier = AuthorizationVerifier([old])
    assert verdict(verifier, old) == "ok"
    verifier.replace_keys([new])
    assert (verdict(verifier, old), verdict(verifier, new)) == ("signature", "ok")
    verifier.replace_keys([AuthorizationKey.of(OLD.public_key(), kid="queue")])
    assert verdict(verifier, new) == "algorithm"


@pytest.mark.parametrize(
    "wrong",
    [[], [OLD, OLD], ["short"], "/run/secrets/queue.pem", {}, {"keys": []}, None, KeyFile("missing.pem"), [None]],
)
def test_keys_that_are_refused_change_nothing(wrong: Any) -> None:
    verifier, signer = AuthorizationVerifier([OLD.public_key()]), QueueAuthorizer(NEW, [OLD.public_key()])
    for replace_keys in (verifier.replace_keys, signer.replace_keys, lambda keys: signer.replace_key(STRANGER, keys)):
        if replace_keys != verifier.replace_keys and wrong == []:
            continue  # a signer has a key of its own
        with pytest.raises(InvalidRequestError):
            replace_keys(wrong)
        assert (verdict(verifier, OLD), verdict(signer, OLD), verdict(signer, signer)) == ("ok", "ok", "ok")
        assert verdict(verifier, NEW) == "unknown_key"


def test_a_signer_keeps_its_own_key_while_the_others_are_replaced() -> None:
    signer = QueueAuthorizer(NEW, [OLD.public_key()])
    signer.replace_keys([STRANGER.public_key()])
    assert [verdict(signer, key) for key in (signer, NEW, STRANGER, OLD)] == ["ok", "ok", "ok", "unknown_key"]
    signer.replace_keys([])
    assert [verdict(signer, key) for key in (signer, STRANGER)] == ["ok", "unknown_key"]


def test_a_signer_signs_with_another_key_from_now_on() -> None:
    signer = QueueAuthorizer(OLD)
    before = signed(signer)
    signer.replace_key(NEW, also_accept=[OLD.public_key()])
    assert [verdict(signer, each) for each in (before, signer)] == ["ok", "ok"]
    assert verdict(AuthorizationVerifier(NEW.public_key()), signer) == "ok"
    signer.replace_key(NEW)
    assert verdict(signer, before) == "unknown_key"
    with pytest.raises(InvalidRequestError, match="can sign"):
        signer.replace_key(OLD.public_key())
    assert verdict(AuthorizationVerifier(NEW.public_key()), signer) == "ok"


def test_a_published_document_may_list_the_signers_own_key_but_no_other_under_its_kid(file: Path) -> None:
    signer = QueueAuthorizer(OLD, json.loads(jwks(OLD, NEW)))
    assert [verdict(signer, key) for key in (signer, NEW)] == ["ok", "ok"]
    signer.replace_keys(KeyFile(file))
    assert [verdict(signer, key) for key in (signer, NEW)] == ["ok", "unknown_key"]
    kid = AuthorizationKey.of(OLD).kid
    with pytest.raises(InvalidRequestError, match="another one for each key"):
        signer.replace_keys({"keys": [public_jwk(NEW, kid=kid)]})


# ── while others verify ──


def test_no_verification_sees_anything_but_one_of_the_sets() -> None:
    """A key that is in every set is never refused, and one that is in none never accepted."""
    verifier = AuthorizationVerifier([SECRET, OLD.public_key()])
    always, never, sometimes = signed(SECRET), signed(STRANGER), [signed(OLD), signed(NEW)]
    start, done = Barrier(5), Event()

    def look() -> set[tuple[str, str]]:
        start.wait()
        seen = set()
        while not done.is_set():
            seen.add(("always", verdict(verifier, always)))
            seen.add(("never", verdict(verifier, never)))
            seen |= {("sometimes", verdict(verifier, each)) for each in sometimes}
        return seen

    with ThreadPoolExecutor(4) as threads:
        looking = [threads.submit(look) for _ in range(4)]
        start.wait()
        for number in range(300):
            verifier.replace_keys([SECRET, (OLD, NEW)[number % 2].public_key()])
        done.set()
    seen = set().union(*(each.result() for each in looking))
    assert seen <= {("always", "ok"), ("never", "unknown_key"), ("sometimes", "ok"), ("sometimes", "unknown_key")}


def test_a_verification_that_began_before_proves_nothing_for_those_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has found its key, then the key is taken away, then it ends: its header must not be known from then on."""
    verifier = AuthorizationVerifier([OLD.public_key(), NEW.public_key()])
    before = signed(OLD)
    found, go_on = Event(), Event()
    key_of = AuthorizationVerifier._key_of

    def slowly(self: Any, text: str, header: str) -> Any:
        answer = key_of(self, text, header)
        found.set()
        assert go_on.wait(60)
        return answer

    monkeypatch.setattr(AuthorizationVerifier, "_key_of", slowly)
    thread = Thread(target=verdict, args=(verifier, before))
    thread.start()
    assert found.wait(60)
    monkeypatch.setattr(AuthorizationVerifier, "_key_of", key_of)
    verifier.replace_keys([NEW.public_key()])
    assert verdict(verifier, before) == "unknown_key"
    go_on.set()
    thread.join()
    assert verdict(verifier, before) == "unknown_key"


# ── a file that is read again ──


@pytest.mark.parametrize("content", [jwks, pems, lambda key, *_: json.dumps(public_jwk(key)).encode()])
def test_a_file_may_be_a_document_pem_texts_or_one_jwk(file: Path, content: Callable[..., bytes]) -> None:
    put(file, content(OLD, P256))
    verifier = AuthorizationVerifier(KeyFile(file))
    assert verdict(verifier, OLD) == "ok"
    put(file, content(NEW, P256))
    assert verdict(verifier, NEW) == "ok"
    assert verdict(verifier, OLD) == "unknown_key"


def test_a_new_key_in_the_file_is_found_at_once_by_the_token_that_names_it(file: Path) -> None:
    verifier = AuthorizationVerifier(KeyFile(str(file)))
    put(file, jwks(OLD, NEW))
    assert verdict(verifier, NEW) == "ok"
    assert verdict(verifier, OLD) == "ok"


def test_a_key_that_is_taken_out_of_the_file_is_refused_after_the_next_look(file: Path, clock: Clock) -> None:
    verifier = AuthorizationVerifier(KeyFile(file))
    before = signed(OLD)
    put(file, jwks(NEW))
    clock.tick(timedelta(seconds=9))
    assert verdict(verifier, before) == "ok", "not looked at yet"
    clock.tick(timedelta(seconds=1))
    assert verdict(verifier, before) == "unknown_key"


def test_how_often_is_looked_can_be_set(file: Path, clock: Clock) -> None:
    always = AuthorizationVerifier(KeyFile(file, check_every=timedelta(0)))
    rarely = AuthorizationVerifier(KeyFile(file, check_every=timedelta(hours=1)))
    before = QueueAuthorizer(OLD).authorize_refund(**ACTION, expires_in=timedelta(days=1))
    put(file, jwks(NEW))
    assert verdict(always, before) == "unknown_key"
    clock.tick(timedelta(minutes=59))
    assert verdict(rarely, before) == "ok"
    rarely.replace_keys(KeyFile(file, check_every=timedelta(hours=1)))
    assert verdict(rarely, before) == "unknown_key", "by hand it is read at once"


@pytest.mark.parametrize("every", [None, 10, 1.5, "10s", timedelta(seconds=-1), True])
def test_a_pause_that_is_no_timedelta_from_zero_is_refused(every: Any) -> None:
    with pytest.raises(InvalidRequestError, match="check_every"):
        KeyFile("queue.jwks", check_every=every)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Each time that a file is read."""
    seen: list[object] = []

    def read(path: Any) -> bytes:
        seen.append(path)
        return read_key_file(path)

    monkeypatch.setattr(keyring, "read_key_file", read)
    return seen


def test_tokens_that_name_unknown_keys_cannot_have_the_file_read_more_than_once_a_second(
    file: Path, readings: list[object], clock: Clock
) -> None:
    verifier = AuthorizationVerifier(KeyFile(file, check_every=timedelta(hours=1)))
    forged = [signed(AuthorizationKey.of(STRANGER, kid=f"kid-{number}")) for number in range(50)]
    for seconds in range(3):
        assert {verdict(verifier, each) for each in forged} == {"unknown_key"}
        assert len(readings) == 2 + seconds
        put(file, jwks(OLD, NEW))
        assert verdict(verifier, NEW) == ("ok" if seconds else "unknown_key")
        clock.tick(timedelta(seconds=1))
    assert verdict(verifier, NEW) == "ok"


def test_a_file_that_is_not_watched_any_more_is_not_read(file: Path, readings: list[object]) -> None:
    verifier = AuthorizationVerifier(KeyFile(file))
    verifier.replace_keys([NEW.public_key()])
    assert verdict(verifier, OLD) == "unknown_key"
    assert len(readings) == 1


def test_a_clock_that_somebody_froze_in_another_time_does_not_put_off_the_next_look(file: Path, clock: Clock) -> None:
    clock.tick(timedelta(days=20_000))
    verifier = AuthorizationVerifier(KeyFile(file))
    clock.tick(timedelta(days=-20_000))
    put(file, jwks(NEW))
    assert verdict(verifier, OLD) == "unknown_key"


# Neither what it was nor what it is going to be.
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "a half of a document": jwks(OLD, NEW)[:150],
    "a document without its last letter": jwks(NEW)[:-1],
    "a half of a PEM text": pems(NEW)[:60],
    "a PEM text and a half": pems(NEW, OLD)[:-20],
    "zeros": bytes(400),
    "no keys": b'{"keys": []}',
    "a private key": json.dumps({"keys": [private_jwk(NEW)]}).encode(),
    "one kid twice": jwks(NEW, NEW),
    "two PEM texts of one key": pems(NEW, NEW),
    "a path": b"/run/secrets/queue.pub.pem",
    "a secret": NEW_SECRET.encode(),
    "too large": jwks(NEW) + b" " * (1 << 20),
    "a page of a web server": b"<html>502 Bad Gateway</html>",
    "very deep": b"[" * 500_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_keeps_the_keys_of_before_and_is_told_once(
    name: str, file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="points_platform.queue")
    verifier = AuthorizationVerifier(KeyFile(file))
    file.write_bytes(BROKEN[name])
    for _ in range(3):
        clock.tick(timedelta(seconds=10))
        assert verdict(verifier, OLD) == "ok"
        assert verdict(verifier, NEW) == "unknown_key"
    (warning,) = caplog.records
    assert (warning.levelname, warning.name) == ("WARNING", "points_platform.queue.keyring")
    assert str(file) in warning.getMessage()
    assert not any(each in warning.getMessage() for each in (NEW_SECRET, private_jwk(NEW)["d"]))
    put(file, jwks(NEW))
    clock.tick(timedelta(seconds=10))
    assert (verdict(verifier, NEW), verdict(verifier, OLD)) == ("ok", "unknown_key")
    assert caplog.records[-1].levelname == "INFO"
    assert AuthorizationKey.of(NEW).kid in caplog.records[-1].getMessage()
    file.write_bytes(BROKEN[name])
    with pytest.raises(InvalidRequestError):
        AuthorizationVerifier(KeyFile(file))


GONE: dict[str, Callable[[Path], object]] = {
    "removed": lambda file: None,
    "a folder": lambda file: file.mkdir(),
    "a pipe": os.mkfifo,
    "a link to nothing": lambda file: file.symlink_to("nowhere"),
}


@pytest.mark.parametrize("what", GONE)
def test_a_file_that_is_gone_keeps_the_keys_of_before(what: str, file: Path, clock: Clock) -> None:
    verifier = AuthorizationVerifier(KeyFile(file))
    file.unlink()
    GONE[what](file)
    clock.tick(timedelta(seconds=10))
    assert (verdict(verifier, OLD), verdict(verifier, NEW)) == ("ok", "unknown_key")
    with pytest.raises(InvalidRequestError):
        AuthorizationVerifier(KeyFile(file))


def test_a_link_is_followed_anew(tmp_path: Path) -> None:
    """As where a cluster mounts its secrets: the file is a link that is moved to another folder."""
    for name, key in (("one", OLD), ("two", NEW)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_bytes(jwks(key))
    link = tmp_path / "data"
    link.symlink_to("one")
    verifier = AuthorizationVerifier(KeyFile(link / "keys"))
    (tmp_path / "next").symlink_to("two")
    os.replace(tmp_path / "next", link)
    assert (verdict(verifier, NEW), verdict(verifier, OLD)) == ("ok", "unknown_key")


@pytest.mark.parametrize("form", [jwks, pems])
def test_a_file_that_is_half_written_is_not_believed_at_any_length(file: Path, form: Callable[..., bytes]) -> None:
    content, tokens = form(NEW, P256), {key: signed(key) for key in (OLD, NEW, P256)}
    # PEM texts have no common end: where the file ends with one of them, those before it are all that there is.
    whole = {len(content), len(form(NEW)), len(form(NEW)) - 1, len(content) - 1} if form is pems else {len(content)}
    for length in range(len(content) + 1):
        file.write_bytes(content[:length])
        verifier = AuthorizationVerifier([OLD.public_key()])
        if length in whole:
            verifier.replace_keys(KeyFile(file))
            assert (verdict(verifier, tokens[OLD]), verdict(verifier, tokens[NEW])) == ("unknown_key", "ok")
        else:
            with pytest.raises(InvalidRequestError):
                verifier.replace_keys(KeyFile(file))
            assert [verdict(verifier, tokens[key]) for key in tokens] == ["ok", "unknown_key", "unknown_key"]


def test_the_keys_are_those_of_before_or_of_after_where_a_file_is_replaced_while_many_verify(file: Path) -> None:
    verifier = AuthorizationVerifier(KeyFile(file, check_every=timedelta(0)))
    put(file, jwks(P256, OLD))
    always, never = signed(P256), signed(STRANGER)
    start, done = Barrier(5), Event()

    def look() -> set[str]:
        start.wait()
        seen = set()
        while not done.is_set():
            seen |= {f"always {verdict(verifier, always)}", f"never {verdict(verifier, never)}"}
        return seen

    with ThreadPoolExecutor(4) as threads:
        looking = [threads.submit(look) for _ in range(4)]
        start.wait()
        for number in range(100):
            put(file, (jwks(P256, NEW), pems(OLD, P256), b"{")[number % 3])
        done.set()
    assert set().union(*(each.result() for each in looking)) == {"always ok", "never unknown_key"}


def test_while_one_reads_the_others_verify_with_the_keys_that_are_there(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = AuthorizationVerifier(KeyFile(file))
    put(file, jwks(NEW))
    clock.tick(timedelta(seconds=10))
    reading, go_on = Event(), Event()

    def slowly(path: Any) -> bytes:
        reading.set()
        assert go_on.wait(60)
        return read_key_file(path)

    monkeypatch.setattr(keyring, "read_key_file", slowly)
    before = signed(OLD)
    thread = Thread(target=verdict, args=(verifier, before))
    thread.start()
    assert reading.wait(60)
    assert verdict(verifier, before) == "ok"
    go_on.set()
    thread.join()
    assert verdict(verifier, before) == "unknown_key"


def test_a_header_that_is_not_of_a_set_is_not_proven_by_it(file: Path) -> None:
    """Also where the envelope is genuine in all but its key."""
    verifier = AuthorizationVerifier(KeyFile(file))
    genuine = signed(OLD)
    assert verdict(verifier, genuine) == "ok"
    start, other = genuine.token.rpartition(".")[0], signed(STRANGER).token.rpartition(".")[2]
    forged = replace(genuine, token=f"{start}.{other}")
    assert verdict(verifier, forged) == "signature"


def test_the_file_shows_its_path_and_its_pause() -> None:
    assert repr(KeyFile("/run/secrets/queue.jwks")) == (
        "KeyFile('/run/secrets/queue.jwks', check_every=datetime.timedelta(seconds=10))"
    )


def test_a_file_that_has_not_changed_is_not_taken_for_a_new_one(
    file: Path, clock: Clock, readings: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    """What was proven before goes on to be known, and nothing is told of it."""
    caplog.set_level(logging.INFO, logger="points_platform.queue")
    verifier = AuthorizationVerifier(KeyFile(file))
    before = verifier._ring.current()
    for looks in range(2, 5):
        put(file, jwks(OLD))
        clock.tick(timedelta(seconds=10))
        assert verdict(verifier, OLD) == "ok"
        assert len(readings) == looks
    assert verifier._ring.current() is before
    assert caplog.records == []


# ── a verifier needs no private key ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["pem", "jwk", "both halves"])
def test_a_file_with_a_private_key_is_refused_by_name(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    """Whoever can read it where tokens are verified could sign them."""
    private = NEW.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    content = {"pem": private, "jwk": json.dumps(private_jwk(NEW)).encode(), "both halves": public_pem(OLD) + private}[
        form
    ]
    file, good = tmp_path / "queue.pem", tmp_path / "queue.pub.pem"
    file.write_bytes(content)
    for refusing in (partial(AuthorizationVerifier, KeyFile(file)), partial(QueueAuthorizer, OLD, KeyFile(file))):
        with pytest.raises(InvalidRequestError) as refusal:
            refusing()
        assert refusal.value.details["value"] == "a file with a private key"
        assert "a file of public keys; the private one is for the queue alone" in str(refusal.value)
    good.write_bytes(public_pem(OLD))
    verifier = AuthorizationVerifier(KeyFile(good))
    good.write_bytes(content)
    clock.tick(timedelta(seconds=11))
    assert verdict(verifier, OLD) == "ok", "the keys of before stay"
    assert verdict(verifier, NEW) == "unknown_key"
    assert "a file with a private key" in caplog.text
    assert "PRIVATE" not in caplog.text
