"""``cleaner pool``: what it shows, what it makes, and what it never drops."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, create_engine, text
from support.commands import Command, Result
from support.pools import Own, connect

from cleaner.dialects.postgresql.control_leases import PROVIDER
from cleaner.provision.embedded import EmbeddedPostgres
from cleaner.provision.leases import Lease, Pool

on_embedded = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)
NOT_OURS = "its comment does not say that it is cleaner's"


@pytest.fixture
def run(cli: Command) -> Command:
    """Run ``cleaner pool`` in an empty directory, in this process."""
    return partial(cli, "pool")


def control(own: Own) -> Any:
    return closing(connect(own.url.set(database="cleaner_control")))


def build(url: URL) -> None:
    with closing(connect(url)) as connection:
        connection.execute("CREATE TABLE item (id serial PRIMARY KEY, name text)")


def prepared(pool: Pool, worker: str, fingerprint: str = "one") -> Lease:
    """A lease with a database."""
    lease = pool.lease(worker)
    lease.prepare(pool.template(fingerprint, build), lambda: "same")
    return lease


def die(lease: Lease) -> str:
    """End as a killed worker does; returns the database's name."""
    lease._control.close()
    return lease.database


def kept(own: Own, test: str = "test_it.py::test", source: str = "") -> str:
    """A database that was kept of a failed test."""
    if not source:
        source = f"{own.base}_source"
        own.run(f"CREATE DATABASE {source}")
    copy = own.pool().keep(source, run=own.base, test=test, worker="gw0")
    assert copy is not None
    return copy.name


def aged(own: Own, days: float) -> None:
    """Have all of the pool be older than it is."""
    with control(own) as connection:
        for table, column in (("lease", "used"), ("template", "used"), ("kept", "made")):
            connection.execute(
                f"UPDATE cleaner.{table} SET {column} = {column} - interval '{days} days'"
                f" WHERE base = '{own.base}'"
            )


def foreign(own: Own, name: str) -> str:
    """A database that the control database claims and that somebody else has made."""
    own.run(f"CREATE DATABASE {name}")
    with control(own) as connection:
        connection.execute(
            "INSERT INTO cleaner.lease (base, role, label, database, used) VALUES"
            f" ('{own.base}', 'postgres', '{name}', '{name}', now() - interval '99 days')"
        )
        connection.execute(
            "INSERT INTO cleaner.template (name, base, role, used) VALUES"
            f" ('{name}', '{own.base}', 'postgres', now() - interval '99 days')"
        )
        connection.execute(
            "INSERT INTO cleaner.kept VALUES"
            f" ('{name}', '{own.base}', 'postgres', 'r', 't', 'w', 'h', 1, '2000-01-01')"
        )
    return name


def states(result: Result) -> dict[str, str]:
    return {entry["database"]: entry["state"] for entry in result.json["databases"]}


# -- usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["wash"],
        ["provision"],
        ["provision", "--count", "0"],
        ["provision", "--count", "many"],
        ["sweep", "--older-than", "-1"],
        ["sweep", "--older-than", "nan"],
        ["sweep", "--older-than", "1e300"],
        ["drop", "--force"],
    ],
)
def test_wrong_usage_exits_with_2_and_shows_no_name_of_ours(
    run: Command, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 2
    assert " _" not in capsys.readouterr().err


@pytest.mark.parametrize("action", ["", "status", "provision", "sweep", "drop", "psql"])
def test_help_teaches_by_an_example(
    run: Command, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(*action.split(), "--help")
    assert exit_.value.code == 0
    assert f"example: cleaner pool {action or 'status'}" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["status", "provision --count 1", "sweep", "drop", "psql x"])
def test_a_server_that_cannot_be_reached_exits_with_1_and_no_password_is_shown(
    run: Command, action: str
) -> None:
    url = "postgresql://app:hunter2@127.0.0.1:1/app_test"
    for as_json in ([], ["--json"]):
        result = run(*action.split(), "--url", url, *as_json)
        assert result.code == 1
        assert "hunter2" not in result.out + result.err
        assert "127.0.0.1" in result.out + result.err


def test_a_server_without_a_pool_is_left_without_one(run: Command) -> None:
    with EmbeddedPostgres() as server:
        url = server.url("app_test").render_as_string()
        result = run("status", "--url", url)
        assert (result.code, result.out) == (0, "There are no databases of the pool app_test.\n")
        for action in ("sweep", "drop"):
            result = run(action, "--url", url)
            assert (result.code, result.out) == (0, "dropped 0 databases\n")
        assert "There is no pool on the server" in run("psql", "--url", url, "app_test").err
        with closing(connect(server.url())) as connection:
            names = connection.execute("SELECT datname FROM pg_database").fetchall()
    assert {name for (name,) in names} == {"postgres", "template0", "template1"}


# -- status ---------------------------------------------------------------------------------


def test_status_tells_the_state_of_every_database(run: Command, own: Own) -> None:
    pool, url = own.pool(), own.text()
    leases = [prepared(pool, f"gw{number}") for number in range(3)]
    leases[1].release()
    dead = die(leases[2])
    (provided,) = pool.provision(1)
    copy = kept(own, "test_it.py::test_x")
    seen: list[Result] = []

    def slow(_: URL) -> None:
        seen.append(run("status", "--url", url, "--json"))
        raise LookupError("no such migration")

    with pytest.raises(LookupError):
        pool.template("two", slow)
    result = run("status", "--url", url, "--json")
    assert result.code == 0
    assert result.json["base"] == own.base
    entries = {entry["database"]: entry for entry in result.json["databases"]}
    (ready,) = {entry["database"] for entry in entries.values()} & own.templates()
    (failed,) = set(entries) - own.databases()
    expected = {
        leases[0].database: "leased",
        leases[1].database: "free",
        dead: "dead",
        provided: "provisioned",
        ready: "template ready",
        failed: "failed",
        copy: "kept",
    }
    assert states(result) == expected
    assert states(seen[0]) == {**expected, failed: "building"}
    leased = entries[leases[0].database]
    assert (leased["worker"], leased["pid"]) == ("gw0", os.getpid())
    assert leased["host"]
    assert entries[leases[1].database]["worker"] is None
    assert entries[dead]["worker"] == "gw2"
    assert "no such migration" in entries[failed]["note"]
    assert entries[copy]["note"] == "test_it.py::test_x"
    assert all(entry["age"] >= 0 for entry in entries.values())
    assert all(bool(entry["size"]) == (name != failed) for name, entry in entries.items())
    leases[0].release()


@on_embedded
def test_status_is_a_table_with_a_heading(run: Command, own: Own) -> None:
    lease = prepared(own.pool(), "gw0")
    lines = run("status", "--url", own.text()).out.splitlines()
    assert lines[0].split() == ["database", "state", "worker", "host", "pid", "age", "size"]
    assert re.fullmatch(
        rf"{lease.database} +leased +gw0 +\S+ +{os.getpid()} +\d+ s +\S+ MB", lines[1]
    )
    assert re.fullmatch(r"\S+ +template ready +\d+ s +\S+ MB", lines[2])
    assert len(lines) == 3
    lease.release()


@on_embedded
def test_status_takes_no_lease_and_no_lock(run: Command, own: Own) -> None:
    pool = own.pool()
    first = prepared(pool, "gw0")
    first.release()
    with control(own) as connection:
        before = connection.execute("SELECT * FROM cleaner.lease ORDER BY id").fetchall()
        run("status", "--url", own.text())
        after = connection.execute("SELECT * FROM cleaner.lease ORDER BY id").fetchall()
    assert before == after


@on_embedded
def test_all_shows_the_other_pools_of_the_server_too(run: Command, own: Own) -> None:
    lease = own.pool().lease("gw0")
    another = own.url.set(database=f"{own.base}_another").render_as_string()
    assert states(run("status", "--url", another, "--json")) == {}
    assert states(run("status", "--url", another, "--all", "--json"))[lease.database] == "leased"
    lease.release()


@on_embedded
def test_a_role_sees_what_is_its_own_and_that_of_roles_it_has_the_privileges_of(
    run: Command, own: Own
) -> None:
    role, member = own.role("CREATEDB"), own.role("CREATEDB")
    lease = own.pool(role).lease("gw0")
    assert states(run("status", "--url", own.text(), "--json")) == {lease.database: "leased"}
    assert states(run("status", "--url", own.text(member), "--json")) == {}
    own.run(f"GRANT {role} TO {member}")
    assert states(run("status", "--url", own.text(member), "--json")) == {lease.database: "leased"}
    lease.release()


# -- provision ------------------------------------------------------------------------------


def test_a_role_that_may_create_no_database_leases_those_that_were_provided(
    run: Command, own: Own
) -> None:
    role = own.role()
    result = run("provision", "--url", own.text(), "--role", role, "--count", 2)
    names = [f"{own.base}_provided_{number}" for number in (1, 2)]
    assert (result.code, result.out.splitlines()[0]) == (0, "made 2 databases")
    assert [line.strip() for line in result.out.splitlines()[1:]] == names
    leases = [own.pool(role).lease(f"gw{number}") for number in range(2)]
    assert [lease.database for lease in leases] == names
    built: list[str] = []

    def build_in_place(url: URL) -> None:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE item (id serial PRIMARY KEY)"))
        engine.dispose()
        built.append("once")

    for fingerprint, times in (("one", 1), ("one", 1), ("two", 2)):
        leases[0].prepare(fingerprint, lambda: "", build_in_place)
        assert len(built) == times
        leases[0].release()
        leases[0] = own.pool(role).lease("gw0")
    assert set(states(run("status", "--url", own.text(role), "--json")).values()) == {"leased"}
    for lease in leases:
        lease.release()
    owners = own.run(
        "SELECT pg_get_userbyid(datdba), shobj_description(oid, 'pg_database') FROM pg_database"
        f" WHERE starts_with(datname, '{own.base}')"
    )
    assert owners == [(role, f"made by cleaner: provided for {role}")] * 2


@on_embedded
def test_what_is_there_is_not_provided_again_and_what_is_gone_is(run: Command, own: Own) -> None:
    role, url = own.role(), own.text()

    def provision(number: int) -> list[str]:
        arguments = ["--url", url, "--role", role, "--count", number, "--json"]
        return [name.rpartition("_")[2] for name in run("provision", *arguments).json["made"]]

    assert provision(2) == ["1", "2"]
    lease = own.pool(role).lease("gw0")
    assert provision(4) == ["3", "4"]
    assert provision(3) == []
    own.run(f"DROP DATABASE {own.base}_provided_3")
    assert provision(4) == ["3"]
    lease.release()
    with closing(connect(own.url.set(database=f"{own.base}_provided_3", username=role))):
        pass


@on_embedded
def test_an_interrupted_provision_is_finished_by_the_next_one(run: Command, own: Own) -> None:
    role, name = own.role(), f"{own.base}_provided_1"
    with control(own) as connection:
        connection.execute(
            "INSERT INTO cleaner.lease (base, role, label, database, worker) VALUES"
            f" ('{own.base}', '{role}', 'provided_1', '{name}', '{PROVIDER}')"
        )
    assert states(run("status", "--url", own.text(), "--json")) == {name: "dead"}
    result = run("provision", "--url", own.text(), "--role", role, "--count", 1, "--json")
    assert result.json == {"made": [name]}
    assert states(run("status", "--url", own.text(), "--json")) == {name: "provisioned"}


@on_embedded
def test_a_database_of_somebody_elses_is_passed_over(run: Command, own: Own) -> None:
    own.run(f"CREATE DATABASE {own.base}_provided_1")
    result = run("provision", "--url", own.text(), "--count", 1, "--json")
    assert result.json == {"made": [f"{own.base}_provided_2"]}


def test_who_may_not_provide_is_told_the_grant_and_leaves_nothing(run: Command, own: Own) -> None:
    plain, admin = own.role(), own.role("CREATEDB")
    before = own.databases()

    def refusal(*arguments: object) -> str:
        result = run("provision", "--count", 1, *arguments)
        assert (result.code, result.out) == (1, "")
        assert own.databases() == before
        assert states(run("status", "--url", own.text(), "--json")) == {}
        return result.err.splitlines()[-1]

    assert f'ALTER ROLE "{plain}" CREATEDB' in refusal("--url", own.text(plain))
    assert refusal("--url", own.text(), "--role", f"{plain}x").endswith(
        f'CREATE ROLE "{plain}x" LOGIN'
    )
    grant = f'GRANT "{plain}" TO "{admin}"'
    assert grant in refusal("--url", own.text(admin), "--role", plain)
    own.run(grant)
    assert run("provision", "--url", own.text(admin), "--role", plain, "--count", 1).code == 0
    own.pool(plain).lease("gw0").release()


# -- sweep ----------------------------------------------------------------------------------


def test_a_sweep_drops_the_dead_and_what_is_old_and_nothing_else(run: Command, own: Own) -> None:
    pool, url = own.pool(), own.text()
    pool.provision(2)
    provided = [pool.lease("p0"), pool.lease("p1")]
    living = prepared(pool, "gw0")
    dying, free = prepared(pool, "gw1"), prepared(pool, "gw2")
    dead = die(dying)
    free.release()
    die(provided[0])
    provided[1].release()
    copy = kept(own)
    (template,) = own.templates()
    unused = pool.template("two", build)
    theirs = foreign(own, f"{own.base}_precious")

    first = run("sweep", "--url", url, "--json")
    assert first.json == {"dropped": [dead], "failed": {theirs: NOT_OURS}}
    assert first.code == 1
    assert run("sweep", "--url", url).out == "dropped 0 databases\n"
    aged(own, 3)
    assert run("sweep", "--url", url, "--older-than", 30, "--json").json["dropped"] == []
    assert run("sweep", "--url", url, "--json").json["dropped"] == [free.database]
    assert run("sweep", "--url", url, "--older-than", 2, "--json").json["dropped"] == [unused, copy]
    for _ in range(2):
        assert run("sweep", "--url", url, "--older-than", 0, "--json").json["dropped"] == []
    assert own.databases() == {
        theirs,
        template,
        living.database,
        f"{own.base}_source",
        *(lease.database for lease in provided),
    }
    living.release()


@on_embedded
def test_a_kept_database_that_somebody_looks_at_is_not_swept(run: Command, own: Own) -> None:
    name = kept(own)
    with closing(connect(own.url.set(database=name))) as looking:
        assert run("sweep", "--url", own.text(), "--older-than", 0).code == 0
        looking.execute("SELECT 1")
    assert run("sweep", "--url", own.text(), "--older-than", 0, "--json").json["dropped"] == [name]


@on_embedded
def test_a_template_is_not_swept_from_under_a_worker_that_is_about_to_clone_it(
    run: Command, own: Own
) -> None:
    pool = own.pool()
    lease = pool.lease("gw0")
    template = pool.template("one", build)
    assert run("sweep", "--url", own.text(), "--older-than", 0, "--json").json["dropped"] == []
    lease.prepare(template, lambda: "same")
    lease.release()


# -- drop -----------------------------------------------------------------------------------


def test_drop_leaves_what_living_workers_have_and_names_them(run: Command, own: Own) -> None:
    pool, url = own.pool(), own.text()
    role = own.role()
    pool.provision(1, role)
    living, free, dead = (prepared(pool, f"gw{number}") for number in range(3))
    free.release()
    die(dead)
    borrowed = own.pool(role).lease("gw7")
    (template,) = own.templates()
    copy, theirs = kept(own), foreign(own, f"{own.base}_precious")

    result = run("drop", "--url", url, "--json")
    assert result.code == 1
    assert set(result.json["dropped"]) == {free.database, dead.database, copy}
    assert result.json["failed"] == {theirs: NOT_OURS}
    assert result.json["left"].keys() == {living.database, template, borrowed.database}
    assert re.fullmatch(
        rf"in use by gw0 on \S+, pid {os.getpid()}", result.json["left"][living.database]
    )
    printed = run("drop", "--url", url)
    assert printed.code == 1
    assert f"  {living.database}: in use by gw0" in printed.out
    with closing(connect(living.url)) as connection:
        connection.execute("SELECT 1 FROM item")

    living.release()
    borrowed.release()
    result = run("drop", "--url", url, "--json")
    assert (result.code, result.json["left"], result.json["failed"]) == (0, {}, {})
    assert own.databases() == {theirs, f"{own.base}_source"}
    assert states(run("status", "--url", url, "--json")) == {}


@on_embedded
def test_who_could_not_provide_them_again_does_not_drop_provisioned_databases(
    run: Command, own: Own
) -> None:
    role = own.role()
    (name,) = own.pool().provision(1, role)
    result = run("drop", "--url", own.text(role))
    assert result.code == 1
    assert f"  {name}: provided by a role that may create databases" in result.out
    assert name in own.databases()
    assert run("drop", "--url", own.text(), "--json").json["dropped"] == [name]


@on_embedded
def test_drop_leaves_other_pools_alone(run: Command, own: Own) -> None:
    lease = prepared(own.pool(), "gw0")
    lease.release()
    another = own.url.set(database=f"{own.base}_another").render_as_string()
    before = own.databases()
    assert run("drop", "--url", another).code == 0
    assert own.databases() == before


# -- psql -----------------------------------------------------------------------------------


@on_embedded
def test_psql_runs_in_the_named_database(own: Own, tmp_path: Path) -> None:
    name = kept(own)
    command = [sys.executable, "-m", "cleaner", "pool", "psql", "--url", own.text(), name]
    query = "SELECT current_database()"
    done = subprocess.run(
        [*command, "-c", query], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert name in done.stdout.split()
    done = subprocess.run(
        command, input=query, capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert name in done.stdout.split()
    done = subprocess.run(
        [*command, "-c", "SELECT 1/0"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1


@on_embedded
def test_psql_names_a_database_that_is_not_there(run: Command, own: Own) -> None:
    result = run("psql", "--url", own.text(), f"{own.base}_nowhere")
    assert result.code == 1
    assert "Remedy: cleaner pool status" in result.err
