#!/usr/bin/env bash
# The log of the run.
#
#   tpu/logs.sh [--run=NAME] [--worker=K|all] [--slice=K] [--lines=N] [--follow] [--dry-run]
#
# Worker 0 of slice 0 unless said otherwise.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "run worker slice lines follow" "$@"

mapfile -t all < <(nodes)
slice=${OPT_slice:-0}
[[ $slice =~ ^[0-9]+$ && -n ${all[slice]:-} ]] || die 78 "--slice=$slice: there are $SLICES, from 0"
lines=${OPT_lines:-50}
[[ $lines =~ ^[0-9]+$ ]] || die 78 "--lines=$lines is no number"
words=(log "$RUN" "$lines")
if [[ -n ${OPT_follow:-} ]]; then words+=(follow); fi
ssh_to "${all[slice]}" "${OPT_worker:-0}" "$(worker "$NOT_SET_UP" "${words[@]}")"
