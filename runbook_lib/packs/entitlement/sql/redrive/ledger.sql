-- The ledger of dead letters that were sent again or discarded: once per database, by whoever owns it.
-- It may be run again. Then, for the role that acts and for the one that only reads:
--
--     GRANT USAGE ON SCHEMA runbook TO acting, reading;
--     GRANT SELECT, INSERT, UPDATE ON runbook.redriven TO acting;
--     GRANT SELECT ON runbook.redriven TO reading;
--
-- `archived` holds what the row was before, with its payload: treat it as the tables it came from.
CREATE SCHEMA IF NOT EXISTS runbook;

CREATE TABLE IF NOT EXISTS runbook.redriven (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    store           text        NOT NULL CHECK (store IN ('delivery', 'outbox', 'broker')),
    decision        text        NOT NULL CHECK (decision IN ('redrive', 'discard')),
    -- publishing: not yet on the stream; waiting: its worker has it; the others are ends.
    state           text        NOT NULL
        CHECK (state IN ('publishing', 'waiting', 'succeeded', 'failed', 'missing', 'discarded')),
    event_id        uuid,
    notification_id uuid,
    stream_seq      bigint,
    published_seq   bigint,     -- of the broker's second copy
    incident        text        NOT NULL,
    action          text        NOT NULL,     -- the portion's id, as in the incident's journal
    approved_by     text        NOT NULL,
    reason          text        NOT NULL,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at        timestamptz,
    archived        jsonb       NOT NULL,
    CHECK (event_id IS NOT NULL OR stream_seq IS NOT NULL)
);
CREATE INDEX IF NOT EXISTS redriven_event_idx ON runbook.redriven (store, event_id);
CREATE INDEX IF NOT EXISTS redriven_stream_seq_idx ON runbook.redriven (stream_seq) WHERE stream_seq IS NOT NULL;
CREATE INDEX IF NOT EXISTS redriven_open_idx ON runbook.redriven (store, id) WHERE state IN ('publishing', 'waiting');
CREATE INDEX IF NOT EXISTS redriven_discarded_idx ON runbook.redriven (store) WHERE decision = 'discard';
