"""The platform's own tables. They stand in the same database as the points', under names of their own."""

from datetime import datetime

from sqlalchemy import DateTime
from sqlmodel import Field, SQLModel


class MenuItem(SQLModel, table=True):
    """What a model offers, and for how many points."""

    __tablename__ = "menu_items"

    item_id: str = Field(primary_key=True)
    model_id: str
    feature: str
    price: int


class Redemption(SQLModel, table=True):
    """One order of a user's, which the queue knows by the same id.

    ``status`` is that of its hold. It is the worker's until ``claimed_until``, and then anybody's again.
    """

    __tablename__ = "redemptions"

    redemption_id: str = Field(primary_key=True)
    user_id: str = Field(index=True)
    model_id: str
    item_id: str = Field(foreign_key="menu_items.item_id")
    feature: str
    price: int
    escrow_id: str
    status: str = "held"
    ordered_at: datetime = Field(sa_type=DateTime(timezone=True))
    claimed_until: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))


class Sales(SQLModel, table=True):
    """What a feature has brought its models, counted from the ledger."""

    feature: str = Field(primary_key=True)
    sold: int = 0
    earned: int = 0
