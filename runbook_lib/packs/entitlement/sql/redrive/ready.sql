-- May this role change what the action changes?
SELECT
    to_regclass('runbook.redriven') IS NOT NULL AS ledger,
    current_setting('transaction_read_only') = 'off'
    AND coalesce(bool_and(has_table_privilege(CAST(to_regclass(needs.name) AS oid), needs.privilege)), false) AS may_write
FROM unnest(CAST(%(tables)s AS text[]), CAST(%(privileges)s AS text[])) AS needs (name, privilege)
