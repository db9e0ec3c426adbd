#!/usr/bin/env bash
# Stop one run on all workers: SIGTERM, which saves, then SIGKILL after GRACE_SECONDS; then look
# that it is gone. Ends the processes that launch.sh recorded for this run, and no other.
#
#   tpu/stop.sh [--run=NAME] [--dry-run]
#
# The slice stays: tpu/delete.sh gives it back.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "run retry" "$@" # --retry: run.sh clears the way for its own next attempt

words=(stop "$RUN" "$GRACE_SECONDS" "${OPT_retry:-no}")
stop_node() { on_workers ssh_to "$1" "$(worker true "${words[@]}")"; }
each_node stop_node || die $? "$RUN may still run somewhere: tpu/status.sh --run=$RUN"
say "$RUN runs nowhere"
