"""What a schema consists of, in words, to say what has changed."""

from __future__ import annotations

from cleaner.dialects.postgresql.discovery import BASELINE

_OURS = f"(n.nspname ~ '^pg_' OR n.nspname IN ('information_schema', '{BASELINE}'))"

# One line for each object, without its oid: what is made anew in the same way has not changed.
DESCRIPTION = f"""WITH spaces AS (
    SELECT n.oid, n.nspname FROM pg_catalog.pg_namespace n WHERE NOT {_OURS}
), relations AS (
    SELECT c.*, s.nspname, pg_catalog.format('%I.%I', s.nspname, c.relname) AS name
      FROM pg_catalog.pg_class c JOIN spaces s ON s.oid = c.relnamespace
     WHERE c.relpersistence <> 't'
)
SELECT pg_catalog.format('schema %I', nspname) FROM spaces
UNION ALL SELECT CASE relkind WHEN 'v' THEN 'view ' WHEN 'm' THEN 'materialized view '
        WHEN 'S' THEN 'sequence ' WHEN 'f' THEN 'foreign table ' ELSE 'table ' END || name
        || CASE WHEN relkind IN ('v', 'm') THEN ': ' || pg_catalog.pg_get_viewdef(oid) ELSE '' END
    FROM relations WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
UNION ALL SELECT pg_catalog.format('%s: owner %I', name, pg_catalog.pg_get_userbyid(relowner))
        || CASE WHEN relpersistence = 'u' THEN ', unlogged' ELSE '' END
        || CASE WHEN relrowsecurity THEN ', row level security' ELSE '' END
        || CASE WHEN relforcerowsecurity THEN ' also for its owner' ELSE '' END
        || coalesce(', with ' || pg_catalog.array_to_string(reloptions, ' '), '')
        || coalesce(', granted ' || pg_catalog.array_to_string(relacl, ' '), '')
    FROM relations WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
UNION ALL SELECT pg_catalog.format('%s is of %s', r.name, i.inhparent::pg_catalog.regclass)
        || coalesce(' ' || pg_catalog.pg_get_expr(r.relpartbound, r.oid), '')
    FROM relations r JOIN pg_catalog.pg_inherits i ON i.inhrelid = r.oid WHERE r.relkind <> 'i'
UNION ALL SELECT pg_catalog.format('policy %I on %s for %s to %s', p.polname, r.name, p.polcmd,
        ARRAY(SELECT pg_catalog.pg_get_userbyid(u) FROM unnest(p.polroles) u))
        || coalesce(' using ' || pg_catalog.pg_get_expr(p.polqual, p.polrelid), '')
        || coalesce(' with check ' || pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid), '')
        || CASE WHEN p.polpermissive THEN '' ELSE ', restrictive' END
    FROM relations r JOIN pg_catalog.pg_policy p ON p.polrelid = r.oid
UNION ALL SELECT pg_catalog.format('%s counts from %s by %s between %s and %s', r.name, q.seqstart,
        q.seqincrement, q.seqmin, q.seqmax)
        || CASE WHEN q.seqcycle THEN ', round and round' ELSE '' END
        || CASE WHEN q.seqcache > 1 THEN ', cache ' || q.seqcache ELSE '' END
    FROM relations r JOIN pg_catalog.pg_sequence q ON q.seqrelid = r.oid
UNION ALL SELECT pg_catalog.format('column %s.%I %s', r.name, a.attname,
        pg_catalog.format_type(a.atttypid, a.atttypmod))
        || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
        || coalesce(' DEFAULT ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid), '')
    FROM relations r JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
   WHERE r.relkind IN ('r', 'p', 'f') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL SELECT pg_catalog.format('constraint %I on %s: %s', k.conname, r.name,
        pg_catalog.pg_get_constraintdef(k.oid))
    FROM relations r JOIN pg_catalog.pg_constraint k ON k.conrelid = r.oid
   WHERE k.contype <> 'n'
UNION ALL SELECT pg_catalog.pg_get_indexdef(i.indexrelid)
    FROM relations r JOIN pg_catalog.pg_index i ON i.indrelid = r.oid
UNION ALL SELECT pg_catalog.pg_get_triggerdef(t.oid) || CASE t.tgenabled WHEN 'O' THEN ''
        ELSE ' [' || t.tgenabled::text || ']' END
    FROM relations r JOIN pg_catalog.pg_trigger t ON t.tgrelid = r.oid AND NOT t.tgisinternal
UNION ALL SELECT pg_catalog.pg_get_ruledef(w.oid) || CASE w.ev_enabled WHEN 'O' THEN ''
        ELSE ' [' || w.ev_enabled::text || ']' END
    FROM relations r JOIN pg_catalog.pg_rewrite w ON w.ev_class = r.oid
   WHERE r.relkind NOT IN ('v', 'm')
UNION ALL SELECT pg_catalog.format('%s %I.%I(%s) %s',
        CASE p.prokind WHEN 'p' THEN 'procedure' ELSE 'function' END, s.nspname, p.proname,
        pg_catalog.pg_get_function_identity_arguments(p.oid), pg_catalog.md5(
            pg_catalog.concat_ws(' ', p.prosrc, p.proowner, p.prolang, p.prorettype, p.proretset,
                p.provolatile, p.proparallel, p.proisstrict, p.prosecdef, p.proleakproof, p.procost,
                p.prorows, p.proconfig, p.proacl, p.probin)))
    FROM pg_catalog.pg_proc p JOIN spaces s ON s.oid = p.pronamespace
UNION ALL SELECT pg_catalog.format('type %I.%I', s.nspname, t.typname)
        || coalesce((SELECT ': ' || string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder)
                       FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid), '')
        || CASE t.typtype WHEN 'd' THEN ': ' || pg_catalog.format_type(t.typbasetype, t.typtypmod)
            || coalesce(' DEFAULT ' || t.typdefault, '')
            || CASE WHEN t.typnotnull THEN ' NOT NULL' ELSE '' END ELSE '' END
    FROM pg_catalog.pg_type t JOIN spaces s ON s.oid = t.typnamespace
   WHERE t.typrelid = 0 AND t.typelem = 0
UNION ALL SELECT pg_catalog.format('constraint %I on domain %I.%I: %s', k.conname, s.nspname,
        t.typname, pg_catalog.pg_get_constraintdef(k.oid))
    FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_type t ON t.oid = k.contypid
    JOIN spaces s ON s.oid = t.typnamespace
   WHERE k.contype <> 'n'
UNION ALL SELECT pg_catalog.format('publication %I %s', pubname, pg_catalog.array_to_string(
        ARRAY[puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot], ' '))
    FROM pg_catalog.pg_publication
UNION ALL SELECT pg_catalog.format('publication %I of %s', p.pubname, r.name)
    FROM relations r JOIN pg_catalog.pg_publication_rel l ON l.prrelid = r.oid
    JOIN pg_catalog.pg_publication p ON p.oid = l.prpubid
UNION ALL SELECT pg_catalog.format('event trigger %I on %s: %s %s [%s]', evtname, evtevent,
        evtfoid::pg_catalog.regproc, evttags, evtenabled)
    FROM pg_catalog.pg_event_trigger
UNION ALL SELECT pg_catalog.format('extension %I %s', extname, extversion)
    FROM pg_catalog.pg_extension"""
