"""
What the fleet store says to PostgreSQL: its schema, by version, and every query by name. Nothing here runs anything.

All of it lives in the schema `useapi_voice`, one fleet a database; PgQueuer's own tables are beside ours. Times are the
database's: a duration crosses the wire, a moment does not, as the clocks of hosts differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

SCHEMA: Final = "useapi_voice"
CHANNEL: Final = "useapi_voice"
"""Our notifications: `o:ID` a job has ended, `c:ID` its owner wants it cancelled, `a:` accounts changed, `w:` work."""
TURNS_CHANNEL: Final = "useapi_voice_turns"
"""PgQueuer's."""
MIGRATION_LOCK: Final = 0x75735631
"""Of `pg_advisory_xact_lock`, so that one replica at a time looks after the schema."""
TURN_PREFIX: Final = "useapi_voice:"
"""Of PgQueuer's entrypoints, one an account; and of the deduplication keys of turns."""

# A job's row. `owner` is the replica that has claimed it, `seat` the place that it occupies from its claim until the
# remote is done with it, which may be after it has ended; the unique index on it is a second guard of the cap, beside
# PgQueuer's. `queue_deadline_at` is cleared when the job is sent first. `payload` is `codec`'s.
_TO_VERSION_1: Final = (
    """
    CREATE TABLE useapi_voice.settings (
        is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
        version integer NOT NULL,
        cap integer,
        accounts text[]
    )
    """,
    "CREATE SEQUENCE useapi_voice.job_numbers",
    """
    CREATE TABLE useapi_voice.jobs (
        seq bigint PRIMARY KEY,
        id text NOT NULL UNIQUE,
        key text UNIQUE,
        state text NOT NULL,
        priority integer NOT NULL,
        account text,
        pinned text,
        voice_name text NOT NULL,
        payload text NOT NULL,
        attempts integer NOT NULL,
        shas text[] NOT NULL,
        owner text,
        seat integer,
        cancelling text,
        queue_deadline_at timestamptz,
        deadline_at timestamptz,
        sent_at timestamptz,
        settled_at timestamptz,
        voice_id text
    )
    """,
    "CREATE UNIQUE INDEX jobs_seats ON useapi_voice.jobs (account, seat) WHERE seat IS NOT NULL",
    """
    CREATE INDEX jobs_waiting ON useapi_voice.jobs (pinned, priority DESC, seq)
    WHERE state = 'queued' AND owner IS NULL
    """,
    """
    CREATE INDEX jobs_deadlines ON useapi_voice.jobs (LEAST(queue_deadline_at, deadline_at))
    WHERE state = 'queued' AND owner IS NULL
    """,
    "CREATE INDEX jobs_claimed ON useapi_voice.jobs (owner) WHERE state = 'queued' AND owner IS NOT NULL",
    "CREATE INDEX jobs_unsettled ON useapi_voice.jobs (seq) WHERE settled_at IS NULL",
    "CREATE INDEX jobs_by_end ON useapi_voice.jobs (settled_at)",
    "CREATE INDEX jobs_ended ON useapi_voice.jobs (account) WHERE settled_at IS NOT NULL",
    "CREATE INDEX jobs_samples ON useapi_voice.jobs USING gin (shas) WHERE settled_at IS NULL",
    """
    CREATE TABLE useapi_voice.accounts (
        account text PRIMARY KEY,
        ordinal integer,
        limit_now integer,
        pause_until timestamptz NOT NULL DEFAULT 'epoch',
        closed_by text,
        look_again_at timestamptz,
        baseline text[]
    )
    """,
    """
    CREATE TABLE useapi_voice.uploads (
        account text NOT NULL,
        sha256 text NOT NULL,
        file_id text,
        uploader text,
        lease_until timestamptz,
        PRIMARY KEY (account, sha256)
    )
    """,
    """
    CREATE TABLE useapi_voice.samples (
        sha256 text PRIMARY KEY,
        content bytea NOT NULL,
        touched_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "ALTER TABLE useapi_voice.samples ALTER COLUMN content SET STORAGE EXTERNAL",
    """
    CREATE TABLE useapi_voice.replicas (
        id text PRIMARY KEY,
        host text NOT NULL,
        pid integer NOT NULL,
        works boolean NOT NULL,
        started_at timestamptz NOT NULL DEFAULT now(),
        seen_at timestamptz NOT NULL DEFAULT now()
    )
    """,
)
# Samples may be files of a directory that carries the fleet's mark; rows have no content then. Jobs that wait for an
# account have an index of their own, in which their order is that of the claims, and so have those that wait for any:
# `pinned IS NULL` orders no index. `lease_s` tells who looks at a fleet for how long a lost replica's seats are kept.
# A replica of version 1 may still be at work.
_TO_VERSION_2: Final = (
    "ALTER TABLE useapi_voice.settings ADD COLUMN mark text NOT NULL DEFAULT gen_random_uuid()::text",
    "ALTER TABLE useapi_voice.settings ADD COLUMN samples_in text",
    "ALTER TABLE useapi_voice.settings ADD COLUMN tidied_at timestamptz NOT NULL DEFAULT 'epoch'",
    "UPDATE useapi_voice.settings SET samples_in = 'database' WHERE cap IS NOT NULL",
    "ALTER TABLE useapi_voice.samples ALTER COLUMN content DROP NOT NULL",
    "ALTER TABLE useapi_voice.samples ADD COLUMN size_bytes bigint",
    "UPDATE useapi_voice.samples SET size_bytes = octet_length(content)",
    "ALTER TABLE useapi_voice.jobs ADD COLUMN claimed_at timestamptz",
    "DROP INDEX useapi_voice.jobs_waiting",
    """
    CREATE INDEX jobs_pinned ON useapi_voice.jobs (pinned, priority DESC, seq)
    WHERE state = 'queued' AND owner IS NULL AND pinned IS NOT NULL
    """,
    """
    CREATE INDEX jobs_pooled ON useapi_voice.jobs (priority DESC, seq)
    WHERE state = 'queued' AND owner IS NULL AND pinned IS NULL
    """,
    """
    CREATE INDEX jobs_cancelling ON useapi_voice.jobs (owner)
    WHERE cancelling IS NOT NULL AND settled_at IS NULL
    """,
    "CREATE INDEX jobs_in_progress ON useapi_voice.jobs (account) WHERE state IN ('sent', 'in_doubt')",
    "ALTER TABLE useapi_voice.replicas ADD COLUMN lease_s double precision",
)
MIGRATIONS: Final[tuple[Sequence[str], ...]] = (_TO_VERSION_1, _TO_VERSION_2)
"""What leads from each version of the schema to the next. Only ever added to."""

# ruff: noqa: S608 - all that is put into a query here is a name of our own

HAS_SCHEMA: Final = "SELECT to_regclass('useapi_voice.settings') IS NOT NULL"
VERSION: Final = "SELECT version FROM useapi_voice.settings"
SET_VERSION: Final = """
    INSERT INTO useapi_voice.settings (version) VALUES ($1)
    ON CONFLICT (is_only) DO UPDATE SET version = excluded.version
"""

# --- jobs ------------------------------------------------------------------------------------------------------------

COLUMNS: Final = "id, key, state, priority, seq, account, pinned, voice_name, payload, sent_at, settled_at, voice_id"
"""In the order of `codec.Row`."""
_EXTRA: Final = f"""
    {COLUMNS}, cancelling,
    extract(epoch FROM now() - sent_at)::float8 AS sent_ago_s,
    extract(epoch FROM queue_deadline_at - now())::float8 AS queue_s,
    extract(epoch FROM deadline_at - now())::float8 AS deadline_s
"""
"""What a worker needs of a job beside its row, as durations."""

NUMBERS: Final = "SELECT nextval('useapi_voice.job_numbers') FROM generate_series(1, $1)"
ADVANCE_NUMBERS: Final = """
    SELECT setval('useapi_voice.job_numbers', GREATEST($1::bigint, (SELECT last_value FROM useapi_voice.job_numbers)))
"""
LAST_NUMBER: Final = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM useapi_voice.job_numbers"
ADD: Final = """
    INSERT INTO useapi_voice.jobs
        (id, key, state, priority, seq, account, pinned, voice_name, payload, attempts, shas,
         queue_deadline_at, deadline_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11,
        now() + make_interval(secs => $12), now() + make_interval(secs => $13))
"""
# Locks the rows, in one order, so that no sweep drops them between this and the commit of the jobs that need them.
TOUCH_SAMPLES: Final = """
    WITH held AS (
        SELECT sha256 FROM useapi_voice.samples WHERE sha256 = ANY($1) ORDER BY sha256 FOR UPDATE
    )
    UPDATE useapi_voice.samples SET touched_at = clock_timestamp() FROM held WHERE samples.sha256 = held.sha256
    RETURNING samples.sha256
"""
# Jobs whose caller went away while they were being added; one that somebody has claimed meanwhile is cancelled.
TAKE_BACK: Final = "DELETE FROM useapi_voice.jobs WHERE id = ANY($1) AND state = 'queued' AND owner IS NULL"
ASK_TO_CANCEL: Final = f"""
    WITH asked AS (
        UPDATE useapi_voice.jobs SET cancelling = $2 WHERE id = ANY($1) AND settled_at IS NULL RETURNING id
    )
    SELECT count(pg_notify('{CHANNEL}', 'c:' || id)) FROM asked
"""
# Of the fence: nothing is written for a job that another replica has taken over, and the request does not leave.
SENT: Final = """
    UPDATE useapi_voice.jobs
    SET state = $3, account = $4, payload = $5, attempts = $6, sent_at = now(), queue_deadline_at = NULL
    WHERE id = $1 AND owner IS NOT DISTINCT FROM $2 AND settled_at IS NULL
    RETURNING true
"""
CHANGED: Final = """
    UPDATE useapi_voice.jobs SET state = $3, account = $4, payload = $5, attempts = $6
    WHERE id = $1 AND owner IS NOT DISTINCT FROM $2
"""
# The outcome. One who was thought dead may still bring the voice of the attempt that is in doubt: it is the truth.
SETTLED: Final = f"""
    WITH ended AS (
        UPDATE useapi_voice.jobs
        SET state = $3, account = $4, payload = $5, attempts = $6, voice_id = $7, settled_at = now(),
            seat = CASE WHEN $8 THEN NULL ELSE seat END, owner = CASE WHEN $8 THEN NULL ELSE owner END
        WHERE id = $1 AND settled_at IS NULL AND (
            owner IS NOT DISTINCT FROM $2
            OR ($7::text IS NOT NULL AND state IN ('sent', 'in_doubt') AND attempts = $6)
        )
        RETURNING id
    )
    SELECT count(pg_notify('{CHANNEL}', 'o:' || id)) FROM ended
"""
# Back among the waiting, in its old order, and nobody's.
HAND_BACK: Final = """
    UPDATE useapi_voice.jobs
    SET state = 'queued', account = pinned, payload = $3, attempts = $4, owner = NULL, seat = NULL, sent_at = NULL
    WHERE id = $1 AND owner = $2 AND settled_at IS NULL
"""
FREE_SEAT: Final = "UPDATE useapi_voice.jobs SET seat = NULL, owner = NULL WHERE id = $1 AND owner = $2"
BY_KEY: Final = f"SELECT {COLUMNS} FROM useapi_voice.jobs WHERE key = $1"
UNSETTLED: Final = f"SELECT {COLUMNS} FROM useapi_voice.jobs WHERE settled_at IS NULL ORDER BY seq"
PAGE: Final = f"SELECT {COLUMNS} FROM useapi_voice.jobs WHERE seq > $1 ORDER BY seq LIMIT $2"
PAGE_OF_STATE: Final = f"SELECT {COLUMNS} FROM useapi_voice.jobs WHERE seq > $1 AND state = $3 ORDER BY seq LIMIT $2"
FORGET: Final = "DELETE FROM useapi_voice.jobs WHERE id = $1 AND settled_at IS NOT NULL AND seat IS NULL RETURNING true"
ENDED: Final = f"SELECT {COLUMNS} FROM useapi_voice.jobs WHERE id = ANY($1) AND settled_at IS NOT NULL"
ENDED_SINCE: Final = """
    SELECT id FROM useapi_voice.jobs WHERE settled_at > now() - make_interval(secs => $1)
"""
GONE: Final = """
    SELECT wanted FROM unnest($1::text[]) wanted WHERE NOT EXISTS (SELECT FROM useapi_voice.jobs WHERE id = wanted)
"""
CANCELLING: Final = """
    SELECT id, cancelling FROM useapi_voice.jobs WHERE owner = $1 AND cancelling IS NOT NULL AND settled_at IS NULL
"""

# --- claims ----------------------------------------------------------------------------------------------------------

# A lower cap counts from the moment it is set, also for replicas that were started with the old one.
_GATE: Final = """
    SELECT account, ordinal IS NOT NULL AS serves_pool, closed_by IS NOT NULL AS is_closed,
        LEAST(limit_now, (SELECT cap FROM useapi_voice.settings)) AS limit_now,
        extract(epoch FROM pause_until - now())::float8 AS wait_s
    FROM useapi_voice.accounts
"""
# Who claims for an account holds its row, so that the look at its names and places and the claim are one step. With
# the nameless account, which may be any of the others, their rows go together, in one order.
LOCK_GATE: Final = f"{_GATE} WHERE account IN ($1, '') ORDER BY account FOR UPDATE"
LOCK_ALL_GATES: Final = f"{_GATE} ORDER BY account FOR UPDATE"
OCCUPIED: Final = """
    SELECT account, count(*) FROM useapi_voice.jobs WHERE account = ANY($1) AND seat IS NOT NULL GROUP BY account
"""
ON_SEAT: Final = f"SELECT owner, {_EXTRA} FROM useapi_voice.jobs WHERE account = $1 AND seat = $2"
# What lies on another seat that no turn holds: its owner left in order, and the next turn need not be of that seat.
ORPHAN: Final = f"""
    SELECT owner, {_EXTRA} FROM useapi_voice.jobs
    WHERE account = $1 AND seat IS NOT NULL AND seat <> $2 AND NOT id = ANY($3) AND NOT EXISTS (
        SELECT FROM useapi_voice.pgqueuer turn
        WHERE turn.entrypoint = '{TURN_PREFIX}' || $1 AND turn.status = 'picked' AND turn.slot = jobs.seat
    )
    ORDER BY seat LIMIT 1
"""
CLEAR_SEAT: Final = "UPDATE useapi_voice.jobs SET seat = NULL, owner = NULL WHERE id = $1"
RELEASE: Final = "UPDATE useapi_voice.jobs SET seat = NULL, owner = NULL, account = pinned WHERE id = $1"
TAKE_OVER: Final = "UPDATE useapi_voice.jobs SET owner = $2, seat = $3 WHERE id = $1"


# Said to the planner, which may know nothing of the tables yet: an account has few seats, so there is little to see.
# It is not told that names are compared: where it knows that all jobs have one name, it would rather sort them all.
_MOST_SEATS: Final = 8


def _waiting(where: str, account: str) -> str:
    """The most urgent eligible job; never one whose name is in progress on the account (rule 2 of the schedule)."""
    return f"""
        SELECT waiting.seq, waiting.priority FROM useapi_voice.jobs waiting
        WHERE waiting.state = 'queued' AND waiting.owner IS NULL AND {where}
        AND array_position(ARRAY(
            SELECT seated.voice_name FROM useapi_voice.jobs seated
            WHERE seated.account = {account} AND seated.seat IS NOT NULL LIMIT {_MOST_SEATS}
        ), waiting.voice_name) IS NULL
        ORDER BY waiting.priority DESC, waiting.seq
    """


CLAIM: Final = f"""
    UPDATE useapi_voice.jobs SET owner = $3, account = $1, seat = $2
    WHERE seq = (
        SELECT seq FROM (
            SELECT * FROM ({_waiting("waiting.pinned = $1", "$1")} LIMIT 1 FOR UPDATE SKIP LOCKED) own
            UNION ALL
            SELECT * FROM ({_waiting("waiting.pinned IS NULL AND $4", "$1")} LIMIT 1 FOR UPDATE SKIP LOCKED) pooled
        ) best
        ORDER BY priority DESC, seq LIMIT 1
    )
    RETURNING {_EXTRA}
"""
PEEK: Final = f"""
    SELECT {COLUMNS} FROM useapi_voice.jobs WHERE seq IN (
        SELECT seq FROM (
            SELECT * FROM ({_waiting("waiting.pinned = $1", "$1")} LIMIT $3) own
            UNION ALL
            SELECT * FROM ({_waiting("waiting.pinned IS NULL AND $2", "$1")} LIMIT $3) pooled
        ) best
        ORDER BY priority DESC, seq LIMIT $3
    )
    ORDER BY priority DESC, seq
"""
# Jobs that are to end without being sent: cancelled, out of time, or such that no account can serve them. Who asks to
# cancel again, because no answer came, may have claimed the job before.
CLAIM_TO_CANCEL: Final = f"""
    UPDATE useapi_voice.jobs SET owner = $2, claimed_at = now()
    WHERE id = $1 AND state = 'queued' AND (owner IS NULL OR ($3 AND owner = $2 AND seat IS NULL))
    RETURNING {_EXTRA}
"""
CLAIM_EXPIRED: Final = f"""
    UPDATE useapi_voice.jobs SET owner = $1, claimed_at = now() WHERE seq IN (
        SELECT seq FROM useapi_voice.jobs
        WHERE state = 'queued' AND owner IS NULL AND LEAST(queue_deadline_at, deadline_at) <= now()
        LIMIT $2 FOR UPDATE SKIP LOCKED
    )
    RETURNING {_EXTRA}
"""


def _blocked(where: str, most: str) -> str:
    return f"""
        UPDATE useapi_voice.jobs SET owner = $1, claimed_at = now() WHERE seq IN (
            SELECT seq FROM useapi_voice.jobs
            WHERE state = 'queued' AND owner IS NULL AND {where}
            ORDER BY priority DESC, seq LIMIT {most} FOR UPDATE SKIP LOCKED
        )
        RETURNING {_EXTRA}
    """


CLAIM_BLOCKED: Final = _blocked("pinned = $3", "$2")
CLAIM_BLOCKED_POOL: Final = _blocked("pinned IS NULL", "$2")

# --- turns -----------------------------------------------------------------------------------------------------------

# How many turns are missing, and their numbers: as many as the account's limit, where a job waits that it may serve,
# or where one occupies a place and nobody has the turn of it.
MISSING_TURNS: Final = f"""
    SELECT account, number FROM (
        SELECT known.account, number, known.room - known.turns AS missing,
            row_number() OVER (PARTITION BY known.account ORDER BY number) AS nth
        FROM (
            SELECT gate.account, gate.ordinal, LEAST(coalesce(gate.limit_now, $1), $1) AS room,
                (SELECT count(*) FROM useapi_voice.pgqueuer turn
                 WHERE turn.entrypoint = '{TURN_PREFIX}' || gate.account) AS turns,
                (SELECT count(*) FROM (
                    SELECT FROM useapi_voice.jobs WHERE account = gate.account AND seat IS NOT NULL LIMIT {_MOST_SEATS}
                 ) seats) AS seated,
                gate.closed_by IS NULL AND gate.pause_until <= now() AS is_open
            FROM useapi_voice.accounts gate
        ) known
        CROSS JOIN generate_series(0, $1 - 1) number
        WHERE NOT EXISTS (
            SELECT FROM useapi_voice.pgqueuer turn
            WHERE turn.dedupe_key = '{TURN_PREFIX}' || known.account || ':' || number
            AND turn.status IN ('queued', 'picked')
        )
        AND (
            known.seated > known.turns
            OR (known.is_open AND known.turns < known.room AND (
                EXISTS (SELECT FROM ({_waiting("waiting.pinned = known.account", "known.account")} LIMIT 1) own)
                OR (known.ordinal IS NOT NULL
                    AND EXISTS (SELECT FROM ({_waiting("waiting.pinned IS NULL", "known.account")} LIMIT 1) pooled))
            ))
        )
    ) found
    WHERE nth <= GREATEST(missing, 1)
    ORDER BY nth, random()
    LIMIT $2
"""
# A seat is kept for its turn's lease since the last heartbeat of its holder; one without a turn, until the next turn.
HELD_SEATS: Final = f"""
    SELECT held.account, held.seat, held.owner, held.id, held.voice_name, held.state,
        extract(epoch FROM now() - held.sent_at)::float8 AS sent_ago_s,
        GREATEST(0, holder.lease_s - extract(epoch FROM now() - turn.heartbeat))::float8 AS kept_s
    FROM useapi_voice.jobs held
    LEFT JOIN useapi_voice.replicas holder ON holder.id = held.owner
    LEFT JOIN useapi_voice.pgqueuer turn
        ON turn.entrypoint = '{TURN_PREFIX}' || held.account AND turn.status = 'picked' AND turn.slot = held.seat
    WHERE held.seat IS NOT NULL ORDER BY held.account, held.seat
"""

# --- accounts --------------------------------------------------------------------------------------------------------

READ_SETTINGS: Final = "SELECT cap, accounts, samples_in, mark FROM useapi_voice.settings"
SETTINGS: Final = f"{READ_SETTINGS} FOR UPDATE"
SET_SAMPLES_IN: Final = "UPDATE useapi_voice.settings SET samples_in = $1"
SET_CAP: Final = "UPDATE useapi_voice.settings SET cap = $1"
SET_ACCOUNTS: Final = "UPDATE useapi_voice.settings SET accounts = $1"
LEAVE_POOL: Final = "UPDATE useapi_voice.accounts SET ordinal = NULL"
JOIN_POOL: Final = """
    INSERT INTO useapi_voice.accounts (account, ordinal) VALUES ($1, $2)
    ON CONFLICT (account) DO UPDATE SET ordinal = excluded.ordinal
"""
KNOW_ACCOUNT: Final = "INSERT INTO useapi_voice.accounts (account) VALUES ($1) ON CONFLICT (account) DO NOTHING"
ACCOUNTS: Final = """
    SELECT account, ordinal, limit_now, closed_by, extract(epoch FROM pause_until - now())::float8 AS wait_s,
        extract(epoch FROM look_again_at - now())::float8 AS look_s
    FROM useapi_voice.accounts ORDER BY ordinal, account
"""
_TELL_ACCOUNTS: Final = f"RETURNING pg_notify('{CHANNEL}', 'a:')"
PAUSE: Final = f"""
    INSERT INTO useapi_voice.accounts (account, pause_until) VALUES ($1, $2)
    ON CONFLICT (account) DO UPDATE SET pause_until = excluded.pause_until {_TELL_ACCOUNTS}
"""
PAUSES: Final = "SELECT account, pause_until FROM useapi_voice.accounts WHERE pause_until > now()"
LIMITED: Final = f"""
    INSERT INTO useapi_voice.accounts (account, limit_now) VALUES ($1, $2)
    ON CONFLICT (account) DO UPDATE SET limit_now = excluded.limit_now {_TELL_ACCOUNTS}
"""
CLOSED: Final = f"""
    INSERT INTO useapi_voice.accounts (account, closed_by, look_again_at)
    VALUES ($1, $2, now() + make_interval(secs => $3))
    ON CONFLICT (account) DO UPDATE SET closed_by = excluded.closed_by, look_again_at = excluded.look_again_at
    {_TELL_ACCOUNTS}
"""
OPENED: Final = f"""
    UPDATE useapi_voice.accounts SET closed_by = NULL, look_again_at = NULL
    WHERE account = $1 AND closed_by IS NOT NULL {_TELL_ACCOUNTS}
"""
# Not while a clone of the account is in progress or in doubt: the list may hold its voice, which would be overlooked.
KEEP_BASELINE: Final = """
    INSERT INTO useapi_voice.accounts (account, baseline)
    SELECT $1, $2
    WHERE NOT EXISTS (SELECT FROM useapi_voice.jobs WHERE account = $1 AND state IN ('sent', 'in_doubt'))
    AND NOT EXISTS (SELECT FROM useapi_voice.jobs WHERE account = $1 AND seat IS NOT NULL AND sent_at IS NOT NULL)
    ON CONFLICT (account) DO UPDATE SET baseline = excluded.baseline
"""
BASELINE: Final = "SELECT baseline FROM useapi_voice.accounts WHERE account = $1"
TAKEN_VOICES: Final = """
    SELECT voice_id, CASE WHEN position('"surplus":[]' IN payload) = 0 THEN payload END AS payload
    FROM useapi_voice.jobs WHERE account = $1 AND settled_at IS NOT NULL
    AND (voice_id IS NOT NULL OR position('"surplus":[]' IN payload) = 0)
"""

# --- uploads ---------------------------------------------------------------------------------------------------------

FILE_ID: Final = "SELECT file_id FROM useapi_voice.uploads WHERE account = $1 AND sha256 = $2"
# Of those who want to upload one content to one account, one does; the others look again, or take over from the dead.
CLAIM_UPLOAD: Final = """
    INSERT INTO useapi_voice.uploads (account, sha256, uploader, lease_until)
    VALUES ($1, $2, $3, now() + make_interval(secs => $4))
    ON CONFLICT (account, sha256) DO UPDATE SET uploader = excluded.uploader, lease_until = excluded.lease_until
    WHERE uploads.file_id IS NULL AND (uploads.uploader = excluded.uploader OR uploads.lease_until < now())
    RETURNING true
"""
UPLOADED: Final = """
    INSERT INTO useapi_voice.uploads (account, sha256, file_id) VALUES ($1, $2, $3)
    ON CONFLICT (account, sha256) DO UPDATE SET file_id = excluded.file_id, uploader = NULL, lease_until = NULL
"""
UPLOAD_FAILED: Final = """
    DELETE FROM useapi_voice.uploads WHERE account = $1 AND sha256 = $2 AND file_id IS NULL AND uploader = $3
"""
DROP_UPLOADING: Final = "DELETE FROM useapi_voice.uploads WHERE uploader = $1 AND file_id IS NULL"
FORGET_UPLOADS: Final = "DELETE FROM useapi_voice.uploads WHERE account = $1 AND file_id = ANY($2)"

# --- samples ---------------------------------------------------------------------------------------------------------

WHICH_SAMPLES: Final = "SELECT sha256 FROM useapi_voice.samples WHERE sha256 = ANY($1)"
ADD_SAMPLE: Final = """
    INSERT INTO useapi_voice.samples (sha256, size_bytes, content) VALUES ($1, $2, $3)
    ON CONFLICT (sha256) DO UPDATE SET touched_at = clock_timestamp()
"""
SAMPLE: Final = "SELECT content FROM useapi_voice.samples WHERE sha256 = $1"
_IS_NEEDED: Final = """
    EXISTS (SELECT FROM useapi_voice.jobs WHERE settled_at IS NULL AND shas @> ARRAY[samples.sha256])
"""
OLD_SAMPLES: Final = f"""
    SELECT sha256 FROM useapi_voice.samples
    WHERE touched_at < now() - make_interval(secs => $1) AND NOT {_IS_NEEDED}
    ORDER BY sha256 LIMIT 5000 FOR UPDATE SKIP LOCKED
"""
DROP_SAMPLES: Final = f"""
    DELETE FROM useapi_voice.samples WHERE sha256 = ANY($1) AND NOT {_IS_NEEDED} RETURNING sha256
"""
# Files without a row get one for as long as they are dropped, so that nobody adds a job with them meanwhile.
UNKNOWN_SAMPLES: Final = """
    SELECT name FROM unnest($1::text[]) name
    WHERE NOT EXISTS (SELECT FROM useapi_voice.samples WHERE sha256 = name) ORDER BY name LIMIT 1000
"""
HOLD_UNKNOWN: Final = """
    INSERT INTO useapi_voice.samples (sha256) SELECT name FROM unnest($1::text[]) name ORDER BY name
    ON CONFLICT (sha256) DO NOTHING RETURNING sha256
"""
LET_GO_UNKNOWN: Final = "DELETE FROM useapi_voice.samples WHERE sha256 = ANY($1)"
NEED_SAMPLES: Final = "SELECT count(*) FROM useapi_voice.jobs WHERE settled_at IS NULL AND shas <> '{}'"
FORGET_SAMPLES: Final = "DELETE FROM useapi_voice.samples"

# --- replicas, and what is swept -------------------------------------------------------------------------------------

SEEN: Final = """
    INSERT INTO useapi_voice.replicas (id, host, pid, works, lease_s) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (id) DO UPDATE SET seen_at = now()
"""
LEFT: Final = "DELETE FROM useapi_voice.replicas WHERE id = $1"
# One is lost that has missed a few polls; leases that are shorter than any in earnest are those of tests.
REPLICAS: Final = """
    SELECT id, host, pid, works, extract(epoch FROM now() - seen_at)::float8 AS seen_ago_s,
        extract(epoch FROM now() - started_at)::float8 AS up_s,
        seen_at < now() - make_interval(secs => LEAST(10, lease_s / 2)) AS is_lost,
        (SELECT count(*) FROM useapi_voice.jobs WHERE owner = replicas.id AND seat IS NOT NULL) AS seats
    FROM useapi_voice.replicas ORDER BY started_at
"""
DEPTH: Final = "SELECT state, pinned, count(*) FROM useapi_voice.jobs GROUP BY state, pinned ORDER BY state, pinned"
# One replica at a time tidies up for all.
WANTS_TIDYING: Final = """
    UPDATE useapi_voice.settings SET tidied_at = now() WHERE tidied_at < now() - make_interval(secs => $1)
    RETURNING true
"""
# Jobs that this replica claimed in order to end them, and whose claim it never heard of.
LET_GO_MINE: Final = """
    UPDATE useapi_voice.jobs SET owner = NULL
    WHERE owner = $1 AND state = 'queued' AND seat IS NULL AND claimed_at < now() - make_interval(secs => $2)
"""
# Jobs that somebody claimed in order to end them, and died.
LET_GO: Final = """
    UPDATE useapi_voice.jobs SET owner = NULL
    WHERE state = 'queued' AND owner IS NOT NULL AND seat IS NULL AND NOT EXISTS (
        SELECT FROM useapi_voice.replicas WHERE id = owner AND seen_at > now() - interval '1 minute'
    )
"""
DROP_OLD: Final = """
    DELETE FROM useapi_voice.jobs WHERE seq IN (
        SELECT seq FROM useapi_voice.jobs
        WHERE settled_at < now() - make_interval(secs => $1) AND seat IS NULL LIMIT 5000
    )
"""
DROP_REPLICAS: Final = "DELETE FROM useapi_voice.replicas WHERE seen_at < now() - interval '1 day'"
DROP_LOG: Final = "DELETE FROM useapi_voice.pgqueuer_log WHERE created < now() - interval '1 day'"
NOTIFY: Final = "SELECT pg_notify($1, $2)"
SESSION: Final = "SELECT pg_backend_pid()"
