-- Times are microseconds since 1970 (UTC), durations in the column's own unit, ids 16 bytes.
-- A state change is never in place for the partial indexes below: each holds only what is live.
-- The states are compared one by one, the usual first: IN (...) cost each write of a row 0.8 µs more.

CREATE TABLE piecework_schema (
    version INTEGER PRIMARY KEY,
    applied_at INTEGER NOT NULL
) STRICT;

CREATE TABLE piecework_job (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    kind TEXT NOT NULL,
    name TEXT,
    queue TEXT NOT NULL,
    state TEXT NOT NULL CHECK (
        state = 'available' OR state = 'running' OR state = 'completed' OR state = 'scheduled'
        OR state = 'blocked' OR state = 'failed' OR state = 'cancelled' OR state = 'expired'),
    priority INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0,
    max_attempts INTEGER NOT NULL,
    crashes INTEGER NOT NULL DEFAULT 0,
    max_crashes INTEGER NOT NULL,
    generation INTEGER NOT NULL DEFAULT 1,
    fence INTEGER NOT NULL DEFAULT 0,
    parked INTEGER NOT NULL DEFAULT 0,
    timeout REAL,
    node TEXT,
    ran_on TEXT,
    worker BLOB,
    unique_key TEXT,
    unique_scope TEXT,
    unique_until INTEGER,
    unique_held TEXT,
    serial_key TEXT,
    serial_held TEXT,
    parent BLOB,
    schedule TEXT,
    tick INTEGER,
    count INTEGER,
    enqueued_at INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    expires_at INTEGER,
    cancel_requested INTEGER,
    prune_at INTEGER,
    result_ttl INTEGER,
    args TEXT NOT NULL,
    metadata TEXT,
    progress TEXT,
    reason TEXT,
    error TEXT,
    partial TEXT,
    result TEXT
) STRICT;

CREATE INDEX piecework_job_available ON piecework_job (priority DESC, due_at, id)
    WHERE state = 'available' AND node IS NULL;
CREATE INDEX piecework_job_lane ON piecework_job (queue, priority DESC, due_at, id)
    WHERE state = 'available' AND node IS NULL;
CREATE INDEX piecework_job_bound ON piecework_job (node, priority DESC, due_at, id)
    WHERE state = 'available' AND node IS NOT NULL;
CREATE INDEX piecework_job_running ON piecework_job (worker, queue)
    WHERE state = 'running';
CREATE INDEX piecework_job_due ON piecework_job (due_at)
    WHERE state = 'scheduled';
CREATE INDEX piecework_job_expiry ON piecework_job (expires_at)
    WHERE expires_at IS NOT NULL AND state IN ('scheduled', 'blocked', 'available');
CREATE INDEX piecework_job_blocked ON piecework_job (serial_key, priority DESC, due_at, id)
    WHERE state = 'blocked';
CREATE UNIQUE INDEX piecework_job_turn ON piecework_job (serial_held)
    WHERE serial_held IS NOT NULL;
CREATE UNIQUE INDEX piecework_job_unique ON piecework_job (kind, unique_held)
    WHERE unique_held IS NOT NULL;
CREATE INDEX piecework_job_finished ON piecework_job (state, finished_at)
    WHERE finished_at IS NOT NULL;
CREATE INDEX piecework_job_prune ON piecework_job (prune_at)
    WHERE prune_at IS NOT NULL;
CREATE INDEX piecework_job_parent ON piecework_job (parent)
    WHERE parent IS NOT NULL;

CREATE TABLE piecework_metadata (
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    job_id BLOB NOT NULL,
    PRIMARY KEY (key, value, job_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX piecework_metadata_job ON piecework_metadata (job_id);

CREATE TABLE piecework_attempt (
    job_id BLOB NOT NULL,
    fence INTEGER NOT NULL,
    number INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at INTEGER,
    outcome TEXT,
    error TEXT,
    traceback TEXT,
    worker BLOB,
    node TEXT,
    PRIMARY KEY (job_id, fence)
) STRICT, WITHOUT ROWID;

CREATE TABLE piecework_log (
    seq INTEGER PRIMARY KEY,
    job_id BLOB NOT NULL,
    fence INTEGER NOT NULL,
    at INTEGER NOT NULL,
    level TEXT NOT NULL,
    logger TEXT NOT NULL,
    message TEXT NOT NULL
) STRICT;
CREATE INDEX piecework_log_job ON piecework_log (job_id, seq);

CREATE TABLE piecework_worker (
    id BLOB NOT NULL PRIMARY KEY,
    node TEXT NOT NULL,
    pid INTEGER NOT NULL,
    queues TEXT,
    slots INTEGER NOT NULL,
    running INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    beat_at INTEGER NOT NULL,
    lease INTEGER NOT NULL,
    stopping INTEGER NOT NULL,
    lost INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE piecework_queue (
    name TEXT NOT NULL PRIMARY KEY,
    paused INTEGER NOT NULL DEFAULT 0,
    running_limit INTEGER,
    rate_n INTEGER,
    rate_window REAL,
    tokens REAL NOT NULL DEFAULT 0,
    refilled_at INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
