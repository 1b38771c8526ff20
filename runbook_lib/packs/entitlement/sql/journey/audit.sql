-- question: which changes of rights were made at these instants, within the last 2,000 pages of the audit?
-- index: a range of the heap (rows are only ever appended)
-- cost: index
-- answers: window
SELECT audit_id, occurred_at, user_id, stock_keeping_unit, action
FROM entitlement.entitlement_audit
WHERE ctid >= CAST((
        SELECT format('(%s,0)', greatest(
            pg_relation_size('entitlement.entitlement_audit') / CAST(current_setting('block_size') AS bigint) - 2000,
            0))
        ) AS tid)
    AND occurred_at = ANY (CAST(:instants AS timestamptz[]))
LIMIT :max_rows;
