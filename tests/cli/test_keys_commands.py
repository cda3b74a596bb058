"""The commands for keys and tokens: what they write and print, what they refuse, and what they never show."""

import io
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from freezegun import freeze_time

from points_platform.cli import main as cli
from points_platform.queue import AuthorizationKey, AuthorizationVerifier, QueueAuthorizer
from points_platform.wallets import QueueRefundAuthorization
from support.jwks import base64url, private_jwk, private_pem, public_jwk, public_pem, secret_jwk

NOON = "2026-03-01 12:00:00"
ED25519, OTHER, P256 = (
    Ed25519PrivateKey.generate(),
    Ed25519PrivateKey.generate(),
    ec.generate_private_key(ec.SECP256R1()),
)
SECRET = b"the secret that the tests sign with, 2026"
ACTION: dict[str, Any] = {
    "queue_item_id": "queue-1",
    "escrow_id": "01890a5d-ac96-774b-bcce-b302099a8057",
    "user_id": "Zo\u00eb",
    "reason": "queue_timeout",
    "amount": 30,
}


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    def refused(self) -> str:
        assert (self.status, self.out) == (1, "")
        assert (self.err.startswith("error: "), self.err.count("\n")) == (True, 1)
        return self.err


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str | Path, stdin: str = "") -> Outcome:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        status = cli.main([str(argument) for argument in arguments])
        return Outcome(status, *capsys.readouterr())

    return command


def signed(key: Any = ED25519, **options: Any) -> str:
    return QueueAuthorizer(key, **options).authorize_refund(**ACTION).token


# ── keygen ──


@pytest.mark.parametrize(("options", "algorithm"), [((), "EdDSA"), (("--algorithm", "ES256"), "ES256")])
def test_a_pair_is_made_of_which_one_signs_and_the_other_verifies(
    command: Command, options: tuple[str, ...], algorithm: str
) -> None:
    made = command("keygen", "queue.pem", *options)
    assert (made.status, made.err) == (0, "")
    private, public = (AuthorizationKey.from_file(name) for name in ("queue.pem", "queue.pub.pem"))
    assert (private.algorithm, public.algorithm, public.signing) == (algorithm, algorithm, None)
    authorization = QueueAuthorizer(private).authorize_refund(**ACTION)
    assert AuthorizationVerifier([public]).verify(authorization, QueueRefundAuthorization, ACTION)
    for shown in (private.kid, algorithm, "queue.pem", "queue.pub.pem"):
        assert shown in made.out
    assert "PRIVATE" not in made.out
    assert not any(line in made.out for line in Path("queue.pem").read_text().splitlines())


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_only_its_owner_may_read_the_private_key(command: Command, mask: int) -> None:
    before = os.umask(mask)
    try:
        assert command("keygen", "queue.pem", "--public", "for-all.pem").status == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat("queue.pem").st_mode) == 0o600
    assert stat.S_IMODE(os.stat("for-all.pem").st_mode) == 0o644 & ~mask


@pytest.mark.parametrize("there", ["queue.pem", "queue.pub.pem"])
def test_what_is_there_is_not_overwritten_and_nothing_else_is_left(command: Command, there: str) -> None:
    Path(there).write_text("precious")
    assert there in command("keygen", "queue.pem").refused()
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [(there, "precious")]


def test_neither_is_what_a_link_leads_to(command: Command) -> None:
    for there in ("queue.pem", "queue.pub.pem"):
        Path(there).symlink_to("elsewhere")
        command("keygen", "queue.pem").refused()
        assert not Path("elsewhere").exists()
        Path(there).unlink()
    assert list(Path().iterdir()) == []


def test_both_halves_cannot_be_one_file_and_a_folder_that_is_not_there_is_refused(command: Command) -> None:
    command("keygen", "queue.pem", "--public", "queue.pem").refused()
    command("keygen", "nowhere/queue.pem").refused()
    command("keygen", "nowhere/queue.pem", "--public", "queue.pub.pem").refused()
    command("keygen", "queue.pem", "--algorithm", "HS256").refused()
    assert list(Path().iterdir()) == []


def test_each_pair_is_another_one(command: Command) -> None:
    assert command("keygen", "one").status == command("keygen", "two").status == 0
    assert AuthorizationKey.from_file("one").kid != AuthorizationKey.from_file("two").kid
    assert sorted(path.name for path in Path().iterdir()) == ["one", "one.pub.pem", "two", "two.pub.pem"]


# ── token show ──


def test_a_token_is_shown_with_its_times_but_not_itself(command: Command) -> None:
    with freeze_time(NOON):
        token = signed()
        shown = command("token", "show", token)
        assert (shown, shown.err) == (command("token", "show", "-", stdin=f" {token}\n"), "")
    for each in (AuthorizationKey.of(ED25519).kid, "EdDSA", "refund", "queue-1", "Zo\u00eb", "performance-queue"):
        assert each in shown.out
    assert shown.out.count("2026-03-01 12:00:00 UTC") == 2
    assert "2026-03-01 12:05:00 UTC" in shown.out
    assert "valid for another 0:05:00" in shown.out
    assert not any(part in shown.out for part in token.split("."))


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (-7, "valid in 0:00:07"),
        (0, "valid for another 0:05:00"),
        (299, "another 0:00:01"),
        (300, "expired 0:00:00 ago"),
    ],
)
def test_it_says_whether_a_token_is_valid_now(command: Command, later: int, said: str) -> None:
    with freeze_time(NOON) as clock:
        token = signed()
        clock.tick(timedelta(seconds=later))
        assert said in command("token", "show", token).out


def test_which_keys_accept_it_and_why_the_others_do_not(command: Command) -> None:
    kid = AuthorizationKey.of(ED25519).kid
    files = {
        "genuine.pem": public_pem(ED25519),
        "private.pem": private_pem(ED25519),
        "genuine.jwk": json.dumps(public_jwk(ED25519)).encode(),
        "all.jwks": json.dumps({"keys": [public_jwk(OTHER), public_jwk(ED25519)]}).encode(),
        "other.pem": public_pem(OTHER),
        "twin.jwk": json.dumps(public_jwk(OTHER, kid=kid)).encode(),
        "confused.jwk": json.dumps(public_jwk(P256, kid=kid)).encode(),
        "none.pem": b"",
    }
    options: list[str] = []
    for name, content in files.items():
        Path(name).write_bytes(content)
        options += ["--key", name]
    token = signed()
    shown = command("token", "show", token, *options, "--key", "missing.pem")
    verdicts = json.loads(command("token", "show", token, *options, "--json").out)["keys"]
    assert (shown.status, shown.err) == (0, "")
    assert [(each["file"], each["accepts"], each.get("cause")) for each in verdicts] == [
        ("genuine.pem", True, None),
        ("private.pem", True, None),
        ("genuine.jwk", True, None),
        ("all.jwks", False, "unknown_key"),
        ("all.jwks", True, None),
        ("other.pem", False, "unknown_key"),
        ("twin.jwk", False, "signature"),
        ("confused.jwk", False, "algorithm"),
        ("none.pem", False, None),
    ]
    assert f"genuine.pem (EdDSA, kid {kid}): accepts it" in shown.out
    assert "twin.jwk" in shown.out
    assert "(signature)" in shown.out
    assert "missing.pem: does not accept it: no keys" in shown.out
    assert private_jwk(ED25519)["d"] not in shown.out
    assert "PRIVATE" not in shown.out


def test_the_status_says_whether_any_key_accepts_it(command: Command) -> None:
    Path("mine.pem").write_bytes(public_pem(ED25519))
    Path("other.pem").write_bytes(public_pem(OTHER))
    token = signed()
    for keys, status in (
        ((), 0),
        (("mine.pem",), 0),
        (("other.pem",), 1),
        (("other.pem", "mine.pem"), 0),
        (("x.pem",), 1),
    ):
        assert command("token", "show", token, *(word for key in keys for word in ("--key", key))).status == status
    with freeze_time(NOON):
        stale = signed()
    expired = command("token", "show", stale, "--key", "mine.pem")
    assert (expired.status, "(expired)" in expired.out) == (1, True)


def test_issuer_and_audience_are_those_of_a_host_that_has_its_own(command: Command) -> None:
    Path("mine.pem").write_bytes(public_pem(ED25519))
    token = signed(issuer="mine", audience="yours")
    for options, cause in (
        ((), "(issuer)"),
        (("--issuer", "mine"), "(audience)"),
        (("--audience", "yours"), "(issuer)"),
    ):
        assert cause in command("token", "show", token, "--key", "mine.pem", *options).out
    assert command("token", "show", token, "--key", "mine.pem", "--issuer", "mine", "--audience", "yours").status == 0


def test_a_secret_that_verifies_is_not_shown(command: Command) -> None:
    Path("secret.jwk").write_text(json.dumps(secret_jwk(SECRET)))
    for token in (signed(SECRET), signed()):
        for more in ((), ("--json",)):
            shown = command("token", "show", token, "--key", "secret.jwk", *more)
            assert not any(each in shown.out + shown.err for each in (SECRET.decode(), base64url(SECRET)))
    assert command("token", "show", signed(SECRET), "--key", "secret.jwk").status == 0


def test_json_has_header_claims_times_and_verdicts(command: Command) -> None:
    with freeze_time(NOON):
        token = signed()
    shown = json.loads(command("token", "show", token, "--json").out)
    assert shown == {
        "header": jwt.get_unverified_header(token),
        "claims": jwt.decode(token, options={"verify_signature": False}),
        "times": {
            "iat": "2026-03-01T12:00:00+00:00",
            "nbf": "2026-03-01T12:00:00+00:00",
            "exp": "2026-03-01T12:05:00+00:00",
        },
        "keys": [],
    }


def test_what_could_steer_a_terminal_is_escaped_and_a_token_that_lacks_everything_is_shown(command: Command) -> None:
    Path("mine.pem").write_bytes(public_pem(ED25519))
    hostile = {"user_id": "\x1b[2J\u202e", "[bold]": ["\x07"], "exp": "soon", "iat": True, "deep": {"a": 1}}
    token = jwt.encode(hostile, ED25519, algorithm="EdDSA", headers={"kid": "\x1b]0;x\x07"})
    shown = command("token", "show", token, "--key", "mine.pem")
    assert shown.status == 1
    assert "[bold]" in shown.out
    assert "never valid" in shown.out
    assert all(line.isprintable() for line in shown.out.splitlines())


@pytest.mark.parametrize(
    "text",
    ["", "some-words", "a.b", "a.b.c", "AAAA.AAAA.AAAA", "x" * 20_000, "eyJ.eyJ.=", "\ud800"],
    ids=lambda t: t[:9],
)
def test_what_is_no_token_is_refused_and_not_repeated(command: Command, text: str) -> None:
    for refused in (command("token", "show", text), command("token", "show", "-", stdin=text)):
        assert "no token" in refused.refused()
        assert text not in refused.err or len(text) < 4


def test_a_word_is_missing(command: Command) -> None:
    for words in (("token",), ("token", "show"), ("token", "hide"), ("keygen",)):
        assert command(*words).refused()
