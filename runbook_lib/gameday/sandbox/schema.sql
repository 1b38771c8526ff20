-- The tables of the two applications, as their own migrations leave them: schema "entitlement" (source of
-- truth, idempotency, outbox, audit) and schema "notification" (dedupe ledger, delivery queue, dead letters).
-- No foreign keys: retention deletes each table on its own clock.

CREATE SCHEMA entitlement;
CREATE SCHEMA notification;

-- entitlement ------------------------------------------------------------------------------------------------

CREATE TABLE entitlement.entitlements (
    user_id             text NOT NULL,
    stock_keeping_unit  text NOT NULL,
    status              text NOT NULL,
    granted_at          timestamptz,
    revoked_at          timestamptz,
    source              text,                       -- the request's reason
    source_id           text,                       -- the request's purchase_id
    version             bigint NOT NULL DEFAULT 0,  -- +1 per transition
    updated_at          timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT entitlements_pkey PRIMARY KEY (user_id, stock_keeping_unit),
    CONSTRAINT entitlements_status_check CHECK (status IN ('ACTIVE', 'REVOKED'))
);
CREATE INDEX entitlements_user_updated_idx ON entitlement.entitlements (user_id, updated_at DESC);

CREATE TABLE entitlement.idempotency_keys (
    idem_key       text NOT NULL,
    request_hash   text NOT NULL,
    response_code  integer NOT NULL,
    response_body  jsonb NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    expires_at     timestamptz NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (idem_key)
);
CREATE INDEX idempotency_expires_idx ON entitlement.idempotency_keys (expires_at);

CREATE TABLE entitlement.outbox_events (
    event_id       uuid NOT NULL,
    event_type     text NOT NULL,
    aggregate_key  text NOT NULL,          -- user_id:sku
    payload        jsonb NOT NULL,         -- JSON here, protobuf on the wire
    status         text NOT NULL,
    attempt_count  integer NOT NULL DEFAULT 0,
    next_retry_at  timestamptz,            -- NULL: due at once
    created_at     timestamptz NOT NULL DEFAULT now(),
    published_at   timestamptz,
    locked_by      text,
    locked_at      timestamptz,
    lease_until    timestamptz,
    last_error     text,
    CONSTRAINT outbox_events_pkey PRIMARY KEY (event_id),
    CONSTRAINT outbox_events_status_check CHECK (status IN ('PENDING', 'IN_FLIGHT', 'PUBLISHED', 'FAILED'))
);
CREATE INDEX outbox_pick_idx ON entitlement.outbox_events (status, next_retry_at, created_at);
CREATE INDEX outbox_inflight_lease_idx ON entitlement.outbox_events (lease_until, created_at)
    WHERE status = 'IN_FLIGHT';
CREATE INDEX outbox_published_at_idx ON entitlement.outbox_events (published_at)
    WHERE status = 'PUBLISHED';

CREATE TABLE entitlement.entitlement_audit (
    audit_id            uuid NOT NULL,
    occurred_at         timestamptz NOT NULL DEFAULT now(),
    user_id             text NOT NULL,
    stock_keeping_unit  text NOT NULL,
    action              text NOT NULL,
    source              text,
    source_id           text,
    request_id          text,              -- the Idempotency-Key
    detail              jsonb,
    CONSTRAINT entitlement_audit_pkey PRIMARY KEY (audit_id),
    CONSTRAINT entitlement_audit_action_check CHECK (action IN ('GRANT', 'REVOKE'))
);

-- notification -----------------------------------------------------------------------------------------------

CREATE TABLE notification.processed_events (
    event_id      uuid NOT NULL,           -- the one place where an event is unique
    processed_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT processed_events_pkey PRIMARY KEY (event_id)
);
CREATE INDEX processed_events_processed_at_idx ON notification.processed_events (processed_at);

CREATE TABLE notification.notifications (
    notification_id  uuid NOT NULL,
    event_id         uuid NOT NULL,        -- neither unique nor indexed
    user_id          text NOT NULL,
    type             text NOT NULL,
    occurred_at      timestamptz NOT NULL,
    payload_json     jsonb NOT NULL,
    status           text NOT NULL,
    locked_by        text,
    locked_at        timestamptz,
    lease_until      timestamptz,
    attempt_count    integer NOT NULL DEFAULT 0,
    next_retry_at    timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    sent_at          timestamptz,
    CONSTRAINT notifications_pkey PRIMARY KEY (notification_id),
    CONSTRAINT notifications_status_check CHECK (status IN ('PENDING', 'PROCESSING', 'SENT', 'FAILED'))
);
CREATE INDEX notifications_pending_idx ON notification.notifications (status, next_retry_at, created_at);
CREATE INDEX notifications_processing_idx ON notification.notifications (status, lease_until, created_at);
CREATE INDEX notifications_user_idx ON notification.notifications (user_id, created_at);
CREATE INDEX notifications_retention_sent_failed_idx ON notification.notifications (created_at)
    WHERE status IN ('SENT', 'FAILED');
CREATE INDEX notifications_retention_active_idx ON notification.notifications (created_at)
    WHERE status IN ('PENDING', 'PROCESSING');

CREATE TABLE notification.notification_dlq (
    dlq_id           uuid NOT NULL,
    notification_id  uuid NOT NULL,
    event_id         uuid NOT NULL,
    payload_json     jsonb NOT NULL,
    error_message    text NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT notification_dlq_pkey PRIMARY KEY (dlq_id),
    CONSTRAINT notification_dlq_notification_id_uniq UNIQUE (notification_id)
);
CREATE INDEX notification_dlq_event_idx ON notification.notification_dlq (event_id, created_at);

CREATE TABLE notification.notification_nats_dlq (
    stream_seq  bigint NOT NULL,           -- in stream entitlement-events
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT notification_nats_dlq_pkey PRIMARY KEY (stream_seq)
);

-- Which migrations ran, as Flyway records it -------------------------------------------------------------------

CREATE TABLE entitlement.flyway_schema_history_entitlement (
    installed_rank  integer NOT NULL,
    version         varchar(50),
    description     varchar(200) NOT NULL,
    type            varchar(20) NOT NULL,
    script          varchar(1000) NOT NULL,
    checksum        integer,
    installed_by    varchar(100) NOT NULL,
    installed_on    timestamp NOT NULL DEFAULT now(),
    execution_time  integer NOT NULL,
    success         boolean NOT NULL,
    CONSTRAINT flyway_schema_history_entitlement_pk PRIMARY KEY (installed_rank)
);
CREATE INDEX flyway_schema_history_entitlement_s_idx ON entitlement.flyway_schema_history_entitlement (success);

CREATE TABLE notification.flyway_schema_history_notification (
    installed_rank  integer NOT NULL,
    version         varchar(50),
    description     varchar(200) NOT NULL,
    type            varchar(20) NOT NULL,
    script          varchar(1000) NOT NULL,
    checksum        integer,
    installed_by    varchar(100) NOT NULL,
    installed_on    timestamp NOT NULL DEFAULT now(),
    execution_time  integer NOT NULL,
    success         boolean NOT NULL,
    CONSTRAINT flyway_schema_history_notification_pk PRIMARY KEY (installed_rank)
);
CREATE INDEX flyway_schema_history_notification_s_idx
    ON notification.flyway_schema_history_notification (success);

INSERT INTO entitlement.flyway_schema_history_entitlement
    (installed_rank, version, description, type, script, installed_by, execution_time, success)
VALUES
    (1, '1', 'entitlements', 'SQL', 'V1__entitlements.sql', current_user, 1, true),
    (2, '2', 'idempotency keys', 'SQL', 'V2__idempotency_keys.sql', current_user, 1, true),
    (3, '3', 'outbox events', 'SQL', 'V3__outbox_events.sql', current_user, 1, true),
    (4, '4', 'entitlement audit', 'SQL', 'V4__entitlement_audit.sql', current_user, 1, true);
INSERT INTO notification.flyway_schema_history_notification
    (installed_rank, version, description, type, script, installed_by, execution_time, success)
VALUES
    (1, '1', 'notifications', 'SQL', 'V1__notifications.sql', current_user, 1, true),
    (2, '2', 'notification dlq', 'SQL', 'V2__notification_dlq.sql', current_user, 1, true),
    (3, '3', 'notification nats dlq', 'SQL', 'V3__notification_nats_dlq.sql', current_user, 1, true);
