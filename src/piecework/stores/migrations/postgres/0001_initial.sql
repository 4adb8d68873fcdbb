-- "piecework." stands for the namespace: each has a schema of its own.
-- Times are the server's, durations are microseconds, every number has 64 bits.
-- A state change is never in place for the partial indexes below: each holds only what is live.

CREATE TABLE piecework.piecework_schema (
    version bigint PRIMARY KEY,
    works_from bigint NOT NULL, -- the oldest release's schema whose workers still run on this one
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE piecework.piecework_job (
    id uuid NOT NULL PRIMARY KEY,
    priority bigint NOT NULL DEFAULT 0,
    attempt bigint NOT NULL DEFAULT 0,
    max_attempts bigint NOT NULL,
    crashes bigint NOT NULL DEFAULT 0,
    max_crashes bigint NOT NULL,
    generation bigint NOT NULL DEFAULT 1,
    fence bigint NOT NULL DEFAULT 0,
    parked bigint NOT NULL DEFAULT 0,
    enqueued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    finished_at timestamptz,
    expires_at timestamptz,
    cancel_requested timestamptz,
    prune_at timestamptz,
    unique_until timestamptz,
    tick timestamptz,
    worker uuid,
    parent uuid,
    timeout double precision,
    count bigint,
    result_ttl bigint,
    state text NOT NULL DEFAULT 'available' CHECK (state IN (
        'scheduled', 'blocked', 'available', 'running',
        'completed', 'failed', 'cancelled', 'expired')),
    kind text NOT NULL,
    queue text NOT NULL,
    name text,
    node text,
    ran_on text,
    unique_key text,
    unique_scope text,
    unique_held text,
    serial_key text,
    serial_held text,
    schedule text,
    args text NOT NULL,
    metadata text,
    progress text,
    reason text,
    error text,
    partial text,
    result text
) WITH (
    fillfactor = 85, -- progress is written in place
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_analyze_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX piecework_job_available ON piecework.piecework_job (priority DESC, due_at, id)
    WHERE state = 'available' AND node IS NULL;
CREATE INDEX piecework_job_lane ON piecework.piecework_job (queue, priority DESC, due_at, id)
    WHERE state = 'available' AND node IS NULL;
CREATE INDEX piecework_job_bound ON piecework.piecework_job (node, priority DESC, due_at, id)
    WHERE state = 'available' AND node IS NOT NULL;
CREATE INDEX piecework_job_running ON piecework.piecework_job (worker, queue)
    WHERE state = 'running';
CREATE INDEX piecework_job_due ON piecework.piecework_job (due_at)
    WHERE state = 'scheduled';
CREATE INDEX piecework_job_expiry ON piecework.piecework_job (expires_at)
    WHERE expires_at IS NOT NULL AND state IN ('scheduled', 'blocked', 'available');
CREATE INDEX piecework_job_blocked
    ON piecework.piecework_job (serial_key, priority DESC, due_at, id)
    WHERE state = 'blocked';
CREATE UNIQUE INDEX piecework_job_turn ON piecework.piecework_job (serial_held)
    WHERE serial_held IS NOT NULL;
CREATE UNIQUE INDEX piecework_job_unique ON piecework.piecework_job (kind, unique_held)
    WHERE unique_held IS NOT NULL;
CREATE INDEX piecework_job_finished ON piecework.piecework_job (state, finished_at)
    WHERE finished_at IS NOT NULL;
CREATE INDEX piecework_job_prune ON piecework.piecework_job (prune_at)
    WHERE prune_at IS NOT NULL;
CREATE INDEX piecework_job_parent ON piecework.piecework_job (parent)
    WHERE parent IS NOT NULL;

CREATE TABLE piecework.piecework_metadata (
    key text NOT NULL,
    value text NOT NULL,
    job_id uuid NOT NULL
);
-- Keys and values may be longer than an index entry: they are looked up by hash, then compared.
CREATE INDEX piecework_metadata_value ON piecework.piecework_metadata
    (hashtextextended(key, 0), hashtextextended(value, 0), job_id);
CREATE INDEX piecework_metadata_job ON piecework.piecework_metadata (job_id);

CREATE TABLE piecework.piecework_attempt (
    job_id uuid NOT NULL,
    fence bigint NOT NULL,
    number bigint NOT NULL,
    generation bigint NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    worker uuid,
    outcome text,
    node text,
    error text,
    traceback text,
    PRIMARY KEY (job_id, fence)
);

CREATE TABLE piecework.piecework_log (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id uuid NOT NULL,
    fence bigint NOT NULL,
    at timestamptz NOT NULL,
    level text NOT NULL,
    logger text NOT NULL,
    message text NOT NULL
);
CREATE INDEX piecework_log_job ON piecework.piecework_log (job_id, seq);

CREATE TABLE piecework.piecework_worker (
    id uuid NOT NULL PRIMARY KEY,
    pid bigint NOT NULL,
    slots bigint NOT NULL,
    running bigint NOT NULL,
    started_at timestamptz NOT NULL,
    beat_at timestamptz NOT NULL,
    lease bigint NOT NULL,
    stopping boolean NOT NULL,
    lost boolean NOT NULL DEFAULT false,
    node text NOT NULL,
    queues text[]
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

CREATE TABLE piecework.piecework_queue (
    name text NOT NULL PRIMARY KEY,
    paused boolean NOT NULL DEFAULT false,
    running_limit bigint,
    rate_n bigint,
    rate_window double precision,
    tokens double precision NOT NULL DEFAULT 0,
    refilled_at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- Each of these keys that nobody holds has gone to its next blocked job, if there is one.
-- Every statement of a volatile function sees what was committed before it began.
CREATE FUNCTION piecework.piecework_promote(_keys text[]) RETURNS bigint
LANGUAGE plpgsql STRICT VOLATILE AS $body$
DECLARE
    _key text;
    _promoted bigint;
    _one bigint;
BEGIN
    WITH free AS MATERIALIZED (
        SELECT k.key FROM unnest(_keys) AS k (key)
        WHERE NOT EXISTS (
            SELECT FROM piecework.piecework_job h WHERE h.serial_held = k.key)
    ), next AS MATERIALIZED (
        SELECT b.id FROM free CROSS JOIN LATERAL (
            SELECT j.id FROM piecework.piecework_job j
            WHERE j.state = 'blocked' AND j.serial_key = free.key
            ORDER BY j.priority DESC, j.due_at, j.id LIMIT 1
            FOR UPDATE SKIP LOCKED) b
    )
    UPDATE piecework.piecework_job j SET state = 'available', serial_held = j.serial_key
    FROM next WHERE j.id = next.id;
    GET DIAGNOSTICS _promoted = ROW_COUNT;
    RETURN _promoted;
EXCEPTION WHEN unique_violation THEN
    -- Somebody took one of the turns meanwhile: that key is not ours to give.
    IF cardinality(_keys) = 1 THEN
        RETURN 0;
    END IF;
    _promoted := 0;
    FOREACH _key IN ARRAY _keys LOOP
        SELECT piecework.piecework_promote(ARRAY[_key]) INTO _one;
        _promoted := _promoted + _one;
    END LOOP;
    RETURN _promoted;
END $body$;

-- As above, but whoever is just ending a holder of a key is waited for, a moment at most. Called
-- after the commit of blocked jobs, which that end cannot have seen.
CREATE FUNCTION piecework.piecework_look_again(_keys text[]) RETURNS bigint
LANGUAGE plpgsql STRICT VOLATILE SET lock_timeout = '100ms' AS $body$
BEGIN
    PERFORM FROM piecework.piecework_job h WHERE h.serial_held = ANY (_keys)
    ORDER BY h.serial_held FOR SHARE;
    RETURN piecework.piecework_promote(_keys);
EXCEPTION WHEN lock_not_available THEN
    RETURN 0; -- staging will see to it
END $body$;

-- Claim where queues have limits or kinds have rooms: lock the limited queues, then count, then
-- choose, each with a look of its own. One statement would count what was true before the lock.
CREATE FUNCTION piecework.piecework_claim(
    _at timestamptz, _worker uuid, _node text, _free bigint, _ahead bigint,
    _queues text[], _kinds text[], _rooms bigint[], _passed_over bigint)
RETURNS TABLE (
    id uuid, fence bigint, kind text, args text, attempt bigint, max_attempts bigint,
    crashes bigint, max_crashes bigint, generation bigint, queue text, name text,
    timeout double precision, metadata text, schedule text, tick timestamptz, count bigint,
    parked bigint, result_ttl bigint, priority bigint, due_at timestamptz)
LANGUAGE plpgsql VOLATILE AS $body$
#variable_conflict use_column
DECLARE
    _now timestamptz;
    _want bigint := _free + _ahead;
    _reach bigint := _want * CASE WHEN _kinds IS NULL THEN 1 ELSE _passed_over END;
    _capped text[] := '{}'; -- queues with a room, and the rooms
    _caps bigint[] := '{}';
    _closed text[] := '{}';
    _rated text[] := '{}'; -- queues with a rate, their tokens now
    _tokens double precision[] := '{}';
    _lanes text[];
    _left bigint[];
    _space bigint[];
    _patience bigint;
    _chosen uuid[];
    _got uuid[];
    _cap bigint;
    _level double precision;
    _q record;
    _row record;
    _i int;
    _k int;
BEGIN
    IF EXISTS (SELECT FROM piecework.piecework_worker w WHERE w.id = _worker AND w.lost) THEN
        RETURN;
    END IF;

    -- Only queues with something to give are locked, always in the order of their names.
    FOR _q IN
        SELECT q.* FROM piecework.piecework_queue q
        WHERE (q.running_limit IS NOT NULL OR q.rate_n IS NOT NULL) AND NOT q.paused
        AND (_queues IS NULL OR q.name = ANY (_queues))
        AND (EXISTS (SELECT FROM piecework.piecework_job j
                     WHERE j.state = 'available' AND j.node IS NULL AND j.queue = q.name)
             OR EXISTS (SELECT FROM piecework.piecework_job j
                        WHERE j.state = 'available' AND j.node = _node AND j.queue = q.name))
        ORDER BY q.name FOR UPDATE OF q
    LOOP
        _now := coalesce(_at, clock_timestamp());
        _cap := NULL;
        IF _q.running_limit IS NOT NULL THEN
            SELECT _q.running_limit - count(*) INTO _cap FROM piecework.piecework_job j
            WHERE j.state = 'running' AND j.queue = _q.name;
        END IF;
        IF _q.rate_n IS NOT NULL THEN
            _level := least(_q.rate_n, _q.tokens
                + greatest(0, extract(epoch FROM _now - _q.refilled_at)::double precision)
                * _q.rate_n / _q.rate_window);
            _rated := _rated || _q.name;
            _tokens := _tokens || _level;
            _cap := least(_cap, floor(_level + 1e-9)::bigint);
        END IF;
        IF _q.paused THEN -- paused while we waited for its lock
            _cap := 0;
        END IF;
        IF _cap IS NOT NULL AND _cap > 0 THEN
            _capped := _capped || _q.name;
            _caps := _caps || _cap;
        END IF;
    END LOOP;
    SELECT coalesce(array_agg(q.name), '{}') INTO _closed FROM piecework.piecework_queue q
    WHERE (q.paused OR q.running_limit IS NOT NULL OR q.rate_n IS NOT NULL)
    AND q.name <> ALL (_capped);

    FOR _round IN 1..3 LOOP
        _now := coalesce(_at, clock_timestamp());
        IF _queues IS NOT NULL THEN
            SELECT array_agg(DISTINCT l.name) INTO _lanes FROM unnest(_queues) AS l (name)
            WHERE l.name <> ALL (_closed);
        ELSIF cardinality(_closed) + cardinality(_capped) > 0 THEN
            WITH RECURSIVE lane (name) AS (
                (SELECT j.queue FROM piecework.piecework_job j
                 WHERE j.state = 'available' AND j.node IS NULL ORDER BY j.queue LIMIT 1)
                UNION ALL
                SELECT (SELECT j.queue FROM piecework.piecework_job j
                        WHERE j.state = 'available' AND j.node IS NULL AND j.queue > lane.name
                        ORDER BY j.queue LIMIT 1)
                FROM lane WHERE lane.name IS NOT NULL)
            SELECT array_agg(l.name) INTO _lanes FROM lane l
            WHERE l.name IS NOT NULL AND l.name <> ALL (_closed);
        END IF;
        _left := _caps;
        _space := _rooms;
        _patience := _passed_over * _want;
        _chosen := '{}';

        FOR _row IN
            SELECT c.id, c.kind, c.queue, c.affordable FROM (
                (SELECT j.id, j.kind, j.queue, j.priority, j.due_at,
                        j.crashes = 0 AND j.max_attempts - j.attempt > 1 AS affordable
                 FROM piecework.piecework_job j
                 WHERE j.state = 'available' AND j.node IS NULL
                 AND (j.expires_at IS NULL OR j.expires_at > _now)
                 AND _queues IS NULL AND cardinality(_closed) + cardinality(_capped) = 0
                 ORDER BY j.priority DESC, j.due_at, j.id LIMIT _reach)
                UNION ALL
                SELECT top.* FROM unnest(_lanes) AS l (name) CROSS JOIN LATERAL (
                    SELECT j.id, j.kind, j.queue, j.priority, j.due_at,
                           j.crashes = 0 AND j.max_attempts - j.attempt > 1 AS affordable
                    FROM piecework.piecework_job j
                    WHERE j.state = 'available' AND j.node IS NULL AND j.queue = l.name
                    AND (j.expires_at IS NULL OR j.expires_at > _now)
                    ORDER BY j.priority DESC, j.due_at, j.id LIMIT _reach) top
                UNION ALL
                (SELECT j.id, j.kind, j.queue, j.priority, j.due_at,
                        j.crashes = 0 AND j.max_attempts - j.attempt > 1 AS affordable
                 FROM piecework.piecework_job j
                 WHERE j.state = 'available' AND j.node = _node
                 AND (_queues IS NULL OR j.queue = ANY (_queues)) AND j.queue <> ALL (_closed)
                 AND (j.expires_at IS NULL OR j.expires_at > _now)
                 ORDER BY j.priority DESC, j.due_at, j.id LIMIT _reach)) c
            ORDER BY c.priority DESC, c.due_at, c.id
        LOOP
            _i := array_position(_capped, _row.queue);
            CONTINUE WHEN _left[_i] <= 0;
            _k := array_position(_kinds, _row.kind);
            IF _space[_k] <= 0 OR (cardinality(_chosen) >= _free AND NOT _row.affordable) THEN
                _patience := _patience - 1;
                EXIT WHEN _patience <= 0;
                CONTINUE;
            END IF;
            IF _i IS NOT NULL THEN
                _left[_i] := _left[_i] - 1;
            END IF;
            IF _k IS NOT NULL THEN
                _space[_k] := _space[_k] - 1;
            END IF;
            _chosen := _chosen || _row.id;
            EXIT WHEN cardinality(_chosen) = _want;
        END LOOP;
        EXIT WHEN cardinality(_chosen) = 0;

        SELECT array_agg(mine.id) INTO _got FROM (
            SELECT j.id FROM piecework.piecework_job j
            WHERE j.id = ANY (_chosen) AND j.state = 'available'
            FOR UPDATE SKIP LOCKED) mine;
        EXIT WHEN _got IS NOT NULL; -- else others were quicker: look again
    END LOOP;
    IF _got IS NULL THEN
        RETURN;
    END IF;

    RETURN QUERY
        UPDATE piecework.piecework_job AS j
        SET state = 'running', fence = j.fence + 1, attempt = j.attempt + 1,
            worker = _worker, ran_on = _node, started_at = _now
        WHERE j.id = ANY (_got)
        RETURNING j.id, j.fence, j.kind, j.args, j.attempt, j.max_attempts, j.crashes,
            j.max_crashes, j.generation, j.queue, j.name, j.timeout, j.metadata, j.schedule,
            j.tick, j.count, j.parked, j.result_ttl, j.priority, j.due_at;

    UPDATE piecework.piecework_queue q
    SET tokens = _tokens[array_position(_rated, q.name)] - mine.taken,
        refilled_at = greatest(q.refilled_at, _now)
    FROM (SELECT j.queue, count(*) AS taken FROM piecework.piecework_job j
          WHERE j.id = ANY (_got) GROUP BY j.queue) mine
    WHERE q.name = mine.queue AND q.name = ANY (_rated);
END $body$;

-- What is due is available or blocked, what expired is expired, and of a thousand keys after
-- `_after` those without a holder go to their next job: it came too late to be seen.
CREATE FUNCTION piecework.piecework_stage(_at timestamptz, _limit bigint, _after text)
RETURNS TABLE (
    due bigint, expired bigint, promoted bigint, next_due double precision, looked text)
LANGUAGE plpgsql VOLATILE AS $body$
#variable_conflict use_column
DECLARE
    _now timestamptz := coalesce(_at, clock_timestamp());
    _keys text[];
    _idle text[];
    _more bigint;
    _next timestamptz;
BEGIN
    WITH late AS MATERIALIZED (
        SELECT j.id FROM piecework.piecework_job j
        WHERE j.expires_at IS NOT NULL AND j.state IN ('scheduled', 'blocked', 'available')
        AND j.expires_at <= _now ORDER BY j.expires_at LIMIT _limit FOR UPDATE SKIP LOCKED
    ), gone AS (
        UPDATE piecework.piecework_job j
        SET state = 'expired', finished_at = _now, serial_held = NULL,
            unique_held = CASE WHEN j.unique_scope = 'live' THEN NULL ELSE j.unique_held END
        FROM late WHERE j.id = late.id RETURNING j.serial_key
    )
    SELECT count(*), array_agg(DISTINCT gone.serial_key)
        FILTER (WHERE gone.serial_key IS NOT NULL)
    INTO expired, _keys FROM gone;
    promoted := coalesce(piecework.piecework_promote(_keys), 0);

    WITH ready AS MATERIALIZED (
        SELECT j.id, j.serial_key IS NULL OR j.serial_held IS NOT NULL AS open
        FROM piecework.piecework_job j
        WHERE j.state = 'scheduled' AND j.due_at <= _now
        ORDER BY j.due_at LIMIT _limit FOR UPDATE SKIP LOCKED
    ), moved AS (
        UPDATE piecework.piecework_job j
        SET state = CASE WHEN ready.open THEN 'available' ELSE 'blocked' END
        FROM ready WHERE j.id = ready.id
        RETURNING CASE WHEN ready.open THEN NULL ELSE j.serial_key END AS key
    )
    SELECT count(*), array_agg(DISTINCT moved.key) FILTER (WHERE moved.key IS NOT NULL)
    INTO due, _keys FROM moved;
    promoted := promoted + coalesce(piecework.piecework_promote(_keys), 0);

    WITH RECURSIVE line (key, place) AS (
        (SELECT j.serial_key, 1 FROM piecework.piecework_job j
         WHERE j.state = 'blocked' AND j.serial_key > _after ORDER BY j.serial_key LIMIT 1)
        UNION ALL
        SELECT (SELECT j.serial_key FROM piecework.piecework_job j
                WHERE j.state = 'blocked' AND j.serial_key > line.key
                ORDER BY j.serial_key LIMIT 1), line.place + 1
        FROM line WHERE line.key IS NOT NULL AND line.place < 1000)
    SELECT count(*), max(line.key), array_agg(line.key) FILTER (WHERE NOT EXISTS (
        SELECT FROM piecework.piecework_job h WHERE h.serial_held = line.key))
    INTO _more, looked, _idle FROM line WHERE line.key IS NOT NULL;
    promoted := promoted + coalesce(piecework.piecework_promote(_idle), 0);
    looked := CASE WHEN _more < 1000 THEN '' ELSE looked END;

    SELECT least(
        (SELECT j.due_at FROM piecework.piecework_job j
         WHERE j.state = 'scheduled' AND j.due_at > _now ORDER BY j.due_at LIMIT 1),
        (SELECT j.expires_at FROM piecework.piecework_job j
         WHERE j.expires_at IS NOT NULL AND j.state IN ('scheduled', 'blocked', 'available')
         AND j.expires_at > _now ORDER BY j.expires_at LIMIT 1)) INTO _next;
    next_due := extract(epoch FROM _next - _now);
    RETURN NEXT;
END $body$;
