"""What goes over the wire, counted by a relay that reads PostgreSQL's protocol."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from sqlalchemy import URL
from support.database import STRATEGIES, Database

from cleaner import Cleaner

pytestmark = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)

# What SQLAlchemy asks once of a server: version, schema, isolation, conforming strings, and
# in a transaction whether there is an hstore. It is no part of a clean, nor of the report.
DIALECT = 7
# The session's settings, the catalogs, the functions that clean, the call.
FIRST_CLEAN = 4


class Relay:
    """A TCP relay to a server, which counts the messages ReadyForQuery: one a round trip.

    The one that ends the start of a connection is not counted: it answers no query.
    """

    def __init__(self, port: int) -> None:
        self.connections = 0
        self.round_trips = 0
        self._server = "127.0.0.1", port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._open += client, server
                for work in (self._ask, self._answer):
                    self._threads.append(threading.Thread(target=work, args=(client, server)))
                    self._threads[-1].start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        pending, started = b"", False
        with suppress(OSError):
            while data := server.recv(65536):
                pending += data  # each message: its type, its length without that, its body
                while len(pending) >= 5 and len(pending) > (
                    length := int.from_bytes(pending[1:5], "big")
                ):
                    if pending[:1] == b"Z":
                        if started:
                            self.round_trips += 1
                        else:
                            started, self.connections = True, self.connections + 1
                    pending = pending[length + 1 :]
                client.sendall(data)  # counted before the client can know
            client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()

    def since(self, before: int = 0) -> int:
        return self.round_trips - before


@pytest.fixture
def relay(database: Database) -> Iterator[Relay]:
    relay = Relay(int(database.scalar("SHOW port")))
    yield relay
    relay.close()


@pytest.fixture
def url(database: Database, relay: Relay) -> URL:
    """The database, by way of the relay, and in the clear."""
    return URL.create(
        database.url.drivername,
        username="postgres",
        host="127.0.0.1",
        port=relay.port,
        database=database.name,
        query={"sslmode": "disable", "gssencmode": "disable"},
    )


@pytest.fixture
def shop(database: Database) -> Database:
    """Two tables in a cycle, one with a view, partitions, and sequences."""
    database.execute(
        """CREATE TABLE customer (id serial PRIMARY KEY, order_id int);
        CREATE TABLE orders (id serial PRIMARY KEY, customer_id int NOT NULL REFERENCES customer);
        ALTER TABLE customer ADD FOREIGN KEY (order_id) REFERENCES orders;
        CREATE TABLE event (day int NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY)
            PARTITION BY LIST (day);
        CREATE TABLE event_1 PARTITION OF event FOR VALUES IN (1);
        CREATE TABLE event_2 PARTITION OF event DEFAULT;
        CREATE VIEW recent AS SELECT * FROM orders;
        CREATE SEQUENCE loose START 1000 INCREMENT 5"""
    )
    return database


def dirty(database: Database) -> None:
    database.execute(
        """INSERT INTO customer DEFAULT VALUES;
        INSERT INTO orders (customer_id) SELECT id FROM customer;
        UPDATE customer SET order_id = (SELECT max(id) FROM orders);
        INSERT INTO event VALUES (1), (2), (3);
        SELECT nextval('loose')"""
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_ordinary_clean_is_one_round_trip_and_says_so(
    shop: Database, relay: Relay, url: URL, strategy: str
) -> None:
    with Cleaner(url, strategy=strategy) as cleaner:
        cleaner.clean()
        for _ in range(5):
            dirty(shop)
            before = relay.round_trips
            report = cleaner.clean()
            assert relay.since(before) == 1
            assert report.round_trips == 1
            assert set(report.tables) == {"customer", "orders", "event"}
            assert len(report.sequences) == 4
        cleaner.verify()
    assert relay.connections == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_clean_of_a_clean_database_is_one_round_trip(
    shop: Database, relay: Relay, url: URL, strategy: str
) -> None:
    with Cleaner(url, strategy=strategy) as cleaner:
        cleaner.clean()
        before = relay.round_trips
        assert cleaner.clean().round_trips == relay.since(before) == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_first_clean_takes_four_round_trips_and_what_sqlalchemy_asks_of_a_new_server(
    shop: Database, relay: Relay, url: URL, strategy: str
) -> None:
    dirty(shop)
    with Cleaner(url, strategy=strategy) as cleaner:
        assert cleaner.clean().round_trips == FIRST_CLEAN
        assert relay.round_trips <= FIRST_CLEAN + DIALECT
        assert relay.connections == 1


def test_the_first_clean_of_a_second_connection_looks_at_no_catalog(
    shop: Database, relay: Relay, url: URL
) -> None:
    with Cleaner(url) as cleaner:
        cleaner.clean()
        cleaner.close()
        dirty(shop)
        before = relay.round_trips
        assert cleaner.clean().round_trips == relay.since(before) == FIRST_CLEAN - 1
        assert relay.connections == 2


def test_a_clean_on_a_connection_that_has_died_finds_that_out_and_makes_a_new_one(
    shop: Database, relay: Relay, url: URL
) -> None:
    with Cleaner(url) as cleaner:
        cleaner.clean()
        dirty(shop)
        shop.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'cleaner'"
        )
        before = relay.round_trips
        assert len(cleaner.clean().tables) == 3
        # The settings, a call that meets no functions, the functions, the call.
        assert relay.since(before) == 4
        assert relay.connections == 2
        before = relay.round_trips
        assert cleaner.clean().round_trips == relay.since(before) == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "ddl",
    [
        "CREATE TABLE another (id serial PRIMARY KEY)",
        "DROP TABLE event_1",
        "ALTER TABLE orders ADD note text",
        "ALTER TABLE customer ADD parent_id int REFERENCES customer",
    ],
)
def test_a_clean_after_a_change_of_the_schema_takes_at_most_four(
    shop: Database, relay: Relay, url: URL, strategy: str, ddl: str
) -> None:
    """The call that finds out, the catalogs, the functions, the call."""
    with Cleaner(url, strategy=strategy) as cleaner:
        cleaner.clean()
        shop.execute(ddl)
        dirty(shop)
        before = relay.round_trips
        report = cleaner.clean()
        assert report.round_trips == relay.since(before) <= 4
        before = relay.round_trips
        assert cleaner.clean().round_trips == relay.since(before) == 1
        cleaner.verify()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_plan_is_a_look_that_changes_nothing(
    shop: Database, relay: Relay, url: URL, strategy: str
) -> None:
    dirty(shop)
    with Cleaner(url, strategy=strategy) as cleaner:
        cleaner.connect()
        before = relay.round_trips
        plan = cleaner.plan()
        assert relay.since(before) == 1
        assert set(plan.tables) == {"customer", "orders", "event"}
    assert (shop.count("customer"), shop.count("orders"), shop.count("event")) == (1, 1, 3)
    assert shop.scalar("SELECT is_called FROM loose")


def test_strategies_by_turns_on_one_connection_are_one_round_trip_each(
    shop: Database, relay: Relay, url: URL
) -> None:
    with Cleaner(url) as cleaner:
        cleaners = [cleaner.using(strategy=strategy) for strategy in STRATEGIES]
        for each in cleaners:
            each.clean()
        for each in cleaners * 2:
            dirty(shop)
            before = relay.round_trips
            assert each.clean().round_trips == relay.since(before) == 1
    assert relay.connections == 1


def test_every_attempt_at_a_blocked_clean_is_one_round_trip(
    shop: Database, relay: Relay, url: URL
) -> None:
    with (
        Cleaner(url, lock_timeout=30) as cleaner,
        closing(shop.connect(autocommit=False)) as writer,
    ):
        cleaner.clean()
        writer.execute("INSERT INTO customer DEFAULT VALUES")
        pid = writer.info.backend_pid
        # Ends the writer as soon as the clean waits for it.
        watch = threading.Thread(
            target=shop.execute,
            args=(
                f"""DO $$ BEGIN
                LOOP EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE NOT granted);
                    PERFORM pg_sleep(0.002); END LOOP;
                PERFORM pg_terminate_backend({pid}, 5000); END $$""",
            ),
        )
        watch.start()
        before = relay.round_trips
        report = cleaner.clean()
        watch.join()
        assert report.round_trips == report.attempts == relay.since(before)
