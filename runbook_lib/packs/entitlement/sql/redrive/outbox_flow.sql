-- Does publishing work? Seconds since the newest failure, tries that failed and wait, and whether due rows are left lying.
SELECT
    -- When a row failed is kept nowhere but in the commit time. Else: at once, or at the latest after its ten tries.
    (SELECT extract(epoch FROM now() - max(coalesce(
            CASE WHEN current_setting('track_commit_timestamp') = 'on' THEN pg_xact_commit_timestamp(xmin) END,
            -- What was sent again began its tries then.
            least(now(), greatest(created_at, (
                SELECT max(r.at) FROM runbook.redriven r
                WHERE r.store = 'outbox' AND r.event_id = given_up.event_id AND r.decision = 'redrive'
            )) + CASE WHEN last_error = 'outbox payload parse failure' THEN interval '0'
                ELSE %(tries_s)s * interval '1 second' END)
        )))
     FROM (
        SELECT xmin, event_id, created_at, last_error FROM entitlement.outbox_events
        WHERE status = 'FAILED'
        ORDER BY next_retry_at DESC, created_at DESC
        LIMIT 5000
     ) given_up) AS failed_s,
    (SELECT count(*) FROM (
        SELECT FROM entitlement.outbox_events
        WHERE status = 'PENDING' AND next_retry_at > now() AND attempt_count > 0
        LIMIT 1000
    ) retrying) AS retrying,
    EXISTS (
        SELECT FROM entitlement.outbox_events
        WHERE status = 'PENDING' AND next_retry_at <= now() - %(lease_s)s * interval '1 second'
    ) OR EXISTS (
        SELECT FROM entitlement.outbox_events
        WHERE status = 'PENDING' AND next_retry_at IS NULL AND created_at <= now() - %(lease_s)s * interval '1 second'
          -- What was sent again is as old as its event.
          AND NOT EXISTS (
              SELECT FROM runbook.redriven r
              WHERE r.store = 'outbox' AND r.event_id = outbox_events.event_id AND r.decision = 'redrive'
          )
    ) OR EXISTS (
        SELECT FROM entitlement.outbox_events
        WHERE status = 'IN_FLIGHT' AND lease_until <= now() - %(lease_s)s * interval '1 second'
    ) AS overdue
