#!/usr/bin/env bash
# Bring one commit of this repository to all workers, to ~/flaxlm/<commit>.
#
#   tpu/sync.sh [--ref=REF] [--dry-run]
#
# What is not committed does not go along. Workers that have the commit keep it.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "ref run" "$@"

sha=$(commit)
if [[ -n $(git -C "$REPO_DIR" status --porcelain --untracked-files=no) ]]; then
  say "there are changes that are not committed: they stay here, $sha goes"
fi
archive=flaxlm-$sha.tar.gz
if ! dry; then git -C "$REPO_DIR" archive --format=tar.gz -o "$SCRATCH/$archive" "$sha"; fi

# The folder appears whole or not at all; worker.sh is replaced by a rename, because one that
# supervises a run may be reading it.
# shellcheck disable=SC2016
unpack='set -e; mkdir -p flaxlm; if ! [ -d flaxlm/SHA ]; then rm -rf flaxlm/SHA.part; mkdir flaxlm/SHA.part;
tar -xzf flaxlm-SHA.tar.gz -C flaxlm/SHA.part; mv flaxlm/SHA.part flaxlm/SHA; fi; rm -f flaxlm-SHA.tar.gz;
cp flaxlm/SHA/tpu/worker.sh flaxlm/worker.sh.new; mv flaxlm/worker.sh.new flaxlm/worker.sh'
unpack=${unpack//SHA/$sha}
unpack=${unpack//$'\n'/ }

sync_node() {
  if ! dry && ssh_to "$1" all "test -d flaxlm/$sha && test -f flaxlm/worker.sh" >/dev/null 2>&1; then
    say "$1 has $sha"
    return
  fi
  on_workers scp_to "$1" "$SCRATCH/$archive" "$archive" &&
    on_workers ssh_to "$1" "$unpack"
}
each_node sync_node || die $? "$sha is not on every worker"
say "$sha is on all workers"
