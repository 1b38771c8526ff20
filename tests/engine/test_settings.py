"""runbook.toml: what is written wrong is one line that names the setting and holds no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from runbook_lib.model.usage import UsageError
from runbook_lib.sources import settings
from runbook_lib.sources.secret import shows_secret

SECRET = "s3cret-x"
#: What stands in the table of a target.
OF_A_TARGET = [
    # Addresses
    ('nats_url = ["nats://a", "nats://b:port"]', "its host or its port cannot be read"),
    ('nats_url = ["nats://me:s3cret-x@a", "nats://b"]', "has a password"),
    ('database_url = "postgresql://u:s3cret-x@h/d"', "has a password in"),
    ('database_url = "postgresql://u:s3cret-x@[::1/d"', "targets.x.database_url: its host or its port"),
    ('database_url = "env:NOT_SET_ANYWHERE"', "database_url: the variable NOT_SET_ANYWHERE is not set"),
    ('entitlement_url = "ftp://h"', "entitlement_url: it does not begin with http:// or https://: write it like"),
    ('notification_url = "http://h:80x"', "notification_url: its host or its port cannot be read"),
    ('notification_url = "http://u:s3cret-x@h"', "targets.x.notification_url has a password in"),
    ('notification_url = "env:NOT_SET_ANYWHERE"', "notification_url: the variable NOT_SET_ANYWHERE is not set"),
    ('notification_url = "file:nowhere"', "notification_url: cannot read nowhere"),
    ('nats_url = "file:runbook.toml"', "nats_url: it does not begin with nats://"),
    ('nats_url = "cmd:/nowhere/at-all"', "nats_url: the command cannot be started (No such file or directory)"),
    ("nats_url = \"cmd:sh -c 'exit 3'\"", "nats_url: the command ended with exit code 3 and printed 0 words"),
    ('nats_url = "cmd:true"', "nats_url: the command gives no value"),
    ('nats_user = "me"\nnats_password = "env:EMPTY"', "nats_password: EMPTY gives no value"),
    ('database_url_env = "A"', 'settings: targets.x.database_url_env has gone: write database_url as "env:VARIABLE"'),
    ('nats_token_file = "a"', 'nats_token_file has gone: write nats_token as "file:PATH"'),
    ('payments_url = "http://h"', "payments_url"),
    ('workloads = { supervisorctl = ["s", "-u", "a", "-p", "s3cret-x"] }', "supervisorctl: holds a password"),
    ('workloads = { supervisorctl = ["s", "-s", "http://a:s3cret-x@h:9001"] }', "supervisorctl: holds a password"),
    ('workloads = { psql = "psql postgresql://u:s3cret-x@h/d" }', "workloads.psql: holds a password: write it into"),
    ('workloads = { psql = "env PGPASSWORD=s3cret-x psql" }', "workloads.psql: holds a password: write it into"),
    ('workloads = { psql = "psql \'host=h" }', "workloads.psql: No closing quotation"),
    # The broker's users
    ('nats_url = "nats://s3cret-x@127.0.0.1:4222"', "targets.x.nats_url has a password"),  # a user alone is a token
    ('nats_password = "s3cret-x"\nnats_user = "me"', "nats_password stands in"),
    ('database_password = "s3cret-x"', '"env:VARIABLE", "file:PATH" or "cmd:PROGRAM ARGUMENT ..."'),
    ('nats_token = "s3cret-x"', "nats_token stands in"),
    ('nats_token = "cmd:vault read password=s3cret-x"', "nats_token has a secret among the words of its command in"),
    ("""database_url = 'cmd:curl -H "Authorization: Bearer s3cret-x" https://h'""", "database_url has a secret among"),
    ('nats_creds_file = "a"\nnats_nkey_file = "b"', "nats_creds_file and nats_nkey_file are set"),
    ('nats_user = "me"', "nats_user and nats_password go together"),
    ('nats_cert_file = "a"', "nats_cert_file and nats_key_file go together"),
    ('nats_domain = "a"\nnats_api_prefix = "b"', "set only one of them"),
    ('nats_domain = "a.>"', "domain"),
    ('nats_ca_file = "~nosuchuser/x"', "targets.x.nats.ca_file: ~nosuchuser/x: this user has no home folder"),
    ('ledger = "~nosuchuser/x"', "targets.x.ledger: ~nosuchuser/x: this user has no home folder"),
    ('nats_credentials_file = "a"', "nats_credentials_file"),
    # Grafana
    ('grafana_link = "javascript:alert(1)"', "does not begin with http:// or https://"),
    ('grafana_link = "https://u:s3cret-x@g.example/"', "has a password"),
    ('trace_link = "https://t.example/{id}"', "it names id: known are trace_id"),
    ('grafana_link = "https://g.example/d/{place}"', "it names place: known are from_ms, to_ms, hop"),
    # Rules of actions
    ('freeze = ["Fri 18:00/Mon 08:00 Asia/Tokyo"]', "settings: targets.x.freeze has gone: remove it; "),
    ('grafana_token_env = "A"', "settings: targets.x.grafana_token_env has gone: remove it; "),
    ("actions_per_hour = 6", "settings: targets.x.actions_per_hour has gone: remove it; "),
    ("keep_days = 30", "settings: targets.x.keep_days has gone: remove it; "),
    ("break_glass = true", "settings: targets.x.break_glass has gone: no rule can be passed: "),
    ('approval = "perhaps"', "approval: Input should be a valid boolean"),
    # Numbers and names
    ("lease_s = 10\nlease = 3", "targets.x.lease"),
    ("lease_s = nan", "targets.x.lease_s"),
    ("lease_s = inf", "targets.x.lease_s"),
    ("poll_interval_s = nan", "targets.x.poll_interval_s"),
]
#: What stands beside the targets.
OF_ALL = [
    ("targets = 3", "settings: targets"),
    ('database_url = "postgresql://u:s3cret-x@h/d"', "database_url has a password in"),
    ("[budgets]\nstatement_timeout_ms = 1000", "'budgets' is no setting"),
    ("targets", "not valid TOML"),
    ("lang = '\udcff'", "runbook.toml: not valid TOML: it is not UTF-8"),
    ("deadline_s = nan", "deadline_s: Input should be a finite number"),
    ("deadline_s = 1e300", "deadline_s: Input should be less than"),
    ("[budget]\nmax_plan_cost = inf", "budget.max_plan_cost"),
    ('[receiver]\nuser_header = "X-User"', "settings: receiver.user_header has gone: remove it; a proxy in front"),
    ("[receiver]\nwindow_minutes = nan", "receiver.window_minutes"),
    ('[sign]\nkey_file = "a"', "runbook.toml: sign has gone: remove it; keep the printed seal elsewhere"),
    ('[receiver]\nnotify_urls_file = "a"', 'receiver.notify_urls_file has gone: write notify_urls as "file:PATH"'),
    ('[approvers]\naoki = "MC4CAQAw"', "runbook.toml: approvers has gone: remove it; a person is known by the login"),
]


@pytest.mark.parametrize(("written", "said"), OF_A_TARGET + OF_ALL)
def test_what_is_written_wrong_is_one_line(
    written: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "" if written.startswith(("nats_url", "database_url")) else 'nats_url = "nats://127.0.0.1"\n'
    of_a_target = (written, said) in OF_A_TARGET
    text = f"[targets.x]\n{address}{written}\n" if of_a_target else f"{written}\n"
    (tmp_path / "runbook.toml").write_text(text, errors="surrogateescape")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(UsageError) as refused:
        settings.load().target("x")
    assert said in str(refused.value) and "\n" not in str(refused.value) and SECRET not in str(refused.value)


@pytest.mark.parametrize("written", ["slack://s3cret-x/b/c", "cmd:curl -u me:s3cret-x https://h"])
def test_a_channel_is_no_secret_of_the_file(written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runbook.toml").write_text(f"[receiver]\nnotify_urls = '{written}'\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"receiver\.notify_urls .* in .*runbook.toml: write where it is") as refused:
        settings.load().receiver.channels()
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "command",
    [
        "aws secretsmanager get-secret-value --secret-id prod/db --query SecretString", "pass show db/password",
        "gcloud secrets versions access latest --secret=db", "vault kv get -field=password kv/db",
        """sh -c 'curl -H "Authorization: Bearer $TOKEN" https://h'""",
        "kubectl get secret db -o jsonpath={.data.password}", "printenv NATS_PASSWORD",
        "sh -c 'echo nats://me:$(cat word)@h'",
    ],
)  # fmt: skip
def test_a_command_may_name_where_a_secret_is(command: str) -> None:
    assert not shows_secret(f"cmd:{command}")


@pytest.mark.parametrize("name", ["RUNBOOK_BUDGET", "RUNBOOK_TARGETS", "RUNBOOK_ROUTES"])
def test_a_variable_that_is_not_json_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    with pytest.raises(UsageError) as refused:
        settings.load()
    assert str(refused.value) == f"settings: {name} is not JSON"
