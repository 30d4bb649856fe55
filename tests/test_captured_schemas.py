"""Schemas with all that real ones have: every row comes back, to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from sqlalchemy import create_engine
from support import observe
from support.cases import Way, ways
from support.churn import churn
from support.database import Database
from support.history import State, state

from cleaner import Cleaner, shop

KEYS = """
CREATE TABLE country (code text PRIMARY KEY, name text NOT NULL UNIQUE, number int UNIQUE);
CREATE TABLE city (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text,
    country text REFERENCES country ON UPDATE CASCADE ON DELETE CASCADE,
    number int REFERENCES country (number) ON DELETE SET NULL,
    sister int REFERENCES city ON DELETE RESTRICT);
CREATE TABLE street (city int REFERENCES city ON DELETE CASCADE, number int, name text,
    PRIMARY KEY (city, number));
CREATE TABLE house (city int, street int, number text DEFAULT 'none', owner name,
    FOREIGN KEY (city, street) REFERENCES street ON UPDATE CASCADE ON DELETE SET DEFAULT);
CREATE TABLE hen (id int PRIMARY KEY, egg int NOT NULL);
CREATE TABLE egg (id int PRIMARY KEY, hen int NOT NULL REFERENCES hen);
ALTER TABLE hen ADD FOREIGN KEY (egg) REFERENCES egg DEFERRABLE INITIALLY DEFERRED;
CREATE TABLE account (id serial PRIMARY KEY, email text, place int UNIQUE DEFERRABLE,
    deleted bool DEFAULT false, valid daterange, EXCLUDE USING gist (valid WITH &&));
CREATE UNIQUE INDEX ON account (email) WHERE NOT deleted;
CREATE UNIQUE INDEX ON account (lower(email)) INCLUDE (place);
INSERT INTO country VALUES ('at', 'Austria', 43), ('be', 'Belgium', 32), ('ch', 'Swiss', 41);
INSERT INTO city (name, country, number, sister) VALUES ('A', 'at', 43, 2), ('B', 'be', 41, 1);
INSERT INTO street VALUES (1, 1, 'x'), (1, 2, 'y'), (2, 1, 'z');
INSERT INTO house VALUES (1, 2, '1a', 'o'), (1, 2, '1a', 'o'), (2, 1, '2', 'p'),
    (NULL, NULL, '', NULL);
BEGIN; INSERT INTO hen VALUES (1, 2), (2, 1); INSERT INTO egg VALUES (1, 1), (2, 2); COMMIT;
INSERT INTO account (email, place, deleted, valid) VALUES
    ('a', 1, false, '[2020-01-01,2020-02-01)'),
    ('b', 2, true, '[2021-01-01,2021-02-01)'), ('C', 3, true, NULL);
"""
TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s "odd", {x}');
CREATE DOMAIN amount AS numeric CHECK (value > -100);
CREATE DOMAIN due AS date;
CREATE TYPE pair AS (d date, x float8, i interval, m mood);
CREATE TYPE span AS RANGE (subtype = float8);
CREATE TABLE kind (id bigint PRIMARY KEY, n numeric, f float8, r real, t text, v varchar(3),
    c char(5), b bytea, j json, jb jsonb, ts timestamptz, i interval, u uuid, x inet, bits varbit,
    m mood, ms mood[], a amount, d due, p pair, ps pair[], s span, arr int[], texts text[],
    rng int4range, pt point, mon money, tv tsvector, doc xml, lsn pg_lsn, reg regclass);
INSERT INTO kind (id, n, f, r, t, v, c, b, j, jb, ts, i, u, x, bits) VALUES
    (1, 1.0, '-0', 'NaN', '', 'a  ', 'b', '', '{"a" : 1, "a":2}', '{"a": 1.0}', 'infinity',
     '1 mon -1 day 00:00:00.000001', '00000000-0000-0000-0000-000000000001', '10.0.0.1/8', B''),
    (2, 1.00, 'NaN', '-0', E'\\n\\t\\\\', 'ü', '', '\\x00ff', ' [ ]', '[]', '-infinity',
     '-00:00:01', NULL, '::1', B'0101'),
    (3, 'NaN', 0.1::float8 + 0.2, 1e-45, repeat('x', 10000), NULL, NULL, NULL, NULL, 'null',
     '0001-01-01 00:00:00 BC', '24:00:00', NULL, NULL, NULL),
    (4, 'infinity', 5e-324, 'infinity', '🐘', NULL, NULL, NULL, 'null', NULL, NULL, NULL, NULL,
     NULL, NULL);
INSERT INTO kind (id, m, ms, a, d, p, ps, s, arr, texts, rng, pt, mon, tv, lsn, reg) VALUES
    (5, 'sad', '{ok,NULL}', 1.10, '2020-03-04',
     ROW('2020-03-04', 0.1::float8 + 0.2, '-1 day', 'ok'),
     ARRAY[ROW(NULL, '-0', '1 mon', 'it''s "odd", {x}')::pair, NULL], '[0.1,0.30000000000000004)',
     '[0:1]={1,NULL}', '{"",NULL,"NULL",",\\""}', 'empty', '(-0,1)', 12.34, 'a:1A b', '0/FF',
     'pg_class'), (6, 'ok', '{}', -0.0, NULL, NULL, '{}', 'empty', '{}', '{}', '(,)', NULL, NULL,
     '', NULL, NULL);
CREATE TABLE big (id int PRIMARY KEY, plain text, out text, bytes bytea);
ALTER TABLE big ALTER plain SET STORAGE PLAIN, ALTER out SET STORAGE EXTERNAL;
INSERT INTO big VALUES (1, repeat('p', 3000), repeat('large', 1000000), NULL),
    (2, NULL, NULL, decode(repeat('00ff', 500000), 'hex'));
CREATE TABLE by_value (n numeric PRIMARY KEY, f float8 UNIQUE NOT NULL, m mood);
INSERT INTO by_value VALUES (1.0, '-0', 'sad'), (2.00, 'NaN', NULL), ('NaN', 1, 'ok');
CREATE TABLE by_mood (m mood, p due, x text, PRIMARY KEY (m, p));
INSERT INTO by_mood VALUES ('sad', '2020-01-02', 'x'), ('ok', '2020-01-02', 'y');
CREATE TABLE bare (); INSERT INTO bare DEFAULT VALUES; INSERT INTO bare DEFAULT VALUES;
CREATE TABLE keyless (j json, f float8); INSERT INTO keyless VALUES ('{}', '-0'), ('{}', '-0'),
    ('{ }', 0), (NULL, NULL);
"""
OBSTACLES = """
CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN RAISE EXCEPTION ''% of % is forbidden'', TG_OP, TG_TABLE_NAME; END';
CREATE TABLE log (id serial PRIMARY KEY, what text);
CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    AS 'BEGIN INSERT INTO public.log (what) VALUES (TG_OP); RETURN coalesce(new, old); END';
CREATE TABLE dataset (id serial PRIMARY KEY, name text, size int GENERATED ALWAYS AS (length(name))
    STORED);
INSERT INTO dataset (name) VALUES ('a'), ('bb'), ('ccc');
CREATE TRIGGER guard BEFORE UPDATE OF name ON dataset FOR EACH ROW EXECUTE FUNCTION guard();
CREATE TRIGGER guard2 BEFORE UPDATE OR INSERT ON dataset EXECUTE FUNCTION guard();
CREATE TRIGGER log AFTER INSERT OR UPDATE OR DELETE ON dataset FOR EACH ROW EXECUTE FUNCTION log();
CREATE TRIGGER log2 AFTER TRUNCATE ON dataset EXECUTE FUNCTION log();
ALTER TABLE dataset ENABLE ALWAYS TRIGGER guard, ENABLE REPLICA TRIGGER log, DISABLE TRIGGER guard2;
CREATE TABLE secret (id int PRIMARY KEY, owner text DEFAULT 'x');
INSERT INTO secret VALUES (1), (2), (3);
ALTER TABLE secret ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY none ON secret USING (id = 1) WITH CHECK (false);
CREATE TABLE secret_bag (x int); INSERT INTO secret_bag VALUES (1), (1);
ALTER TABLE secret_bag ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE TABLE ruled (id int PRIMARY KEY, x int); INSERT INTO ruled VALUES (1, 1), (2, 2);
CREATE RULE i AS ON INSERT TO ruled DO INSTEAD NOTHING;
CREATE RULE u AS ON UPDATE TO ruled DO ALSO INSERT INTO log (what) VALUES ('rule');
CREATE RULE d AS ON DELETE TO ruled DO INSTEAD NOTHING;
CREATE TABLE event (day int, id serial, text text, PRIMARY KEY (day, id)) PARTITION BY LIST (day);
CREATE TABLE event_1 PARTITION OF event FOR VALUES IN (1) PARTITION BY RANGE (id);
CREATE TABLE event_1a PARTITION OF event_1 FOR VALUES FROM (0) TO (100);
CREATE TABLE event_1b PARTITION OF event_1 DEFAULT;
CREATE TABLE event_2 PARTITION OF event DEFAULT;
INSERT INTO event (day, text) VALUES (1, 'one'), (2, 'two'), (3, 'three');
CREATE TABLE hits (day int) PARTITION BY HASH (day);
CREATE TABLE hits_0 PARTITION OF hits FOR VALUES WITH (MODULUS 1, REMAINDER 0);
INSERT INTO hits VALUES (1), (1), (2);
CREATE TABLE animal (id serial PRIMARY KEY, name text);
CREATE TABLE cat (lives int, PRIMARY KEY (id)) INHERITS (animal);
INSERT INTO animal (name) VALUES ('a'), ('b'); INSERT INTO cat (name, lives) VALUES ('c', 9);
CREATE UNLOGGED TABLE cache (id int PRIMARY KEY, x text); INSERT INTO cache VALUES (1, 'x');
CREATE MATERIALIZED VIEW per_day AS SELECT day, count(*) FROM event GROUP BY day;
CREATE MATERIALIZED VIEW all_days AS SELECT sum(count) FROM per_day;
CREATE SEQUENCE loose START 1000 INCREMENT 5; CREATE SEQUENCE cached CACHE 10;
CREATE SEQUENCE down INCREMENT -1 MINVALUE -5 CYCLE; CREATE SEQUENCE fresh;
SELECT nextval('loose'), nextval('cached'), nextval('down'), setval('fresh', 77, false);
"""
NAMES = """
CREATE SCHEMA "User"; CREATE SCHEMA "odd %s ""schema"".'x'";
CREATE TYPE "User"."Mood" AS ENUM ('a b', '''');
CREATE TABLE "User"."u1 AS (" (held int PRIMARY KEY, lim text, own xid, here int, part int,
    stamp float8, seen int, done bool, wait int, known int, horizon int, reload int, changed int,
    print text, t text, c text, o text, p text, "$1" int, "%" int, ignored int, i1 int,
    "Mood" "User"."Mood", "select" text, " " text, "quo""te" text, "it's" text, "\\" text);
INSERT INTO "User"."u1 AS (" (held, lim, t, c, "Mood") VALUES (1, 'x', 't', 'c', 'a b'),
    (2, 'y', NULL, NULL, '''');
CREATE TABLE "odd %s ""schema"".'x'"."表 🐘 :p $cleaner$ \\" (lim int, own int, "user" text);
INSERT INTO "odd %s ""schema"".'x'"."表 🐘 :p $cleaner$ \\" VALUES (1, 2, 'a'), (1, 2, 'a');
CREATE TABLE "odd %s ""schema"".'x'".t ("c" int PRIMARY KEY REFERENCES "User"."u1 AS (" (held));
INSERT INTO "odd %s ""schema"".'x'".t VALUES (1), (2);
CREATE TABLE t (c int, t text, PRIMARY KEY (c)); INSERT INTO t VALUES (1, 't'), (2, 'c');
"""
COLLATED = """
CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TABLE tag (name text COLLATE ci PRIMARY KEY, v varchar(5) COLLATE ci, l text[] COLLATE ci);
INSERT INTO tag VALUES ('a', 'x', '{y}'), ('b', NULL, NULL);
CREATE TABLE by_byte (name text COLLATE ci NOT NULL, x int);
CREATE UNIQUE INDEX ON by_byte (name COLLATE "C");
INSERT INTO by_byte VALUES ('a', 1), ('A', 2);
CREATE TABLE under (name text COLLATE ci REFERENCES tag ON UPDATE CASCADE);
INSERT INTO under VALUES ('A'), ('b');
"""


def build_shop(database: Database) -> None:
    engine = create_engine(database.url)
    shop.build(engine)
    shop.fill(engine)
    engine.dispose()


def build_collated(database: Database) -> None:
    try:
        database.execute(COLLATED)
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server has no ICU")


SCHEMAS: dict[str, Callable[[Database], object]] = {
    "shop": build_shop,
    "keys": lambda database: database.execute(KEYS),
    "types": lambda database: database.execute(TYPES),
    "obstacles": lambda database: database.execute(OBSTACLES),
    "names": lambda database: database.execute(NAMES),
    "collated": build_collated,
}


def captured(database: Database, way: Way) -> tuple[Cleaner, State]:
    """A cleaner that has captured what there is, and what that is."""
    if way.owner:
        database.give_away()
    database.execute(f'GRANT CREATE ON DATABASE "{database.name}" TO {database.role}')
    cleaner = database.cleaner(role=way.role(database), strategy=way.strategy, lock_timeout=20)
    cleaner.capture()
    return cleaner, state(database)


@pytest.mark.parametrize("schema", SCHEMAS)
@ways()
def test_an_untouched_baseline_stays_and_whatever_was_done_to_it_every_row_comes_back(
    database: Database, way: Way, schema: str
) -> None:
    SCHEMAS[schema](database)
    cleaner, baseline = captured(database, way)
    with cleaner:
        text = observe.schema_text(database.session)
        for _ in range(2):
            cleaner.clean()
            assert state(database) == baseline
        for turn in range(2):
            done = churn(database.session, turn, add=turn != 1)
            assert done["deleted"] >= done["tables"] - 2, done  # a rule keeps some, a log has none
            dirty = state(database)
            assert sum(dirty[0][table] != rows for table, rows in baseline[0].items()) > 1
            cleaner.clean()
            assert state(database) == baseline
        assert observe.schema_text(database.session) == text


@ways()
def test_all_rows_come_back_after_all_tables_were_truncated(database: Database, way: Way) -> None:
    for schema in ("keys", "types", "obstacles", "names"):
        SCHEMAS[schema](database)
    cleaner, baseline = captured(database, way)
    with cleaner:
        for _ in range(2):
            names = ", ".join(name for name in baseline[0] if name not in ("public.per_day",
                              "public.all_days"))  # fmt: skip
            database.execute(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
            cleaner.clean()
            assert state(database) == baseline


def test_what_is_kept_as_text_is_read_alike_whatever_the_session_prefers(
    database: Database,
) -> None:
    SCHEMAS["types"](database)
    baseline = state(database)
    styles = [
        "-c datestyle=SQL,DMY -c intervalstyle=sql_standard -c extra_float_digits=0",
        "-c datestyle=German -c intervalstyle=postgres_verbose -c timezone=Asia/Tokyo",
        "-c datestyle=ISO,MDY -c intervalstyle=iso_8601 -c bytea_output=escape",
    ]
    for mine, other in zip(styles, [*styles[1:], styles[0]], strict=True):
        with (
            Cleaner(database.url.update_query_dict({"options": mine})) as capturer,
            Cleaner(database.url.update_query_dict({"options": other})) as cleaner,
        ):
            capturer.capture()
            churn(database.session, 1, add=False)
            cleaner.clean()
            assert state(database) == baseline
