"""What the endpoints answer, each in the transaction of its test."""

from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from examples.host.tables import Redemption
from examples.host.worker import sign
from points_platform.queue import QueueAuthorizer

SONG = {"item_id": "luna-song", "price": 120}
DAYS = {"since": "2026-03-01T00:00:00Z", "until": "2026-03-03T00:00:00Z"}


def order(client: TestClient, user: str = "ana", key: str = "order-1", **changes: Any) -> httpx2.Response:
    return client.post(f"/users/{user}/redemptions", json=SONG | changes, headers={"Idempotency-Key": key})


def test_an_order_is_made_once_and_seen_by_user_and_queue(client: TestClient) -> None:
    made, again = order(client), order(client)
    assert (made.status_code, again.status_code, again.json()) == (201, 201, made.json())
    wallet = client.get("/users/ana/wallet").json()
    assert (wallet["balance"]["available"], wallet["balance"]["escrow"]) == (180, 120)
    assert wallet["redemptions"] == [made.json()]
    assert client.post("/queue/claim").json()["redemption_id"] == made.json()["redemption_id"]
    assert client.post("/queue/claim").json() is None


def test_what_the_queue_signs_is_carried_out(client: TestClient, points_authorizer: QueueAuthorizer) -> None:
    redemption = Redemption.model_validate(order(client).json())
    token = sign(points_authorizer, redemption, 120).token
    assert client.post("/queue/decisions", json={"token": token}).json()["status"] == "settled"
    lines = client.get("/users/ana/statement").json()["items"]
    assert [line["operation"] for line in lines] == ["settle", "hold", "credit"]


def test_a_payment_counts_once(client: TestClient) -> None:
    payment = {"reference": "card-1", "user_id": "ben", "points": 50}
    answers = [client.post("/payments", json=payment).json() for _ in range(2)]
    assert [answer["replayed"] for answer in answers] == [False, True]
    assert client.get("/users/ben/wallet").json()["balance"]["available"] == 50


@pytest.mark.parametrize(
    ("user", "changes", "status", "told"),
    [
        ("ben", {}, 402, "120 points are required"),
        ("ana", {"item_id": "opera"}, 404, "no opera"),
        ("ana", {"price": 100}, 409, "costs 120"),
        ("ana", {"price": -1}, 422, "amount must be"),
    ],
)
def test_what_is_refused_says_why_and_orders_nothing(
    client: TestClient, user: str, changes: dict[str, Any], status: int, told: str
) -> None:
    refused = order(client, user, **changes)
    assert refused.status_code == status
    assert told in refused.json()["message"]
    wallet = client.get(f"/users/{user}/wallet").json()
    assert (wallet["balance"]["escrow"], wallet["redemptions"]) == (0, [])


def test_what_nobody_has_signed_is_refused_with_its_cause(client: TestClient) -> None:
    redemption = Redemption.model_validate(order(client).json())
    token = sign(QueueAuthorizer("a secret that is not the queue's own"), redemption, 120).token
    refused = client.post("/queue/decisions", json={"token": token})
    assert (refused.status_code, refused.json()["details"]["cause"]) == (403, "unknown_key")


def test_what_is_for_sale_and_what_was_sold(client: TestClient, session: Session) -> None:
    assert [item["item_id"] for item in client.get("/menu").json()] == ["luna-song"]
    assert client.get("/sales").json() == []
    assert [day["earned"] for day in client.get("/models/luna/earnings", params=DAYS).json()] == [0, 0]
