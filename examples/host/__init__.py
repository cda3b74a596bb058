"""A small platform that has the points in its own database: FastAPI, SQLModel, Alembic, a worker, and tests.

Users pay for points, redeem them for what stands on a model's menu, and watch live what becomes of it; models see what
they have earned. The web process carries out and holds the public key, the worker decides and holds the private one.

    tables       the platform's own tables
    migrations   its Alembic revisions; one of them brings the points' tables
    redemptions  an order and its hold in one transaction, and what the queue has decided of it
    live         who is told of which event
    web          the endpoints
    worker       the queue: performs what waits, and signs what is to become of the points
    sales        what has sold how well, counted from the ledger's log
    server       a PostgreSQL for the demo and the tests
    demo         all of it, end to end: ``make host-demo``

Users and operators are not told apart here: that is the business of whatever stands before the web process.
"""
