"""A large and correct ledger, made by the PostgreSQL server itself in seconds.

Every user is credited once; then, cycle by cycle, each holds 10 points and has them settled to a model.
"""

from sqlalchemy import Connection, text

CREDIT = 1_000_000_000
AMOUNT = 10

# One row per transaction: its number, kind (0 credit, 1 hold, 2 settle), user, cycle.
_STEPS = """
    CREATE TEMPORARY TABLE steps ON COMMIT DROP AS
    SELECT *, user_number % :models AS model_number,
           format('user-%s', user_number) AS user_id, format('model-%s', user_number % :models) AS model_id,
           timestamptz '2026-01-01 00:00:00Z' + number * interval '20 ms' AS at,
           overlay(overlay(lpad(to_hex(1767225600000 + number * 20), 12, '0') placing '-' from 9 for 0)
                   placing '-7000-8000-' from 14 for 0) AS stem
    FROM (
        SELECT user_number AS number, 0 AS kind, user_number, 0 AS cycle FROM generate_series(0, :users - 1) user_number
        UNION ALL
        SELECT :users + ((cycle - 1) * 2 + kind - 1) * :users + user_number, kind, user_number, cycle
        FROM generate_series(1, :cycles) cycle, generate_series(1, 2) kind, generate_series(0, :users - 1) user_number
    ) s
"""
_TRANSACTIONS = """
    INSERT INTO ledger_transactions (transaction_id, owner_id, operation, idempotency_key, request_id, reason, currency,
        escrow_id, queue_item_id, feature_type, model_id, authorization_id, occurred_at)
    SELECT stem || lpad(to_hex(number), 12, '0'), 'user:' || user_id, (ARRAY['credit', 'hold', 'settle'])[kind + 1],
        'key-' || cycle, 'request-' || number,
        (ARRAY['top_up', 'performance_request', 'performance_completed'])[kind + 1], 'points',
        CASE WHEN kind > 0
            THEN format('00000000-0000-7000-8000-%s', lpad(to_hex(cycle * :users + user_number), 12, '0')) END,
        CASE WHEN kind > 0 THEN 'queue-' || cycle END, CASE WHEN kind > 0 THEN 'song' END,
        CASE WHEN kind = 2 THEN model_id END, CASE WHEN kind = 2 THEN 'authorization-' || number END, at
    FROM steps ORDER BY number
"""
_ENTRIES = """
    INSERT INTO ledger_entries (transaction_id, account_id, bucket, owner_id, currency, amount, balance_before,
        balance_after, wallet_version, posted_at)
    SELECT stem || lpad(to_hex(number), 12, '0'), account_id, bucket, 'user:' || user_id, 'points', amount,
        balance_after - amount, balance_after, version, at
    FROM (SELECT *, (cycle - 1) * (:users / :models) + user_number / :models + 1 AS model_version FROM steps) s
    CROSS JOIN LATERAL (VALUES
        (0, 'platform:issuer', 'issued', -:credit, CAST(NULL AS bigint), CAST(NULL AS integer)),
        (0, 'user:' || user_id, 'available', :credit, :credit, 1),
        (1, 'user:' || user_id, 'available', -:amount, :credit - CAST(cycle AS bigint) * :amount, cycle * 2),
        (1, 'user:' || user_id, 'escrow', :amount, :amount, cycle * 2),
        (2, 'user:' || user_id, 'escrow', -:amount, 0, cycle * 2 + 1),
        (2, 'model:' || model_id, 'earned', :amount, CAST(:amount AS bigint) * model_version, model_version)
    ) e (of_kind, account_id, bucket, amount, balance_after, version)
    WHERE of_kind = kind ORDER BY number
"""


def fill(connection: Connection, *, users: int, models: int, cycles: int) -> None:
    """Write transactions and entries: users * (1 + 2 * cycles) of the one, twice as many of the other.

    ``models`` must divide ``users``. Wallets and escrow items are left to a rebuild.
    """
    parameters = {"users": users, "models": models, "cycles": cycles, "credit": CREDIT, "amount": AMOUNT}
    for statement in (_STEPS, _TRANSACTIONS, _ENTRIES):
        used = {name: value for name, value in parameters.items() if f":{name}" in statement}
        connection.execute(text(statement), used)
    connection.execute(text("ANALYZE"))
