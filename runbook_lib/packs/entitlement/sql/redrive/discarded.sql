-- How many of this store were discarded?
SELECT count(*) AS n FROM runbook.redriven WHERE store = %(store)s AND decision = 'discard'
