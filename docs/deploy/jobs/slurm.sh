#!/bin/sh
# One triage a task of the array:  sbatch --array=0-2 slurm.sh INC-1 eu us ap
# The job takes RUNBOOK_CONFIG, RUNBOOK_OUTPUT (all nodes share it) and the targets' secrets from the environment.
#SBATCH --job-name=runbook --cpus-per-task=1 --mem=1G --time=00:05:00 --requeue
incident=$1
shift $((SLURM_ARRAY_TASK_ID + 1))
runbook triage --target "$1" --incident "$incident-$1"
test $? -lt 64 # 0 to 3 are verdicts
