"""Points auctions, replayed from a record of real bids: how a platform embeds the wallets.

    python examples/auction_replay.py auction-bids.csv [--database URL] [--workers N]

A bid puts its points in escrow. Who is outbid gets them back; when the auction closes, the leader's
points go to the auction's model, as far as the final price. The wallets carry all of that out, but
for each refund and settlement they want the signature of the queue, which here is the auctioneer.

Read it from the top: the record, the auctioneer, the replay, the report.
"""

import csv
import reprlib
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar
from uuid import uuid4

import typer
from rich.console import Console
from rich.progress import Progress

from points_platform.cli import DatabaseOption, Refusal, console, prepared_database, report_books, run
from points_platform.core import MAX_POINTS, Database, IdempotencyConflictError, OptimisticLockError
from points_platform.ledger import LedgerService
from points_platform.queue import QueueAuthorizer
from points_platform.wallets import (
    EscrowHoldRequest,
    EscrowHoldResponse,
    EscrowPartialSettleRequest,
    EscrowRefundRequest,
    EscrowSettleRequest,
    Response,
    TransactionReason,
    UserCreditRequest,
    WalletService,
)

T = TypeVar("T")
R = TypeVar("R", bound=Response)

# ── The record ────────────────────────────────────────────────────────────────────────────────────

COLUMNS = ("auction_id", "item", "bidder_id", "bid_cents", "seconds_after_open", "final_price_cents")


@dataclass(frozen=True, kw_only=True)
class Bid:
    """One bid. Its key comes from the record alone, so that replaying the record again repeats no effect."""

    auction_id: str
    number: int
    bidder_id: str
    amount: int
    second: int

    @property
    def key(self) -> str:
        return f"{self.auction_id}/{self.number}"


@dataclass(frozen=True, kw_only=True)
class Auction:
    """One auction with its bids in the order of time; it is the model that earns, and the queue item."""

    auction_id: str
    item: str
    final_price: int
    bids: list[Bid] = field(default_factory=list)

    @property
    def highest_bid(self) -> int:
        return max(bid.amount for bid in self.bids)


@dataclass(frozen=True)
class Row:
    """One row of the file, as text; it says where it stands when it is refused."""

    place: str
    cells: dict[str, str | None]

    def refusal(self, column: str, expected: str) -> Refusal:
        cell = self.cells[column]
        given = "there is nothing" if cell is None else f"it is {reprlib.repr(cell)}"
        return Refusal(f"{self.place}, column {column} {expected}, but {given}")

    def name(self, column: str) -> str:
        text = self.cells[column] or ""
        if not (1 <= len(text) <= 100 and text.isprintable()):
            raise self.refusal(column, "must be 1 to 100 printable characters")
        return text

    def number(self, column: str, least: int) -> int:
        text = self.cells[column] or ""
        # Stricter than int(), which takes "1_000", " 7 " and digits of other scripts.
        if not (text.isascii() and text.isdigit() and len(text) <= 16 and least <= int(text) <= MAX_POINTS):
            raise self.refusal(column, f"must be a whole number from {least} to {MAX_POINTS}")
        return int(text)


def read_auctions(path: Path) -> list[Auction]:
    """The auctions of the file. Raises ``Refusal`` with the row and column that is not as it must be."""
    auctions: dict[str, Auction] = {}
    budgets: Counter[str] = Counter()
    for row in read_rows(path):
        auction_id, price = row.name("auction_id"), row.number("final_price_cents", least=1)
        item = row.name("item")
        auction = auctions.setdefault(auction_id, Auction(auction_id=auction_id, item=item, final_price=price))
        if price != auction.final_price:
            raise row.refusal("final_price_cents", f"must be {auction.final_price} as in the auction's first row")
        bid = Bid(
            auction_id=auction_id,
            number=len(auction.bids) + 1,
            bidder_id=row.name("bidder_id"),
            amount=row.number("bid_cents", least=1),
            second=row.number("seconds_after_open", least=0),
        )
        if auction.bids and bid.second < auction.bids[-1].second:
            raise row.refusal("seconds_after_open", f"must not be before the bid at {auction.bids[-1].second}")
        budgets[bid.bidder_id] += bid.amount
        if budgets[bid.bidder_id] > MAX_POINTS:
            raise row.refusal("bid_cents", f"must not take all bids of {bid.bidder_id} above {MAX_POINTS}")
        auction.bids.append(bid)
    if not auctions:
        raise Refusal(f"{path.name}: there are no bids in it")
    return list(auctions.values())


def read_rows(path: Path) -> Iterator[Row]:
    # A byte that is no UTF-8 becomes a character that is not printable, so that its row is named.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise Refusal(f"{path.name}, row 1: there is no column {', '.join(missing)}")
            for cells in reader:
                place = f"{path.name}, row {reader.line_num}"
                if None in cells:
                    raise Refusal(f"{place}: it has more cells than there are columns")
                yield Row(place, cells)
        except csv.Error as error:
            raise Refusal(f"{path.name}, row {reader.reader.line_num}: {error}") from None


# ── The auctioneer ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Held:
    """A bid whose points wait in escrow."""

    bid: Bid
    escrow_id: str


class Auctioneer:
    """Turns bids into holds, and decides what becomes of each hold. All threads share one.

    Each step is a request, for a settlement or refund an authorization of the queue for exactly that
    request, and a response. A host would keep its signing key; this one lasts for a run, and since a
    repeated request may come with a fresh token, the next run can still repeat everything.
    """

    def __init__(self, database: Database) -> None:
        self.queue = QueueAuthorizer(secrets.token_bytes(32))
        self.wallets = WalletService(LedgerService(database), authorizer=self.queue)

    def replay(self, auction: Auction) -> Iterator[Response]:
        """Everything that happens in one auction, with the wallets' answer to each step."""
        leader: Held | None = None
        for bid in auction.bids:
            hold = self.hold(bid)
            yield hold
            loser: Held | None = Held(bid, hold.escrow_id)
            if leader is None or bid.amount > leader.bid.amount:
                leader, loser = loser, leader
            if loser is not None:
                yield self.refund(loser)
        if leader is not None:
            yield self.close(auction, leader)

    def close(self, auction: Auction, leader: Held) -> Response:
        """Settle at the final price; never above the hold, whatever the record says."""
        if auction.final_price < leader.bid.amount:
            return self.settle_partially(leader, price=auction.final_price)
        return self.settle(leader)

    def give_budget(self, bidder_id: str, amount: int) -> Response:
        request = UserCreditRequest(
            idempotency_key="auction-replay/budget",
            request_id=uuid4().hex,
            user_id=bidder_id,
            amount=amount,
            reason=TransactionReason.TOP_UP,
        )
        return persistently(lambda: self.wallets.credit_user(request))

    def hold(self, bid: Bid) -> EscrowHoldResponse:
        request = EscrowHoldRequest(
            idempotency_key=bid.key,
            request_id=uuid4().hex,
            user_id=bid.bidder_id,
            amount=bid.amount,
            queue_item_id=bid.auction_id,
            feature_type="auction",
            reason=TransactionReason.AUCTION_BID,
        )
        return persistently(lambda: self.wallets.hold_in_escrow(request))

    def refund(self, held: Held) -> Response:
        request = EscrowRefundRequest(
            idempotency_key=held.bid.key,
            request_id=uuid4().hex,
            user_id=held.bid.bidder_id,
            escrow_id=held.escrow_id,
            amount=held.bid.amount,
            queue_item_id=held.bid.auction_id,
            reason=TransactionReason.OUTBID,
        )
        return persistently(lambda: self.wallets.refund_escrow(request, self.queue.authorize(request)))

    def settle(self, held: Held) -> Response:
        request = EscrowSettleRequest(
            idempotency_key=held.bid.key,
            request_id=uuid4().hex,
            user_id=held.bid.bidder_id,
            escrow_id=held.escrow_id,
            model_id=held.bid.auction_id,
            amount=held.bid.amount,
            queue_item_id=held.bid.auction_id,
            reason=TransactionReason.PERFORMANCE_COMPLETED,
        )
        return persistently(lambda: self.wallets.settle_escrow(request, self.queue.authorize(request)))

    def settle_partially(self, held: Held, *, price: int) -> Response:
        request = EscrowPartialSettleRequest(
            idempotency_key=held.bid.key,
            request_id=uuid4().hex,
            user_id=held.bid.bidder_id,
            escrow_id=held.escrow_id,
            model_id=held.bid.auction_id,
            settle_amount=price,
            refund_amount=held.bid.amount - price,
            queue_item_id=held.bid.auction_id,
            reason=TransactionReason.PERFORMANCE_COMPLETED,
        )
        return persistently(lambda: self.wallets.partial_settle_escrow(request, self.queue.authorize(request)))


def persistently(send: Callable[[], R], *, times: int = 10) -> R:
    """Send a request again while others are faster: under the same key it can take effect only once."""
    for _ in range(times - 1):
        try:
            return send()
        except OptimisticLockError:
            continue
    return send()


# ── The replay ────────────────────────────────────────────────────────────────────────────────────


def replay(auctioneer: Auctioneer, auctions: Collection[Auction], *, workers: int) -> Counter[bool]:
    """Give every bidder the sum of their bids, then hold all auctions; counts answers by ``replayed``."""
    budgets: Counter[str] = Counter()
    for auction in auctions:
        for bid in auction.bids:
            budgets[bid.bidder_id] += bid.amount
    credited = in_threads("bidders", lambda budget: [auctioneer.give_budget(*budget)], budgets.items(), workers=workers)
    return credited + in_threads("auctions", auctioneer.replay, auctions, workers=workers)


def in_threads(
    what: str, work: Callable[[T], Iterator[Response] | list[Response]], items: Collection[T], *, workers: int
) -> Counter[bool]:
    """Do the work for each item in that many threads, with a progress bar; counts the answers."""
    counts: Counter[bool] = Counter()
    terminal = Console(stderr=True)
    with Progress(console=terminal, disable=not terminal.is_terminal) as bar, ThreadPoolExecutor(workers) as threads:
        answers = threads.map(lambda item: Counter(answer.replayed for answer in work(item)), items)
        try:
            for count in bar.track(answers, total=len(items), description=what):
                counts.update(count)
        except BaseException:
            # Also for Ctrl-C: what has begun is finished, the rest waits for the next run.
            threads.shutdown(cancel_futures=True)
            raise
    return counts


# ── The report ────────────────────────────────────────────────────────────────────────────────────


def report_earnings(wallets: WalletService, auctions: Collection[Auction]) -> bool:
    """Compare earnings with final prices; only a price that nobody has bid may differ."""
    earnings = {auction.auction_id: wallets.get_model_balance(auction.auction_id).earned for auction in auctions}
    earned, prices = sum(earnings.values()), sum(auction.final_price for auction in auctions)
    console.print(f"earnings {earned:,}, final prices {prices:,}, difference {earned - prices:+,}")
    explained = True
    for auction in auctions:
        if (earned := earnings[auction.auction_id]) != auction.final_price:
            anomalous = earned == auction.highest_bid < auction.final_price
            explained = explained and anomalous
            why = "the price is above every bid in the record" if anomalous else "THE RECORD DOES NOT EXPLAIN IT"
            console.print(
                f"auction {auction.auction_id} ({auction.item}) has earned {earned:,} "
                f"for a final price of {auction.final_price:,}: {why}",
                style="yellow" if anomalous else "bold red",
            )
    return explained


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: auction_replay.py auction-bids.csv --database sqlite:///auctions.db --workers 4")
def main(
    bids: Annotated[Path, typer.Argument(metavar="BIDS.csv", exists=True, dir_okay=False, help="the record of bids")],
    database: DatabaseOption = None,
    workers: Annotated[int, typer.Option(metavar="N", min=1, max=32, help="how many threads share the auctions")] = 1,
) -> None:
    """Replay a record of auctions on a database, or on a temporary SQLite file; again, it moves nothing."""
    auctions = read_auctions(bids)
    console.print(f"{sum(len(auction.bids) for auction in auctions):,} bids in {len(auctions):,} auctions")
    with prepared_database(database) as opened:
        auctioneer = Auctioneer(opened)
        try:
            counts = replay(auctioneer, auctions, workers=workers)
        except IdempotencyConflictError as error:
            raise Refusal(f"the database has seen another record of these auctions: {error}") from None
        console.print(f"{counts[False]:,} operations have moved points, {counts[True]:,} were replays of earlier ones")
        explained = report_earnings(auctioneer.wallets, auctions)
        if not (report_books(opened) and explained):
            raise typer.Exit(1)


if __name__ == "__main__":
    sys.exit(run(app))
