-- The stream has it: from here on it is the subscriber's.
UPDATE runbook.redriven SET state = 'waiting', published_seq = %(seq)s WHERE id = %(id)s AND state = 'publishing'
