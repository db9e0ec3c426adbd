#!/usr/bin/env bash
# Make all workers ready for one commit: the code (sync.sh), a Python of its own from uv, the pinned
# packages of tpu/constraints.txt, and the shared run folder.
#
#   tpu/setup.sh [--ref=REF] [--dry-run]
#
# May be repeated: what is done stays. A worker that fails is tried again by itself.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "ref run" "$@"

sha=$(commit)
flags=("--ref=$sha")
if dry; then flags+=(--dry-run); fi
bash "$TPU_DIR/sync.sh" "${flags[@]}"

setup_node() {
  on_workers ssh_to "$1" "$(worker "$NOT_SET_UP" setup "sha=$sha" "python=$PYTHON_VERSION" \
    "uv=$UV_VERSION" "bucket=$RUNS_BUCKET" "nfs=$RUNS_NFS" "runs=$RUNS_DIR")"
}
each_node setup_node || die $? "not every worker is ready"
say "all workers are ready for $sha"
