-- Delete the receiver's ended runs, messages and seals except the newest :keep of each, and what is only of them. An
-- open incident keeps its alerts and their runs, each incident its row and its last seal: its dossier may exist for longer.
DELETE FROM alerts WHERE job NOT IN (SELECT id FROM work WHERE kind <> 'message' ORDER BY id DESC LIMIT :keep)
    AND incident IN (SELECT id FROM incidents WHERE closed IS NOT NULL);
DELETE FROM work WHERE state IN ('done', 'failed') AND id NOT IN (SELECT job FROM alerts)
    AND id NOT IN (SELECT id FROM work WHERE kind <> 'message' ORDER BY id DESC LIMIT :keep)
    AND id NOT IN (SELECT id FROM work WHERE kind = 'message' ORDER BY id DESC LIMIT :keep);
DELETE FROM reported WHERE incident NOT IN (SELECT incident FROM work WHERE kind <> 'message');
DELETE FROM threads WHERE incident NOT IN (SELECT incident FROM work);
UPDATE incidents SET verdict = NULL
    WHERE verdict IS NOT NULL AND id NOT IN (SELECT incident FROM work WHERE kind <> 'message');
DELETE FROM seals WHERE rowid NOT IN (SELECT max(rowid) FROM seals GROUP BY incident)
    AND rowid NOT IN (SELECT rowid FROM seals ORDER BY rowid DESC LIMIT :keep);
