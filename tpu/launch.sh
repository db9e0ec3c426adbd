#!/usr/bin/env bash
# Start `python -m flaxlm.train ARGUMENT...` on all workers, detached from the connection.
#
#   tpu/launch.sh [--run=NAME] [--ref=REF] [--dry-run] -- --experiment t5_11b_c4 --run.steps=1000
#
# Arguments arrive as they were given, quotes and spaces included. The run directory is
# RUNS_DIR/NAME, so the same command continues the run. Where it runs already, it is left alone.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "run ref" "$@"

((${#ARGS[@]})) || die 78 "nothing to train: give the arguments of flaxlm.train after --"
for argument in "${ARGS[@]}"; do
  if [[ $argument == --run.directory* ]]; then
    die 78 "$argument: the run directory is $RUNS_DIR/$RUN; give RUNS_DIR in config.env and --run=NAME"
  fi
done
sha=$(commit)
# A worker that is asked twice in one launch, because another one failed, starts once.
words=("run=$RUN" "sha=$sha" "runs=$RUNS_DIR" "slices=$SLICES" "launch=$(date +%s)-$$")
for variable in ${WORKER_ENV[@]+"${WORKER_ENV[@]}"}; do words+=("env=$variable"); done
if ((SLICES > 1)); then
  found=$(addresses "$NAME-0")
  [[ $found != ABSENT ]] || die 75 "$NAME-0 is gone"
  words+=("coordinator=${found%%$'\n'*}")
fi

launch_node() {
  on_workers ssh_to "$1" "$(worker "$NOT_SET_UP" start "${words[@]}" "slice=$2" -- "${ARGS[@]}")"
}
each_node launch_node || die $? "$RUN did not start on every worker: tpu/stop.sh --run=$RUN ends what did"
say "$RUN runs on all workers: tpu/logs.sh --run=$RUN --follow"
