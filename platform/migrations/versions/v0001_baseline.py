"""The baseline: wallets, holds, claims on deposits, the ledger and its log.

Literal statements, which no later change of the code can change. SQLite cannot change a table's CHECKs without losing
its triggers, so there is room for what is known to come.
"""

from collections.abc import Callable

revision = "0001"
down_revision = None
# The oldest revision whose release may still write to what this one leaves.
oldest_writer = "0001"

# {text} compares and sorts by code point whatever the locale; {time} is a time with microseconds; {at} is the schema,
# with a point, or nothing.
TABLES = (
    """
    CREATE TABLE {at}user_wallets (
        owner_id VARCHAR(137){text} NOT NULL,
        currency VARCHAR(32){text} NOT NULL,
        available BIGINT NOT NULL,
        escrow BIGINT NOT NULL,
        paying BIGINT DEFAULT '0' NOT NULL,
        state VARCHAR(32){text} DEFAULT 'active' NOT NULL,
        version BIGINT NOT NULL,
        created_at {time} NOT NULL,
        updated_at {time} NOT NULL,
        PRIMARY KEY (owner_id, currency),
        CONSTRAINT user_wallets_balance CHECK (available >= 0 AND escrow >= 0 AND paying >= 0
            AND available + escrow + paying <= 9007199254740991),
        CONSTRAINT user_wallets_version CHECK (version >= 1)
    )
    """,
    """
    CREATE TABLE {at}model_wallets (
        owner_id VARCHAR(137){text} NOT NULL,
        currency VARCHAR(32){text} NOT NULL,
        earned BIGINT NOT NULL,
        paying BIGINT DEFAULT '0' NOT NULL,
        state VARCHAR(32){text} DEFAULT 'active' NOT NULL,
        version BIGINT NOT NULL,
        created_at {time} NOT NULL,
        updated_at {time} NOT NULL,
        PRIMARY KEY (owner_id, currency),
        CONSTRAINT model_wallets_balance CHECK (earned >= 0 AND paying >= 0
            AND earned + paying <= 9007199254740991),
        CONSTRAINT model_wallets_version CHECK (version >= 1)
    )
    """,
    """
    CREATE TABLE {at}escrow_items (
        escrow_id VARCHAR(36){text} NOT NULL,
        owner_id VARCHAR(137){text} NOT NULL,
        currency VARCHAR(32){text} NOT NULL,
        amount BIGINT NOT NULL,
        status VARCHAR(32){text} NOT NULL,
        queue_item_id VARCHAR(128){text} NOT NULL,
        feature_type VARCHAR(32){text} NOT NULL,
        reason VARCHAR(64){text} NOT NULL,
        metadata TEXT,
        model_id VARCHAR(128){text},
        settled_amount BIGINT DEFAULT '0' NOT NULL,
        refunded_amount BIGINT DEFAULT '0' NOT NULL,
        created_at {time} NOT NULL,
        processed_at {time},
        expires_at {time},
        PRIMARY KEY (escrow_id, owner_id),
        CONSTRAINT escrow_items_amount CHECK (amount >= 1 AND amount <= 9007199254740991),
        CONSTRAINT escrow_items_split CHECK (settled_amount >= 0 AND refunded_amount >= 0),
        CONSTRAINT escrow_items_status CHECK (
            (processed_at IS NULL AND settled_amount = 0 AND refunded_amount = 0
                AND status NOT IN ('settled', 'refunded', 'partially_settled'))
            OR (processed_at IS NOT NULL AND settled_amount + refunded_amount = amount AND status <> 'held'))
    )
    """,
    "CREATE INDEX escrow_items_held ON {at}escrow_items (escrow_id) WHERE status = 'held'",
    "CREATE INDEX escrow_items_owner ON {at}escrow_items (owner_id, status, escrow_id)",
    "CREATE INDEX escrow_items_queue_item ON {at}escrow_items (queue_item_id)",
    """
    CREATE TABLE {at}deposit_claims (
        source VARCHAR(128){text} NOT NULL,
        reference VARCHAR(128){text} NOT NULL,
        owner_id VARCHAR(137){text} NOT NULL,
        transaction_id VARCHAR(36){text} NOT NULL,
        currency VARCHAR(32){text} NOT NULL,
        amount BIGINT NOT NULL,
        created_at {time} NOT NULL,
        PRIMARY KEY (source, reference),
        CONSTRAINT deposit_claims_amount CHECK (amount >= 1 AND amount <= 9007199254740991)
    )
    """,
    """
    CREATE TABLE {at}ledger_transactions (
        transaction_id VARCHAR(36){text} NOT NULL,
        owner_id VARCHAR(137){text} NOT NULL,
        operation VARCHAR(32){text} NOT NULL,
        idempotency_key VARCHAR(128){text} NOT NULL,
        request_id VARCHAR(128){text} NOT NULL,
        reason VARCHAR(64){text} NOT NULL,
        currency VARCHAR(32){text} NOT NULL,
        escrow_id VARCHAR(36){text},
        queue_item_id VARCHAR(128){text},
        feature_type VARCHAR(32){text},
        model_id VARCHAR(128){text},
        authorization_id VARCHAR(128){text},
        metadata TEXT,
        details TEXT,
        occurred_at {time} NOT NULL,
        PRIMARY KEY (transaction_id, owner_id),
        CONSTRAINT ledger_transactions_idempotency_key UNIQUE (owner_id, operation, idempotency_key)
    )
    """,
    "CREATE INDEX ledger_transactions_escrow ON {at}ledger_transactions (escrow_id)",
    """
    CREATE TABLE {at}ledger_entries (
        transaction_id VARCHAR(36){text} NOT NULL,
        owner_id VARCHAR(137){text} NOT NULL,
        account_id VARCHAR(137){text} NOT NULL,
        bucket VARCHAR(32){text} NOT NULL,
        currency VARCHAR(32){text} NOT NULL,
        amount BIGINT NOT NULL,
        balance_before BIGINT,
        balance_after BIGINT,
        wallet_version BIGINT,
        posted_at {time} NOT NULL,
        PRIMARY KEY (transaction_id, owner_id, account_id, bucket),
        CONSTRAINT ledger_entries_amount CHECK (amount <> 0 OR wallet_version IS NOT NULL),
        CONSTRAINT ledger_entries_balance CHECK (
            (balance_before IS NULL AND balance_after IS NULL AND wallet_version IS NULL)
            OR (balance_before IS NOT NULL AND balance_after IS NOT NULL AND wallet_version IS NOT NULL
                AND balance_before >= 0 AND balance_after >= 0 AND balance_after = balance_before + amount
                AND wallet_version >= 1)),
        CONSTRAINT ledger_entries_version UNIQUE (account_id, currency, bucket, wallet_version)
    )
    """,
    """
    CREATE INDEX ledger_entries_account ON {at}ledger_entries
        (account_id, currency, bucket, posted_at, wallet_version)
    """,
    """
    CREATE TABLE {at}ledger_log (
        position BIGINT NOT NULL,
        transaction_id VARCHAR(36){text} NOT NULL,
        hash VARCHAR(64){text} NOT NULL,
        PRIMARY KEY (position),
        CONSTRAINT ledger_log_position CHECK (position >= 1),
        UNIQUE (transaction_id)
    )
    """,
    """
    CREATE TABLE {at}ledger_log_readers (
        name VARCHAR(128){text} NOT NULL,
        position BIGINT NOT NULL,
        updated_at {time} NOT NULL,
        PRIMARY KEY (name)
    )
    """,
)
TYPES = {
    "postgresql": {"text": ' COLLATE "C"', "time": "TIMESTAMP WITH TIME ZONE"},
    "sqlite": {"text": "", "time": "DATETIME"},
}
# Ledger rows never change: the database itself refuses UPDATE, DELETE and TRUNCATE of them.
APPEND_ONLY = ("ledger_transactions", "ledger_entries", "ledger_log")
TRIGGERS = {
    "postgresql": (
        """
    CREATE FUNCTION {at}{table}_append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION '{table} is append-only' USING ERRCODE = 'restrict_violation'; END $$
    """,
        """
    CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {at}{table}
    FOR EACH STATEMENT EXECUTE FUNCTION {at}{table}_append_only()
    """,
    ),
    "sqlite": (
        """
    CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {at}{table}
    BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END
    """,
        """
    CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {at}{table}
    BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END
    """,
    ),
}


def upgrade(execute: Callable[[str], object], dialect: str, at: str) -> None:
    """Make the tables, their indexes and triggers."""
    for statement in TABLES:
        execute(statement.format(at=at, **TYPES[dialect]))
    for table in APPEND_ONLY:
        for statement in TRIGGERS[dialect]:
            execute(statement.format(at=at, table=table))
