"""One triage per target of runbook.toml:  airflow dags trigger runbook_triage --conf '{"incident": "INC-1"}'.

The workers take RUNBOOK_CONFIG, RUNBOOK_OUTPUT (all of them share it) and the targets' secrets from their environment.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param

TARGETS = sorted(tomllib.loads(Path(os.environ["RUNBOOK_CONFIG"]).read_text(encoding="utf-8"))["targets"])
TRIAGE = """
runbook triage --target "$TARGET" --incident "$INCIDENT-$TARGET"
test $? -lt 64  # 0 to 3 are verdicts
"""

with DAG("runbook_triage", schedule=None, params={"incident": Param("adhoc", type="string")}):
    BashOperator.partial(
        task_id="triage", bash_command=TRIAGE, append_env=True, retries=2, max_active_tis_per_dag=8
    ).expand(env=[{"TARGET": target, "INCIDENT": "{{ params.incident }}"} for target in TARGETS])
