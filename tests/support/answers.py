"""What was answered, in short; errors are answers too."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from points_platform.core import InvalidRequestError, WalletError

from .world import World


def tally(answers: Iterable[Any]) -> Counter[str]:
    """How many there are of each type."""
    return Counter(type(answer).__name__ for answer in answers)


def codes(answers: Any) -> list[str]:
    return [answer.code if isinstance(answer, WalletError) else "done" for answer in answers]


def ids(answers: Any) -> list[str]:
    return [answer.transaction_id for answer in answers]


def announced(world: World) -> list[str]:
    return [event.transaction_id for event in world.events]


def caught(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except WalletError as error:
        return error


def told(value: object) -> Any:
    """What the details of an error say of a value that was handed in."""
    return InvalidRequestError(field="", value=value, expected="").details["value"]


def refused(field: str, call: Callable[..., object], *values: Any, **options: Any) -> None:
    """The call is refused for that field, and for nothing else."""
    with pytest.raises(InvalidRequestError) as refusal:
        call(*values, **options)
    assert refusal.value.details["field"] == field


def called(value: object) -> str:
    """What a message calls a thing of whose value nothing may be shown: its type, with the article that is spoken."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"
