-- question: which migrations has Flyway run in schema entitlement, newest first?
-- index: flyway_schema_history_entitlement_pk
-- cost: index
-- answers: present
SELECT version, description, CAST(date_trunc('second', installed_on) AS text) AS installed_on, success  -- of no time zone
FROM entitlement.flyway_schema_history_entitlement
ORDER BY installed_rank DESC
LIMIT :max_rows;
