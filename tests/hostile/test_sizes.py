"""What is too large is refused before much is done with it. Work is counted here; times are for the long form."""

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import jwt
import pytest

from points_platform.cli.terminal import _without_password
from points_platform.core import InvalidAuthorizationError, InvalidRequestError
from points_platform.core.values import MAX_METADATA_BYTES, check_metadata, decode_cursor
from points_platform.wallets import authorization as authorization_module
from torture.sizes import CASES, growth

from .test_authorizations import MINT, refusal

MEGABYTE = 2**20
HUGE: dict[str, Callable[[], Any]] = {
    "a text": lambda: {"a": "x" * 10 * MEGABYTE},
    "a name": lambda: {"x" * 10 * MEGABYTE: 1},
    "escapes": lambda: {"a": "\0" * 10 * MEGABYTE},
    "numbers of many digits": lambda: {"a": [10**4000] * 16_000},
    "one number": lambda: {"a": 1 << 10**6},
    "the same texts": lambda: {"a": ["x" * 1000] * 16_000},
    "members": lambda: {"a": [0] * 10**6},
    "depth": lambda: _nested(10**5),
}


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return {"a": value}


@pytest.mark.parametrize("make", HUGE.values(), ids=HUGE.keys())
def test_metadata_that_cannot_fit_is_never_written_as_json(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    value = make()

    def dumps(*given: object, **options: object) -> str:
        raise AssertionError("it is already known to be too large")

    monkeypatch.setattr(json, "dumps", dumps)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError) as refused:
            check_metadata("metadata", value)
        assert not isinstance(refused.value.__cause__, AssertionError)
        assert tracemalloc.get_traced_memory()[1] < MEGABYTE * 20
        assert len(str(refused.value)) < 1000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "value", [10**k for k in range(0, 4299, 97)] + [2**k - 1 for k in range(1, 60)], ids=int.bit_length
)
def test_no_number_is_taken_for_longer_than_it_is(value: int) -> None:
    for number in (value, -value):
        taken = check_metadata("metadata", {"a": number})
        assert taken == {"a": number}
    room = MAX_METADATA_BYTES - len('{"a":[]}')
    fitting = [value] * ((room + 1) // (len(str(value)) + 1))
    assert check_metadata("metadata", {"a": fitting}) == {"a": fitting}


def test_a_token_beyond_the_limit_is_not_even_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def fullmatch(self, text: str) -> None:
            raise AssertionError("too long to be looked at")

    monkeypatch.setattr(authorization_module, "COMPACT", Nothing())
    monkeypatch.setattr(jwt, "decode", None)
    for token in ("A" * 100 * MEGABYTE, "a.b." * MEGABYTE, MINT.genuine[0].token * 100):
        assert refusal(MINT.genuine[0], token=token) == {"cause": "malformed"}


def test_what_is_shown_of_a_huge_value_is_short() -> None:
    for value in ("x" * MEGABYTE, [["x" * MEGABYTE] * 9] * 9, {"x" * MEGABYTE: 1}, 1 << 10**6, b"x" * MEGABYTE):
        with pytest.raises(InvalidRequestError) as refused:
            decode_cursor("after", value, str)
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize("collect", [dict.fromkeys, set, frozenset])
def test_what_is_shown_of_many_members_compares_a_handful_of_them(collect: Callable[[Any], object]) -> None:
    compared = 0

    class Key(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __lt__(self, other: str) -> bool:
            nonlocal compared
            compared += 1
            return str.__lt__(self, other)

    with pytest.raises(InvalidRequestError) as refused:
        decode_cursor("after", collect(Key(k) for k in range(10_000, 0, -1)), str)
    assert "..." in str(refused.value)
    assert compared < 100


@pytest.mark.parametrize("name", CASES)
def test_every_case_of_the_long_form_is_refused(name: str) -> None:
    refuse, make, _ = CASES[name]
    if name.startswith("command"):
        assert refuse(make(100)) == 1
    else:
        size = 20_000 if name.startswith(("metadata", "token: letters", "token: segments")) else 200
        with pytest.raises((InvalidRequestError, InvalidAuthorizationError)):
            refuse(make(size if "numbers" not in name else 10))


def test_growth_is_a_factor_of_two_times() -> None:
    measured = growth("code")
    assert (measured.name, measured.size) == ("code", 10**6)
    assert measured.factor > 0


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("postgresql://u:secret@h/x", "postgresql://u:***@h/x"),
        ("postgresql://u:s@cr:et@h/x", "postgresql://u:***@h/x"),
        ("postgresql://:secret@h", "postgresql://:***@h"),
        ("'a://u:secret@h','b://u:secret@h'", "'a://u:***@h'"),
        ("h/x?password=secret&user=u", "h/x?password=***&user=u"),
        ("a://u:s@h?password=secret", "a://u:***@h?password=***"),
        ("sqlite:///a:b", "sqlite:///a:b"),
        ("://:" * 30_000, "://:" * 30_000),
        ("a@b", "a@b"),
    ],
)
def test_a_password_is_hidden_in_one_pass_over_the_message(word: str, shown: str) -> None:
    assert _without_password(word) == shown or "secret" not in _without_password(word) != word
