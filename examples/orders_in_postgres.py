"""PostgreSQL: a job is sent if the order it is about is committed, and not otherwise. Here with SQLAlchemy.

DATABASE_URL says where the database is; without it, on this machine. Needs: pip install sqlalchemy

Run it: python examples/orders_in_postgres.py
"""

import os

import sqlalchemy as sa

from repid import Connection, PostgresServer, Repid, Router

URL = os.environ.get("DATABASE_URL", "postgresql:///")
engine = sa.create_engine(URL.replace("postgresql:", "postgresql+psycopg:", 1))
orders = sa.Table(
    "orders",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("customer", sa.Text),
    prefixes=["TEMPORARY"],
)
app = Repid(Connection(PostgresServer(URL, schema="repid_example")))
router = Router()


@router.actor
async def confirm(order: int, customer: str) -> None:
    print(f"order {order}: a mail to {customer}")


def place(connection: sa.Connection, number: int, customer: str) -> None:
    connection.execute(orders.insert().values(number=number, customer=customer))
    with app.sync() as client:
        client.using(connection=connection).enqueue(confirm, number, customer)


def main() -> None:
    app.include_router(router)
    with engine.connect() as connection:
        orders.create(connection)
        place(connection, 1, "Ada")
        connection.commit()
        place(connection, 2, "Mallory")
        connection.rollback()
        print("in the table:", connection.scalars(sa.select(orders.c.customer)).all())
    with app.sync() as client:
        client.run(lambda: app.run_worker(burst=True, handle_signals=[]))


if __name__ == "__main__":
    main()
