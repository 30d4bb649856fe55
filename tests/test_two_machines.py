"""Workers on two machines share a server, and one of the machines may vanish from the network."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL
from support.machines import Network, NotPermittedError
from support.pools import Own, Workers, connect, until

from cleaner import Cleaner
from cleaner.errors import ProvisionError
from cleaner.provision.embedded import EmbeddedPostgres
from cleaner.provision.leases import Lease, Pool

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="namespaces are for root on Linux"
)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    try:
        network = Network()
    except NotPermittedError as error:
        pytest.skip(str(error))
    with closing(network):
        yield network


@pytest.fixture(scope="module")
def server(network: Network) -> Iterator[EmbeddedPostgres]:
    """Which all machines reach; this process by the socket, and the rest of the host not at all."""
    with ExitStack() as stack:
        options = {"listen_addresses": network.address, "hba_file": "pg_hba.conf"}
        server = EmbeddedPostgres(options=options)
        stack.callback(server.stop)
        trusted = "local all all trust\nhost all all samenet trust\n"
        (server.directory / "pg_hba.conf").write_text(trusted)
        yield network.server.call(server.start)


@pytest.fixture
def own(server: EmbeddedPostgres) -> Iterator[Own]:
    with closing(Own(server.url())) as own:
        yield own


@pytest.fixture
def url(own: Own, network: Network) -> URL:
    """What the machines have in their settings."""
    return own.url.set(host=network.address, query={})


def build(url: URL) -> None:
    with connect(url) as connection:
        connection.execute("CREATE TABLE item (id serial PRIMARY KEY, name text)")


def take(url: URL) -> Lease:
    """A lease whose database is ready for tests."""
    pool = Pool(url, 20.0)
    lease = pool.lease("gw0")

    def schema() -> str:
        with Cleaner(lease.url) as cleaner:
            cleaner.plan()
            return cleaner.fingerprint

    if lease.provisioned:
        lease.prepare("one", schema, build)
    else:
        lease.prepare(pool.template("one", build), schema)
    return lease


def holders(own: Own, role: str = "") -> list[tuple[str, str | None]]:
    """The databases that are leased to someone who lives, and the machines that those are on."""
    return [(row.database, row.host) for row, living in own.pool(role).rows() if living]


def test_no_two_machines_lease_the_same_database_though_their_workers_have_the_same_names(
    own: Own, url: URL, network: Network, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        started: list[tuple[Workers, int]] = []
        machines = [network.machine(), network.machine()]
        for machine in machines:
            workers = stack.enter_context(machine.call(Workers))
            workers.url = url.render_as_string(hide_password=False)
            for name in ("gw0", "gw1"):
                builds = str(tmp_path / "builds")
                started.append((workers, workers.start(worker=name, hold=True, builds=builds)))
        databases = [workers.told(pid, "holding") for workers, pid in started]
        assert len(set(databases)) == 4
        hosts = [name for machine in machines for name in (machine.name, machine.name)]
        assert sorted(holders(own)) == sorted(zip(databases, hosts, strict=True))
        assert (tmp_path / "builds").read_text() == "None\n"  # one template for both


def test_what_a_machine_held_that_vanished_is_reclaimed_and_its_sessions_keep_nobody_up(
    own: Own, url: URL, network: Network
) -> None:
    lost, other = network.machine(), network.machine()
    with lost.call(Workers) as workers, ExitStack() as stack:
        workers.url = url.render_as_string(hide_password=False)
        worker = workers.start(hold=True)
        database = workers.told(worker, "holding")

        def session() -> psycopg.Connection[tuple[object, ...]]:
            there = connect(url.set(database=database), autocommit=False)
            return stack.enter_context(closing(there))

        writer, reader, sleeper, idle = (lost.call(session) for _ in range(4))
        writer.execute("INSERT INTO item (name) VALUES ('uncommitted'); LOCK TABLE item")
        sleeper.pgconn.send_query(b"SELECT pg_sleep(3600)")
        reader.pgconn.send_query(b"SELECT repeat('x', 1000000) FROM generate_series(1, 1000)")
        idle.execute("SELECT 1").fetchone()
        idle.commit()
        waits = f"SELECT wait_event FROM pg_stat_activity WHERE datname = '{database}'"
        at_work = {("PgSleep",), ("ClientWrite",), ("ClientRead",)}
        until(lambda: at_work <= set(own.run(waits)), "the sessions are at work")

        network.pull_out(lost)
        workers.kill(worker)
        assert holders(own) == [(database, lost.name)]  # nobody has told the server
        until(lambda: not holders(own), "its lease is reclaimed")

        lease = other.call(lambda: take(url))
        assert holders(own) == [(lease.database, other.name)]
        assert lease.database != database
        assert database not in own.databases()
        assert own.run(waits) == []
        assert own.inside(lease.database, "SELECT count(*) FROM item") == [(0,)]
        other.call(lease.release)


def test_a_machine_that_vanishes_before_it_has_its_answer_is_noticed_all_the_same(
    own: Own, url: URL, network: Network
) -> None:
    lost, other = network.machine(), network.machine()
    lease = lost.call(lambda: take(url))
    waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    control = own.url.set(database="cleaner_control")
    with ThreadPoolExecutor(1) as background, closing(connect(control)) as connection:
        connection.execute("SELECT pg_advisory_lock(42)")
        ask = "SELECT pg_advisory_lock_shared(42), pg_advisory_unlock_shared(42)"
        asked = background.submit(lost.call, lambda: lease._control.execute(ask))
        until(lambda: own.run(waiting), "the question has arrived")
        network.pull_out(lost)
        connection.execute("SELECT pg_advisory_unlock(42)")
        until(lambda: not holders(own), "its lease is reclaimed")
        new = other.call(lambda: take(url))
        assert new.database != lease.database
        network.plug_in(lost)
        asked.result()  # on another connection
    with pytest.raises(ProvisionError, match="given to another worker"):
        lost.call(lease.release)
    other.call(new.release)


def test_a_machine_without_its_network_does_not_wait_for_ever(
    own: Own, url: URL, network: Network
) -> None:
    lost = network.machine()
    lease = lost.call(lambda: Pool(url, 1.0).lease("gw0"))
    network.pull_out(lost)
    with pytest.raises(ProvisionError, match="No connection"):
        lost.call(lease.check)
    network.plug_in(lost)
    lost.call(lease.release)


@pytest.mark.parametrize("provisioned", [False, True])
def test_a_machine_that_comes_back_is_told_that_its_lease_is_anothers_and_has_written_nothing(
    provisioned: bool, own: Own, url: URL, network: Network
) -> None:
    role = own.role() if provisioned else ""
    if provisioned:
        own.provision(role, "gw0")
        url = url.set(username=role)
    lost, other = network.machine(), network.machine()
    old = lost.call(lambda: take(url))
    application = lost.call(lambda: connect(old.url, autocommit=False))
    with closing(application):
        application.execute("INSERT INTO item (name) VALUES ('of the lost')")

        network.pull_out(lost)
        until(lambda: not holders(own, role), "its lease is reclaimed")
        new = other.call(lambda: take(url))
        assert (new.database == old.database) == provisioned
        network.plug_in(lost)

        with pytest.raises(ProvisionError, match="given to another worker"):
            lost.call(old.check)
        with pytest.raises(psycopg.OperationalError):
            application.commit()
    if not provisioned:
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            lost.call(lambda: connect(old.url))
    with pytest.raises(ProvisionError, match="given to another worker"):
        lost.call(old.release)
    other.call(new.check)
    assert own.inside(new.database, "SELECT count(*) FROM item") == [(0,)]
    assert holders(own, role) == [(new.database, other.name)]
    other.call(new.release)
