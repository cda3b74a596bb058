"""The web process: endpoints for users, models, the payment's provider and the queue. It can verify, but sign nothing.

HOST_DATABASE=postgresql+psycopg://… HOST_QUEUE_KEYS=queue.pub.pem uvicorn --factory examples.host.web:app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, cast
from uuid import uuid4

from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.types import Lifespan

from points_platform import aio
from points_platform.core import Database, WalletError
from points_platform.events import EventBus, UserEvent
from points_platform.ledger import EarningsPeriod, LedgerService, Page, StatementTransaction
from points_platform.queue import AuthorizationVerifier, KeyFile
from points_platform.wallets import DepositRequest, DepositResponse, TransactionReason, UserBalance, WalletService

from .live import Live
from .redemptions import NotThereError, Order, PriceChangedError, claim, decide, redeem
from .tables import MenuItem, Redemption, Sales

CURRENCY = "points"
STATUS = {NotThereError: 404, PriceChangedError: 409}

api = APIRouter()


@dataclass(frozen=True)
class Platform:
    """What the endpoints work with."""

    sessions: async_sessionmaker[AsyncSession]
    ledger: LedgerService
    wallets: WalletService
    live: Live


@asynccontextmanager
async def platform(url: str, queue_keys: str) -> AsyncIterator[Platform]:
    """The platform on a database whose schema is there. Events reach the loop that runs now."""
    engine = create_async_engine(url)
    live, events = Live(), EventBus()
    events.subscribe(UserEvent, aio.on_loop(live.publish))
    try:
        with Database(url) as database:
            ledger = LedgerService(database)
            wallets = WalletService(ledger, authorizer=AuthorizationVerifier(KeyFile(queue_keys)), events=events)
            yield Platform(
                async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False), ledger, wallets, live
            )
    finally:
        await engine.dispose()


def _platform(request: Request) -> Platform:
    return cast(Platform, request.app.state.platform)


def _request_id(x_request_id: Annotated[str | None, Header()] = None) -> str:
    return x_request_id or uuid4().hex


Here = Annotated[Platform, Depends(_platform)]
RequestId = Annotated[str, Depends(_request_id)]
Key = Annotated[str, Header(alias="Idempotency-Key")]


class Payment(BaseModel):
    """What the payment's provider says, and says again until it is answered."""

    reference: str
    user_id: str
    points: int


class Wallet(BaseModel):
    """A user's points, and what they were redeemed for."""

    balance: UserBalance
    redemptions: list[Redemption]


class Decision(BaseModel):
    """What the queue has signed."""

    token: str


# ── users ─────────────────────────────────────────────────────────────────────────────────────────


@api.get("/menu")
async def menu(here: Here) -> list[MenuItem]:
    async with here.sessions() as session:
        return list(await session.exec(select(MenuItem).order_by(MenuItem.item_id)))


@api.post("/users/{user_id}/redemptions", status_code=201)
async def order(user_id: str, order: Order, here: Here, key: Key, request_id: RequestId) -> Redemption:
    async with here.sessions.begin() as session:
        return await session.run_sync(redeem, here.wallets, order, user_id=user_id, key=key, request_id=request_id)


@api.get("/users/{user_id}/wallet")
async def wallet(user_id: str, here: Here) -> Wallet:
    of_this_user = select(Redemption).where(Redemption.user_id == user_id).order_by(col(Redemption.ordered_at))
    async with here.sessions() as session:
        balance = await aio.within(session, here.wallets.get_user_balance, user_id)
        return Wallet(balance=balance, redemptions=list(await session.exec(of_this_user)))


@api.get("/users/{user_id}/statement")
async def statement(user_id: str, here: Here, after: str | None = None) -> Page[StatementTransaction]:
    """What happened to a user's points, newest first; ``next`` goes on as ``after``."""
    return await aio.call(here.ledger.statement, f"user:{user_id}", CURRENCY, newest_first=True, after=after)


@api.get("/users/{user_id}/events", response_class=EventSourceResponse)
async def events(user_id: str, here: Here) -> AsyncIterator[ServerSentEvent]:
    """What happens to a user's points, while it happens; who was away reads the statement."""
    with here.live.of(user_id) as unread:
        yield ServerSentEvent(comment="watching")
        while True:
            event = await unread.get()
            yield ServerSentEvent(id=event.event_id, event=event.event_type, data=event)


# ── models ────────────────────────────────────────────────────────────────────────────────────────


@api.get("/models/{model_id}/earnings")
async def earnings(
    model_id: str, since: datetime, until: datetime, here: Here, timezone: str = "UTC"
) -> list[EarningsPeriod]:
    """What a model has earned on each day, as its calendar counts them."""
    days = here.ledger.earnings
    return await aio.call(days, model_id, CURRENCY, period="day", timezone=timezone, since=since, until=until)


@api.get("/sales")
async def sales(here: Here) -> list[Sales]:
    """What has sold how well, as of the last time that ``sales`` was run."""
    async with here.sessions() as session:
        return list(await session.exec(select(Sales).order_by(Sales.feature)))


# ── the payment's provider, and the queue ─────────────────────────────────────────────────────────


@api.post("/payments")
async def pay(payment: Payment, here: Here, request_id: RequestId) -> DepositResponse:
    request = DepositRequest(
        user_id=payment.user_id,
        amount=payment.points,
        source="cards",
        reference=payment.reference,
        reason=TransactionReason.PAYMENT,
        idempotency_key=f"cards/{payment.reference}",
        request_id=request_id,
    )
    return await aio.call(here.wallets.deposit_points, request)


@api.post("/queue/claim")
async def claim_next(here: Here) -> Redemption | None:
    async with here.sessions.begin() as session:
        return await session.run_sync(claim)


@api.post("/queue/decisions")
async def carry_out(decision: Decision, here: Here, request_id: RequestId) -> Redemption:
    async with here.sessions.begin() as session:
        return await session.run_sync(decide, here.wallets, decision.token, request_id=request_id)


# ── the application ───────────────────────────────────────────────────────────────────────────────


def application(lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    """The endpoints, and what they answer where something is refused."""
    web = FastAPI(title="A small platform", lifespan=lifespan)
    web.include_router(api)

    @web.exception_handler(WalletError)
    async def refused(request: Request, error: WalletError) -> JSONResponse:
        later = {"Retry-After": "1"} if error.retryable else None
        return JSONResponse(error.to_dict(), status_code=error.http_status, headers=later)

    @web.exception_handler(NotThereError)
    @web.exception_handler(PriceChangedError)
    async def not_possible(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"message": str(error)}, status_code=STATUS[type(error)])

    return web


def app() -> FastAPI:
    """The application of a process: its platform is set up from the environment when it starts."""

    @asynccontextmanager
    async def lifespan(web: FastAPI) -> AsyncIterator[None]:
        async with platform(os.environ["HOST_DATABASE"], os.environ["HOST_QUEUE_KEYS"]) as web.state.platform:
            yield

    return application(lifespan)
