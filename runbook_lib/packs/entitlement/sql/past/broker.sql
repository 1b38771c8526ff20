-- question: stretch by stretch, how many events were published, processed, and waited between (of a span of publishing)?
-- index: outbox_published_at_idx, processed_events_processed_at_idx
-- cost: scan
-- answers: window
-- column: bucket number
-- column: came rows
-- column: gone rows
-- column: least number
-- column: most number
-- column: low_first time
-- column: low_last time
-- column: slow rows
-- column: tried rows
-- column: untimed rows
-- An event waits from its publishing, a batch start, to its processing; what was never processed is in no count here.
-- `least` and `most` waited at some moment of the bucket. `low_first` and `low_last` are the first and the last at which one
-- left and no more than `few` still waited, or else at which it was `least`. `slow` came in it and waited `slow_s`, `tried` of these were tried in vain. `untimed` were given up, and
-- when is not kept: they are in no other count. Bucket -1 is all before.
WITH found AS (
    SELECT o.published_at AS created_at, p.processed_at AS ended_at, 0 AS attempt_count, false AS given_up
    FROM entitlement.outbox_events o
    JOIN notification.processed_events p ON p.event_id = o.event_id
    WHERE o.status = 'PUBLISHED'
      AND o.published_at >= CAST(:low AS timestamptz) AND o.published_at < CAST(:high AS timestamptz)
      -- Processed after it was published, bar clocks that are apart; the bounds keep the join to a part of the table.
      AND p.processed_at >= CAST(:low AS timestamptz) - interval '10 minutes'
      AND p.processed_at < CAST(:high AS timestamptz) + interval '1 hour'
), waited AS (
    SELECT created_at, CASE WHEN ended_at < created_at THEN created_at ELSE ended_at END AS ended_at,
        given_up AND ended_at IS NULL AS untimed, attempt_count > 0 AS tried,
        coalesce(ended_at, CAST(:until AS timestamptz)) - created_at
            >= interval '1 second' * CAST(:slow_s AS double precision) AS slow
    FROM found
), steps AS (
    SELECT created_at AS at, 1 - CAST(untimed AS integer) AS step, CAST(slow AND NOT untimed AS integer) AS slow,
        CAST(slow AND tried AND NOT untimed AS integer) AS tried, CAST(untimed AS integer) AS untimed
    FROM waited
    UNION ALL
    SELECT ended_at, -1, 0, 0, 0 FROM waited WHERE ended_at IS NOT NULL
), leveled AS (
    SELECT step, slow, tried, untimed, CAST(extract(epoch FROM at) AS double precision) AS second,
        CAST(sum(step) OVER (ORDER BY at) AS double precision) AS level,
        CAST(greatest(floor(extract(epoch FROM at - CAST(:since AS timestamptz)) / CAST(:bucket_s AS integer)), -1)
            AS integer) AS bucket
    FROM steps
    WHERE at < CAST(:until AS timestamptz)
)
SELECT bucket, count(*) FILTER (WHERE step > 0) AS came, count(*) FILTER (WHERE step < 0) AS gone,
    min(level) AS least, max(level) AS most,
    to_timestamp(coalesce(min(second) FILTER (WHERE step < 0 AND level <= CAST(:few AS double precision)),
        (min(ARRAY[level, second]))[2])) AS low_first,
    to_timestamp(coalesce(max(second) FILTER (WHERE step < 0 AND level <= CAST(:few AS double precision)),
        -(min(ARRAY[level, -second]))[2])) AS low_last,
    sum(slow) AS slow, sum(tried) AS tried, sum(untimed) AS untimed
FROM leveled
GROUP BY 1
ORDER BY 1
LIMIT :max_rows;
