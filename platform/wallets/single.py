"""A decision carried out as one data-modifying statement, on a single PostgreSQL: one round trip, commit included.

The decision rests on a presumption (``rules.presume``), and the statement writes only where it holds: an
escrow item must be held and say what the request says, wallets must stay within their limits as they are
by then, the idempotency key must be free. So nothing is read beforehand, and a change that leaves the
presumption true is in nobody's way. Where it does not hold nothing is written, and nothing is refused.

Each part reads from one before it: a part that finds no row leaves nothing for the parts after it.
Where an earlier part has written by then, the last line divides by zero, which undoes the statement. The
ledger supplies its own two parts.
"""

from datetime import UTC, datetime, timedelta

from ..core.database import Execute
from ..core.statement import Statement
from ..core.values import MAX_POINTS
from ..ledger import store as ledger_store
from ..ledger.accounts import Bucket, Operation, model_owner, net
from ..ledger.models import LedgerTransaction, WalletState
from ..ledger.posting import post
from .models import EscrowStatus
from .rules import Decision

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The wait for a row lock is bounded before the first row is touched.
_BOUNDED = "\n    SELECT set_config('lock_timeout', %(lock_timeout)s, true)"
_AT = "%(occurred_at)s::timestamptz"
_UNUSED = """NOT EXISTS (
        SELECT FROM ledger_transactions
        WHERE owner_id = %(owner_id)s AND operation = '{operation}' AND idempotency_key = %(idempotency_key)s
    )"""
_SPEND = f"""
    UPDATE user_wallets
    SET available = available + %(available)s::bigint, escrow = escrow + %(escrow)s::bigint,
        version = version + 1, updated_at = greatest(updated_at, {_AT})
    FROM {{source}}
    WHERE user_id = %(user_id)s AND user_wallets.currency = {{currency}}
    AND available + %(available)s::bigint >= 0 AND escrow + %(escrow)s::bigint >= 0{{only}}
    RETURNING available, escrow, version, updated_at"""
_GAIN = f"""
    INSERT INTO user_wallets AS wallet (user_id, currency, available, escrow, version, created_at, updated_at)
    SELECT %(user_id)s::varchar, %(currency)s::varchar, %(available)s::bigint, 0, 1, {_AT}, {_AT}
    FROM bounded
    WHERE {_UNUSED.format(operation=Operation.CREDIT)}
    ON CONFLICT (user_id, currency) DO UPDATE
    SET available = wallet.available + excluded.available, version = wallet.version + 1,
        updated_at = greatest(wallet.updated_at, excluded.updated_at)
    WHERE wallet.available + wallet.escrow <= {MAX_POINTS} - excluded.available
    RETURNING available, escrow, version, updated_at"""
_EARN = f"""
    INSERT INTO model_wallets AS wallet (model_id, currency, earned, version, created_at, updated_at)
    SELECT %(model_id)s::varchar, recorded.currency, %(earned)s::bigint, 1,
        {_AT}, {_AT}
    FROM recorded
    ON CONFLICT (model_id, currency) DO UPDATE
    SET earned = wallet.earned + excluded.earned, version = wallet.version + 1,
        updated_at = greatest(wallet.updated_at, excluded.updated_at)
    WHERE wallet.earned <= {MAX_POINTS} - excluded.earned
    RETURNING earned, version, updated_at"""
_HOLD = f"""
    INSERT INTO escrow_items (escrow_id, user_id, currency, amount, status, queue_item_id, feature_type, reason,
        metadata, settled_amount, refunded_amount, created_at)
    SELECT %(escrow_id)s::varchar, %(user_id)s::varchar, %(currency)s::varchar, %(escrow)s::bigint,
        %(status)s::varchar, %(queue_item_id)s::varchar, %(feature_type)s::varchar, %(reason)s::varchar,
        %(metadata_json)s::text, 0, 0, {_AT}
    FROM user_wallet"""
# Of a hold, all leaves the escrow; what is settled is earned, and what is refunded is available again.
_END = f"""
    UPDATE escrow_items
    SET status = %(status)s::varchar, model_id = %(model_id)s::varchar, settled_amount = %(earned)s::bigint,
        refunded_amount = %(available)s::bigint, processed_at = {_AT}
    FROM bounded
    WHERE escrow_id = %(escrow_id)s::varchar AND user_id = %(user_id)s AND status = 'held'
    AND amount = -%(escrow)s::bigint AND queue_item_id = %(queue_item_id)s::varchar
    AND currency = coalesce(%(currency)s::varchar, currency)
    RETURNING escrow_id, currency, feature_type"""
_MICROSECONDS = "(1000000 * extract(epoch FROM {wallet}.updated_at))::bigint"
_USER = "user_wallet.available, user_wallet.escrow, user_wallet.version, " + _MICROSECONDS.format(wallet="user_wallet")
_MODEL = "model_wallet.earned, model_wallet.version, " + _MICROSECONDS.format(wallet="model_wallet")
_ISSUED = f"('platform:issuer', 'issued', -%(available)s::bigint, NULL, NULL, {_AT})"
_AVAILABLE, _ESCROW = (
    f"(%(owner_id)s::varchar, '{bucket}', %({bucket})s::bigint, "
    f"user_wallet.{bucket}, user_wallet.version, user_wallet.updated_at)"
    for bucket in (Bucket.AVAILABLE, Bucket.ESCROW)
)
_EARNED = (
    "('model:' || %(model_id)s::varchar, 'earned', %(earned)s::bigint, "
    "model_wallet.earned, model_wallet.version, model_wallet.updated_at)"
)
# The request's id may be longer than any that there is, and need not name the currency.
_TOLD = {"escrow_id": "item.escrow_id", "currency": "item.currency", "feature_type": "item.feature_type"}


def _beginning(operation: Operation, parts: dict[str, str], *entries: str) -> Statement:
    """Of a credit or a hold. The result is the user's wallet."""
    parts["recorded"] = ledger_store.recording(source="user_wallet", values={})
    parts["posted"] = ledger_store.posting(wallets="user_wallet", entries=entries)
    return Statement(operation, f"{_with(parts)}\nSELECT {_USER}\nFROM user_wallet")


def _ending(operation: Operation, *entries: str) -> Statement:
    """Of what ends a hold. The result is the wallets, and what the escrow item told.

    The model's wallet, which many may want, comes last: what it locks is free again after one more part.
    """
    parts = {"item": _END, "user_wallet": _SPEND.format(source="item", currency="item.currency", only="")}
    parts["recorded"] = ledger_store.recording(source="item, user_wallet", values=_TOLD)
    columns, wallets = _USER, ["user_wallet"]
    if _EARNED in entries:
        parts["model_wallet"] = _EARN
        columns, wallets = f"{_USER},\n    {_MODEL}", ["user_wallet", "model_wallet"]
    parts["posted"] = ledger_store.posting(wallets=", ".join(wallets), entries=entries)
    joined = "item" + "".join(f" LEFT JOIN {name} ON true" for name in wallets)
    result = f"{columns},\n    item.currency, item.feature_type, 1 / ({wallets[-1]}.version IS NOT NULL)::int"
    return Statement(operation, f"{_with(parts)}\nSELECT {result}\nFROM {joined}")


def _with(parts: dict[str, str]) -> str:
    common = {"bounded": _BOUNDED} | parts
    return "WITH " + ",\n".join(f"{name} AS ({part}\n)" for name, part in common.items())


_SPENT = _SPEND.format(
    source="bounded", currency="%(currency)s::varchar", only=f"\n    AND {_UNUSED.format(operation=Operation.HOLD)}"
)
STATEMENTS = {
    statement.name: statement
    for statement in (
        _beginning(Operation.CREDIT, {"user_wallet": _GAIN}, _ISSUED, _AVAILABLE),
        _beginning(Operation.HOLD, {"user_wallet": _SPENT, "item": _HOLD}, _AVAILABLE, _ESCROW),
        _ending(Operation.SETTLE, _ESCROW, _EARNED),
        _ending(Operation.REFUND, _AVAILABLE, _ESCROW),
        _ending(Operation.PARTIAL_SETTLE, _AVAILABLE, _ESCROW, _EARNED),
    )
}


def carry_out(execute: Execute, decision: Decision, *, lock_timeout: str) -> LedgerTransaction | None:
    """Carry out the decision, ledger and all, in one statement; ``None`` if what it presumes is not so."""
    draft, item = decision.transaction, decision.item
    parameters = {"available": 0, "escrow": 0, "earned": 0, "lock_timeout": lock_timeout, **vars(draft)}
    for account, amount in net(draft.movements).items():
        parameters[account.bucket.value] = amount
    parameters["user_id"] = draft.owner_id.removeprefix("user:")
    parameters["currency"] = draft.currency or None
    if item is not None:
        parameters["status"] = item.status.value
    row = execute(STATEMENTS[draft.operation], parameters)
    if row is None:
        return None
    user = {Bucket.AVAILABLE: int(row[0]), Bucket.ESCROW: int(row[1])}
    wallets = {draft.owner_id: _wallet(user, *row[2:4])}
    if draft.model_id is not None:
        wallets[model_owner(draft.model_id)] = _wallet({Bucket.EARNED: int(row[4])}, *row[5:7])
    ended = item is not None and item.status is not EscrowStatus.HELD
    told = {"currency": row[-3], "feature_type": row[-2]} if ended else {}
    return post(draft, wallets, **told)


def _wallet(balances: dict[Bucket, int], version: str, microseconds: str) -> WalletState:
    posted_at = EPOCH + timedelta(microseconds=int(microseconds))
    return WalletState(balances=balances, version=int(version), posted_at=posted_at)
