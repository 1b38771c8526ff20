-- question: which change of a right has this id?
-- index: entitlement_audit_pkey
-- cost: index
-- answers: window
SELECT audit_id, occurred_at, user_id, stock_keeping_unit, action
FROM entitlement.entitlement_audit
WHERE audit_id = CAST(:id AS uuid);
