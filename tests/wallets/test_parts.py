"""What a service is made of: anything else is refused when it is made, by the name of its argument."""

from typing import Any

import pytest

from points_platform.core import Database, InvalidRequestError
from points_platform.events import EventBus
from points_platform.ledger import LedgerService, Sealer
from points_platform.queue import AuthorizationVerifier, QueueAuthorizer
from points_platform.wallets import WalletConfig, WalletService
from support.world import World

SECRET = "a secret of at least 32 bytes, in the wrong place"
WRONG: dict[str, list[Any]] = {
    "ledger": [None, "sqlite:///points.db", LedgerService, WalletService, "a Database"],
    "authorizer": [None, SECRET, SECRET.encode(), [SECRET], QueueAuthorizer, AuthorizationVerifier, 0],
    "events": [[], {}, 0, False, "bus", EventBus, print],
    "config": [{}, [], 0, False, {"default_currency": "points"}, WalletConfig],
}


@pytest.mark.parametrize("field", WRONG)
def test_a_wallet_service_of_other_parts_is_refused_by_the_arguments_name(world: World, field: str) -> None:
    parts = {"ledger": world.ledger, "authorizer": world.authorizer, "events": world.bus, "config": world.config}
    for wrong in WRONG[field]:
        given: dict[str, Any] = parts | {field: world.database if wrong == "a Database" else wrong}
        with pytest.raises(InvalidRequestError) as refused:
            WalletService(given.pop("ledger"), **given)
        assert refused.value.details["field"] == field
        assert SECRET not in f"{refused.value} {refused.value.details}"
        assert type(wrong).__name__ in str(refused.value) or getattr(wrong, "__name__", "Database") in str(
            refused.value
        )


def test_the_first_wrong_part_is_the_one_that_is_named(world: World) -> None:
    for field in WRONG:
        names = list(WRONG)
        parts = [world.ledger, world.authorizer, world.bus, world.config]
        given: dict[str, Any] = {
            name: part if names.index(name) < names.index(field) else 0 for name, part in zip(names, parts, strict=True)
        }
        with pytest.raises(InvalidRequestError) as refused:
            WalletService(given.pop("ledger"), **given)
        assert refused.value.details["field"] == field


@pytest.mark.parametrize("wrong", [None, "sqlite:///points.db", Database])
def test_a_ledger_is_made_of_a_database_and_a_sealer_of_a_ledger(wrong: Any) -> None:
    for field, made in (("database", LedgerService), ("log", Sealer)):
        with pytest.raises(InvalidRequestError) as refused:
            made(wrong)
        assert refused.value.details["field"] == field
