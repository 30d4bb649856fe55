"""Templates and leases of databases, among workers that live, wait, fail and are killed."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL
from support.database import Database
from support.pools import Own, Workers, connect, server_of, until

from cleaner import Cleaner
from cleaner.dialects.postgresql.clone import Clones, template_name
from cleaner.dialects.postgresql.control import Control
from cleaner.dialects.postgresql.turns import PostgresTurns
from cleaner.errors import BlockedError, Blocker, PoolRefusedError, ProvisionError
from cleaner.provision.embedded import EmbeddedPostgres
from cleaner.provision.leases import Lease, Pool

on_embedded = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)
ROUNDS = int(os.environ.get("CLEANER_STRESS", "8"))
LIFE = 110  # statements of a worker that builds the template, about


@pytest.fixture
def own(worker_database: Database) -> Iterator[Own]:
    with closing(Own(server_of(worker_database))) as own:
        yield own


@pytest.fixture(scope="module")
def forker() -> Iterator[Workers]:
    with Workers() as workers:
        yield workers


@pytest.fixture
def workers(own: Own, forker: Workers) -> Workers:
    forker.url = own.text()
    return forker


def build(url: URL) -> None:
    with connect(url) as connection:
        connection.execute("CREATE TABLE item (id serial PRIMARY KEY, name text)")


def schema(lease: Lease) -> str:
    with Cleaner(lease.url) as cleaner:
        cleaner.plan()
        return cleaner.fingerprint


def prepare(lease: Lease, template: str) -> None:
    lease.prepare(template, lambda: schema(lease))


def cut(own: Own, lease: Lease) -> None:
    """End the connection by which the lease is held."""
    ended = own.control(
        "SELECT pg_terminate_backend(l.pid, 5000) FROM pg_locks l JOIN cleaner.lease r"
        " ON l.objid = r.id AND l.classid = x'6c656173'::int WHERE l.locktype = 'advisory'"
        f" AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        f" AND r.database = '{lease.database}'"
    )
    assert ended == [(True,)]


def state(own: Own) -> list[tuple[str, str | None, bool]]:
    return [(row.database, row.worker, living) for row, living in own.pool().rows()]


# -- one holder -----------------------------------------------------------------------------


@on_embedded
def test_no_two_who_live_ever_hold_the_same_database(own: Own) -> None:
    pool, held, mutex = own.pool(), set[str](), threading.Lock()

    def work(number: int) -> None:
        for _ in range(6):
            lease = pool.lease(f"gw{number % 3}")
            with mutex:
                assert lease.database not in held
                held.add(lease.database)
            lease.check()
            with mutex:
                held.remove(lease.database)
            lease.release()

    with ThreadPoolExecutor(6) as executor:
        list(executor.map(work, range(6)))
    assert len(state(own)) <= 6
    assert {(worker, living) for _, worker, living in state(own)} == {(None, False)}


def test_the_database_of_the_dead_is_dropped_with_its_sessions_and_its_name_is_not_used_again(
    own: Own, workers: Workers
) -> None:
    dead = workers.start(hold=True)
    database = workers.told(dead, "holding")
    template = own.pool().template("one", build)
    assert state(own) == [(database, "gw0", True)]
    with connect(own.url.set(database=database)) as straggler:
        workers.kill(dead)
        own.quiet()
        lease = own.pool().lease("gw0")
        assert lease.database != database
        prepare(lease, template)
        with pytest.raises(psycopg.OperationalError):
            straggler.execute("INSERT INTO item (name) VALUES ('of the dead')")
        assert own.databases() == {lease.database, template}
        assert own.inside(lease.database, "SELECT count(*) FROM item") == [(0,)]
    lease.release()


@on_embedded
def test_what_the_dead_were_making_of_their_database_is_ended_and_dropped(
    own: Own, workers: Workers
) -> None:
    dead = workers.start(hold=True)
    database = workers.told(dead, "holding")
    template = own.pool().template("one", build)
    own.run(f'CREATE DATABASE "{template_name(database)}"')
    own.run(f"COMMENT ON DATABASE \"{template_name(database)}\" IS 'made by cleaner: template'")
    with connect(own.url.set(database="postgres")) as session:

        def execute(sql: str) -> list[tuple[Any, ...]]:
            return session.execute(sql.encode()).fetchall()

        with Clones(execute, psycopg.Error, database)._alone(check=False):
            workers.kill(dead)  # the statement of its session runs on
            own.quiet()
            lease = own.pool().lease("gw0")
            prepare(lease, template)
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
    assert own.databases() == {lease.database, template}
    lease.release()


@on_embedded
def test_the_name_of_the_dead_is_not_used_again_after_a_sweep_either(
    own: Own, workers: Workers
) -> None:
    dead = workers.start(hold=True)
    database = workers.told(dead, "holding")
    workers.kill(dead)
    own.quiet()
    assert database in own.pool().sweep()
    assert database not in own.databases()
    lease = own.pool().lease("gw0")
    assert lease.database != database
    lease.release()


@on_embedded
def test_a_holder_that_lost_its_connection_goes_on_if_nobody_took_its_place(own: Own) -> None:
    lease = own.pool().lease("gw0")
    cut(own, lease)
    assert [living for *_, living in state(own)] == [False]
    lease.check()
    assert [living for *_, living in state(own)] == [True]
    prepare(lease, own.pool().template("one", build))
    cut(own, lease)
    lease.check()
    assert own.inside(lease.database, "SELECT count(*) FROM item") == [(0,)]
    lease.release()
    assert state(own) == [(lease.database, None, False)]


@pytest.mark.parametrize(
    ("provisioned", "then"),
    [(False, "lives"), (False, "gave it back"), (False, "swept"), (True, "lives"),
     (True, "gave it back")],
)  # fmt: skip
@on_embedded
def test_a_holder_whose_lease_was_taken_is_told_so(own: Own, then: str, provisioned: bool) -> None:
    role = own.role("" if provisioned else "CREATEDB")
    if provisioned:
        own.provision(role, "gw0")
    pool = own.pool(role)
    lost = pool.lease("gw0")
    cut(own, lost)
    if then == "swept":
        pool.sweep()
    else:
        taker = pool.lease("gw0")
        assert provisioned or taker.database != lost.database
        if then == "gave it back":
            taker.release()
    with pytest.raises(ProvisionError, match="given to another worker"):
        lost.check()
    with pytest.raises(ProvisionError, match="given to another worker"):
        lost.release()
    if then == "lives":
        taker.check()
        taker.release()
    assert all(row.worker is None and not living for row, living in pool.rows())


@pytest.mark.parametrize("when", ["cloned", "looked at"])
@on_embedded
def test_one_who_lost_the_lease_while_it_was_made_leaves_it_to_its_holder(
    own: Own, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = own.pool().template("one", build)
    lost = own.pool().lease("gw0")
    taken: list[Lease] = []
    recreate = Clones.recreate

    def lose() -> str:
        cut(own, lost)
        taken.append(own.pool().lease("gw0"))
        prepare(taken[0], template)
        return "of another database"

    def late(clones: Clones) -> tuple[Blocker, ...]:
        if clones.database == lost.database:
            lose()
        return recreate(clones)

    if when == "cloned":
        monkeypatch.setattr(Clones, "recreate", late)
        with pytest.raises(ProvisionError, match="given to another worker"):
            prepare(lost, template)
    else:
        lost.prepare(template, lose)
        with pytest.raises(ProvisionError, match="given to another worker"):
            lost.check()
    (row,) = [row for row, _ in own.pool().rows()]
    assert (row.database, row.template) == (taken[0].database, template)
    assert row.schema == schema(taken[0])
    taken[0].release()
    own.sweep()
    assert own.databases() == set()


@on_embedded
def test_looking_on_takes_nothing_from_anybody(own: Own) -> None:
    """Else a holder that lost its connection at that moment, or a taker, found it taken."""
    lease = own.pool().lease("gw0")
    lease.release()
    looking = threading.Event()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            own.pool().rows()
            looking.set()

    with ThreadPoolExecutor(1) as executor:
        done = executor.submit(look)
        try:
            assert looking.wait(30)
            for _ in range(10):
                again = own.pool().lease("gw0")
                assert again.database == lease.database
                cut(own, again)
                again.check()
                again.release()
        finally:
            over.set()
        done.result()


# -- templates ------------------------------------------------------------------------------


def test_a_template_is_built_once_however_many_ask_at_once(
    own: Own, workers: Workers, tmp_path: Path
) -> None:
    builds, slow = tmp_path / "builds", tmp_path / "slow"
    job = {"fingerprint": "one", "builds": str(builds), "slow": str(slow)}
    first = workers.start(worker="gw0", **job)
    workers.told(first, "building")
    others = [workers.start(worker=f"gw{number}", **job) for number in range(1, 4)]
    for other in others:
        workers.told(other, "leased")

    def never(url: URL) -> None:
        raise AssertionError

    with ThreadPoolExecutor(4) as executor:
        asked = [executor.submit(own.pool().template, "one", never) for _ in range(4)]
        slow.touch()
        names = {future.result() for future in asked}
    names |= {workers.told(pid, "templated") for pid in (first, *others)}
    for pid in (first, *others):
        workers.told(pid, "done")
    assert names == own.templates()
    assert len(names) == 1
    assert builds.read_text() == "one\n"
    assert len(own.databases()) == 1 + 4


@on_embedded
def test_a_failing_build_is_one_error_for_all_who_wait_and_for_nobody_later(
    own: Own, workers: Workers, tmp_path: Path
) -> None:
    builds, slow = tmp_path / "builds", tmp_path / "slow"
    job = {"fingerprint": "one", "builds": str(builds), "slow": str(slow)}
    job |= {"fail": "no such revision"}
    first = workers.start(worker="gw0", **job)
    workers.told(first, "building")
    others = [workers.start(worker=f"gw{number}", **job) for number in range(1, 4)]
    for other in others:
        workers.told(other, "leased")
    until(lambda: waiting(own) == 3, "all wait for the template")
    slow.touch()
    assert workers.told(first, "failed") == "RuntimeError: no such revision"
    for other in others:
        said = workers.told(other, "failed")
        assert said.startswith("ProvisionError: The template of ")
        assert "RuntimeError: no such revision" in said
        assert "cleaner_setup" in said
    assert builds.read_text() == "one\n"
    assert own.databases() == set()
    template = own.pool().template("one", build)
    assert own.databases() == {template}


def waiting(own: Own) -> int:
    """How many have tried in vain to be the one who builds."""
    found = own.run(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = 'cleaner_control'"
        f" AND query LIKE '%{own.prefix}%' AND (query LIKE '%pg_try_advisory_lock(%hashtext%'"
        " OR query LIKE '%FROM cleaner.template t %')"
    )
    return int(found[0][0])


@on_embedded
def test_an_interrupted_build_is_no_failure_and_who_waits_for_it_builds(own: Own) -> None:
    """Ctrl-C in one run is of no concern to another."""
    began, waits = threading.Event(), threading.Event()

    def interrupted(url: URL) -> None:
        began.set()
        assert waits.wait(30)
        raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as executor:
        first = executor.submit(own.pool().template, "one", interrupted)
        assert began.wait(30)
        second = executor.submit(own.pool().template, "one", build)
        try:
            until(lambda: waiting(own), "the second one waits")
        finally:
            waits.set()
        with pytest.raises(KeyboardInterrupt):
            first.result()
        template = second.result()
    assert own.databases() == {template}


@on_embedded
def test_a_builder_that_lost_its_connection_leaves_the_template_to_whoever_builds_now(
    own: Own,
) -> None:
    began, go, over = threading.Event(), threading.Event(), threading.Event()

    def lost(url: URL) -> None:
        began.set()
        assert go.wait(30)

    def second(url: URL) -> None:
        build(url)
        go.set()
        assert over.wait(30)
        with connect(url) as connection:
            connection.execute("CREATE TABLE late ()")

    with ThreadPoolExecutor(2) as executor:
        first = executor.submit(own.pool().template, "one", lost)
        assert began.wait(30)
        holder = (
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' AND"
            " classid = x'746d706c'::int AND database = (SELECT oid FROM pg_database WHERE"
            " datname = current_database()) AND objid::int8 IN (SELECT hashtext(name)::int8"
            f" & 4294967295 FROM cleaner.template WHERE base = '{own.base}')"
        )
        assert own.control(holder) == [(True,)]
        other = executor.submit(own.pool().template, "one", second)
        with pytest.raises(ProvisionError):
            first.result()
        over.set()
        template = other.result()
    lease = own.pool().lease("gw0")
    prepare(lease, template)
    tables = "SELECT relname FROM pg_class WHERE relname IN ('item', 'late') ORDER BY 1"
    assert own.inside(lease.database, tables) == [("item",), ("late",)]
    lease.release()


@on_embedded
def test_another_fingerprint_is_another_template_and_another_clone(own: Own) -> None:
    pool = own.pool()
    lease = pool.lease("gw0")
    one = pool.template("one", build)
    prepare(lease, one)
    lease.release()

    def other(url: URL) -> None:
        build(url)
        with connect(url) as connection:
            connection.execute("ALTER TABLE item ADD more int")

    lease = pool.lease("gw0")
    two = pool.template("two", other)
    prepare(lease, two)
    assert one != two
    assert own.inside(lease.database, "SELECT more FROM item") == []
    lease.release()
    pool.sweep(unused=timedelta(0))
    assert own.databases() == {two, lease.database}


def test_a_given_back_database_is_used_as_it_is_unless_its_schema_was_changed(own: Own) -> None:
    pool = own.pool()
    template = pool.template("one", build)

    def oid() -> int:
        lease = pool.lease("gw0")
        prepare(lease, template)
        lease.release()
        found = own.run(f"SELECT oid::int8 FROM pg_database WHERE datname = '{lease.database}'")
        return int(found[0][0])

    (name,) = {lease_database(pool) for _ in range(2)}
    first = oid()
    assert oid() == first
    own.inside(name, "ALTER TABLE item ADD more int")
    second = oid()
    assert second != first
    assert own.inside(name, "SELECT * FROM item") == []
    own.run(f'DROP DATABASE "{name}"')
    assert oid() not in (first, second)


def lease_database(pool: Pool) -> str:
    lease = pool.lease("gw0")
    lease.release()
    return lease.database


@on_embedded
def test_the_schema_that_a_killed_worker_changed_is_not_its_successors(
    own: Own, workers: Workers
) -> None:
    dead = workers.start(hold=True)
    own.inside(workers.told(dead, "holding"), "DROP TABLE whole; CREATE TABLE more ()")
    workers.kill(dead)
    next_one = workers.start()
    workers.told(next_one, "done")


@on_embedded
def test_a_template_may_be_a_copy_of_a_database_which_stays_as_it_is(
    own: Own, workers: Workers
) -> None:
    own.run(f"CREATE DATABASE {own.base}")
    own.run(f"ALTER DATABASE {own.base} SET work_mem = '5MB'")
    own.inside(own.base, "CREATE TABLE mine (id int); INSERT INTO mine VALUES (1)")
    before = own.run(f"SELECT * FROM pg_database WHERE datname = '{own.base}'")
    worker = workers.start(source=own.base, hold=True)
    database = workers.told(worker, "holding")
    assert own.inside(database, "SELECT id FROM mine") == []  # it has cleaned
    assert own.inside(database, "SHOW work_mem") == [("5MB",)]
    assert own.inside(own.base, "SELECT id FROM mine") == [(1,)]
    assert own.run(f"SELECT * FROM pg_database WHERE datname = '{own.base}'") == before
    workers.kill(worker)
    own.quiet()
    own.sweep()
    assert own.databases() == {own.base}


# -- roles and names ------------------------------------------------------------------------


@on_embedded
def test_two_roles_on_one_server_each_have_templates_and_databases_of_their_own(own: Own) -> None:
    for role in (own.role("CREATEDB"), own.role("CREATEDB")):
        pool = own.pool(role)
        lease = pool.lease("gw0")
        prepare(lease, pool.template("one", build))
        (owner,) = own.run(
            f"SELECT datdba::regrole::text FROM pg_database WHERE datname = '{lease.database}'"
        )
        assert owner == (role,)
        lease.release()
    assert len(own.databases()) == 4


@pytest.mark.parametrize("base", ["{}_customer_portal_backend_for_test", "{}" + "_x" * 30])
@on_embedded
def test_a_long_name_leaves_room_for_the_names_made_of_it(
    worker_database: Database, base: str
) -> None:
    short = Own(server_of(worker_database))
    short.close()
    name = base.format(short.base.replace("test", "sale"))[:62]
    with closing(Own(server_of(worker_database), name)) as own:
        leases = [own.pool().lease(worker) for worker in ("gw0", "gw0", "gw1")]
        template = own.pool().template("one", build)
        for lease in leases:
            lease.prepare(template, lambda: "as ever")
        assert len({lease.database for lease in leases}) == 3
        assert len(own.databases()) == 4
        for lease in leases:
            lease.release()
        own.sweep()
        assert own.databases() == set()


@on_embedded
def test_a_database_of_somebody_elses_is_never_taken_nor_dropped(own: Own) -> None:
    own.run(f"CREATE DATABASE {own.base}_gw0")
    lease = own.pool().lease("gw0")
    assert lease.database != f"{own.base}_gw0"
    prepare(lease, own.pool().template("one", build))
    lease.release()
    own.sweep()
    assert own.databases() == {f"{own.base}_gw0"}


@on_embedded
def test_without_createdb_there_is_a_lease_for_each_provisioned_database_and_they_stay(
    own: Own, workers: Workers
) -> None:
    role = own.role()
    pool = own.pool(role)
    with pytest.raises(PoolRefusedError) as refused:
        pool.lease("gw0")
    assert f'ALTER ROLE "{role}" CREATEDB' in refused.value.remedy
    assert "cleaner pool provision" in refused.value.remedy

    def made(lease: Lease, version: str) -> int:
        def setup(url: URL) -> None:
            build(url)
            calls.append(version)

        calls: list[str] = []
        lease.prepare(version, lambda: schema(lease), setup)
        return len(calls)

    names = own.provision(role, "gw0", "gw1")
    leases = [pool.lease(f"gw{number}") for number in range(2)]
    assert [lease.database for lease in leases] == names
    assert all(lease.provisioned for lease in leases)
    with pytest.raises(PoolRefusedError):
        pool.lease("gw2")
    assert [made(lease, "one") for lease in leases] == [1, 1]
    leases[0].release()
    again = pool.lease("gw0")
    assert made(again, "one") == 0
    assert made(again, "two") == 1
    with connect(again.url) as straggler:
        cut(own, again)
        heir = pool.lease("gw0")
        assert heir.database == again.database
        with pytest.raises(psycopg.OperationalError):
            straggler.execute("SELECT 1")
    assert made(heir, "two") == 1  # whatever the dead one has left
    cut(own, heir)
    leases[1].release()
    pool.sweep(timedelta(0), timedelta(0))
    assert own.databases() == set(names)
    assert [row.provisioned for row, _ in pool.rows()] == [True, True]
    heir = pool.lease("gw0")
    assert made(heir, "two") == 1
    heir.release()


def test_a_plain_role_drops_what_autovacuum_is_at_work_on() -> None:
    """FORCE is refused then."""
    with (
        EmbeddedPostgres(options={"autovacuum_naptime": "1"}) as server,
        closing(Own(server.url())) as own,
    ):
        own.pool().rows()  # the control database is a superuser's
        pool = own.pool(own.role("CREATEDB"))
        lease = pool.lease("gw0")
        prepare(lease, pool.template("one", build))
        slow = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1"
        own.inside(
            lease.database,
            f"CREATE TABLE busy (n) WITH ({slow}, autovacuum_vacuum_threshold = 1)"
            " AS SELECT generate_series(1, 200000); DELETE FROM busy WHERE n % 2 = 0",
        )
        there = f"SELECT pid FROM pg_stat_activity WHERE datname = '{lease.database}'"
        until(lambda: own.run(f"{there} AND backend_type = 'autovacuum worker'"), "it comes")
        with connect(lease.url):
            cut(own, lease)
            pool.sweep()
            assert lease.database not in own.databases()


@on_embedded
def test_a_sweep_leaves_what_cannot_be_dropped_and_drops_it_when_it_can(
    own: Own, workers: Workers
) -> None:
    """A superuser's psql in the database of the dead is nothing that a plain role may end."""
    role = own.role("CREATEDB")
    pool = own.pool(role)
    template = pool.template("one", build)
    lease = pool.lease("gw0")
    prepare(lease, template)
    old = lease.database
    with connect(own.url.set(database=old)):
        cut(own, lease)
        heir = pool.lease("gw0")
        prepare(heir, template)
        assert own.databases() == {old, heir.database, template}
        pool.sweep()
        cut(own, heir)
        with connect(own.url.set(database=heir.database)):
            pool.sweep(timedelta(0), timedelta(0))
            assert {old, heir.database} <= own.databases()

    def swept() -> bool:  # their sessions may take a moment to end
        pool.sweep(timedelta(0), timedelta(0))
        return own.databases() == set()

    until(swept, "nothing is left")


# -- no server ------------------------------------------------------------------------------


def test_a_server_that_cannot_be_reached_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for url in (
            f"postgresql+psycopg://127.0.0.1:{port}/app_test?connect_timeout=2",
            "postgresql+psycopg://127.0.0.1:1/app_test",
        ):
            with pytest.raises(ProvisionError, match="No connection to "):
                Pool(url_of(url)).lease("gw0")


def url_of(text: str) -> URL:
    from sqlalchemy import make_url

    return make_url(text)


def test_a_control_database_that_is_closed_to_the_role_is_a_clear_error() -> None:
    with EmbeddedPostgres() as server, closing(Own(server.url())) as own:
        own.pool().rows()
        own.run("REVOKE CONNECT ON DATABASE cleaner_control FROM PUBLIC")
        role = own.role("CREATEDB")
        with pytest.raises(ProvisionError, match=r'permission denied .*"cleaner_control"'):
            own.pool(role).lease("gw0")
        own.run(f"GRANT CONNECT ON DATABASE cleaner_control TO {role}")
        own.pool(role).lease("gw0").release()
        own.run(f"REVOKE CONNECT ON DATABASE cleaner_control FROM {role}")


class Late(Control):
    """Looks for the control database before another process has made it, and again after."""

    def _create(self) -> None:
        with closing(Control(self.engine.url, 5.0)) as other:
            other.now()
        super()._create()


def test_a_control_database_that_another_has_just_made_is_used() -> None:
    with EmbeddedPostgres() as server, closing(Late(server.url("app_test"), 5.0)) as control:
        assert control.rows() == []


# -- whoever is killed, wherever ------------------------------------------------------------


@pytest.mark.parametrize("source", [False, True], ids=["built", "copied"])
@on_embedded
def test_workers_killed_at_any_point_leave_no_half_template_and_nothing_behind(
    own: Own, workers: Workers, source: bool, record_property: Callable[[str, object], None]
) -> None:
    """``CLEANER_STRESS`` is the number of rounds. No survivor and no successor ever meets rows or
    a holder in its database, or half a template: each worker looks for itself.
    """
    dice, tally = random.Random(f"{source} {ROUNDS}"), Counter[str]()
    more: dict[str, Any] = {}
    if source:
        own.run(f"CREATE DATABASE {own.base}")
        more = {"source": own.base}
    keep = {own.base} if source else set()
    holder = workers.start(worker="gw9", hold=True, fingerprint="ever", **more)
    held = workers.told(holder, "holding")
    keep.add(held)
    for turn in range(ROUNDS // 2):
        victims = []
        more["fingerprint"] = str(turn // 2)
        for number in range(dice.randint(2, 4)):
            point, delay = dice.randrange(LIFE), dice.choice([0, 0.001, 0.004, 0.02])
            if dice.random() < 0.2:
                victims.append(workers.start(worker=f"gw{number}", cycles=3, **more))
                continue
            job = {"worker": f"gw{number}", "point": point, "delay": delay, **more}
            victims.append(workers.start(**job))
        for victim in victims:
            said = workers.end(victim)
            assert said is None or said["stage"] == "done", said
            tally["survived" if said else "killed"] += 1
        heir = workers.start(**more)
        workers.told(heir, "done")
        tally["rounds"] += 1
        if turn == ROUNDS // 4:
            workers.kill(holder)
            keep.remove(held)
        if dice.random() < 0.5 or turn == ROUNDS // 2 - 1:
            own.quiet(living=len(keep & {held}))
            own.sweep()
            tally["sweeps"] += 1
            # A template may be about to be cloned by one who lives and began before it was used.
            left = own.databases() - (own.templates() if held in keep else set())
            assert left == keep
    assert tally["killed"]
    for what, number in tally.items():
        record_property(what, number)


# -- turns ----------------------------------------------------------------------------------


def test_turns_are_taken_one_after_the_other_and_who_never_ends_is_named(
    database: Database,
) -> None:
    first = PostgresTurns(database.url, 5.0)
    second = PostgresTurns(database.url, 5.0, patience=0.1)
    with closing(first), closing(second):
        for turns in (first, second):
            with turns.turn():
                pass
        with first.turn(), pytest.raises(BlockedError) as blocked, second.turn():
            pass
        assert f"a turn at {database.name}, held by pid" in blocked.value.what
        assert len(blocked.value.blockers) == 1
        with second.turn():
            pass
