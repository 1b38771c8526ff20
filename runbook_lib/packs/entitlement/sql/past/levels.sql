-- How the questions of this folder go on, once `found` has who waited: created_at, ended_at, attempt_count, given_up.
-- `least` and `most` waited at some moment of the bucket. `low_first` and `low_last` are the first and the last at which one
-- left and no more than `few` still waited, or else at which it was `least`. `slow` came in it and waited `slow_s`, `tried`
-- of these were tried in vain. `untimed` were given up, and when is not kept: they are in no other count. Bucket -1 is all
-- before.
, waited AS (
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
