#!/usr/bin/env bash
# The state of the queued resource, of every node, and of the run on every worker.
#
#   tpu/status.sh [--run=NAME] [--dry-run]
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "run" "$@"

state=$(queue_state)
echo "$NAME $state"
if [[ $state == ABSENT ]] && ! dry; then exit 0; fi
for node in $(nodes); do
  found=$(node_state "$node")
  echo "$node $found"
done
if [[ $state == ACTIVE ]] || dry; then
  status_lines || { dry || die 1 "not every worker answered: $(cat "$SCRATCH"/status.*)"; }
fi
