#!/usr/bin/env bash
# Delete the queued resource and its node(s), and look until nothing is left that costs money.
#
#   tpu/delete.sh [--dry-run]
#
# Fine if there is nothing to delete.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "" "$@"

if dry; then
  gc queued-resources delete "$NAME" --force
  for node in $(nodes); do gc tpu-vm delete "$node"; done
  exit 0
fi
deadline=$((SECONDS + 900))
while true; do
  left=()
  state=$(queue_state)
  if [[ $state != ABSENT ]]; then
    left+=("$NAME ($state)")
    # --force takes the nodes along. While one is being suspended this is refused: again, then.
    gc queued-resources delete "$NAME" --force >&2 || say "$NAME is $state and was not deleted yet"
  fi
  for node in $(nodes); do
    found=$(node_state "$node")
    if [[ $found != ABSENT ]]; then
      left+=("node $node ($found)")
      if [[ $state == ABSENT && $found != DELETING ]]; then gc tpu-vm delete "$node" >&2 || true; fi
    fi
  done
  ((${#left[@]})) || break
  ((SECONDS < deadline)) || die 1 "still there, and it costs: ${left[*]}"
  sleep "$POLL_SECONDS"
done
say "nothing is left of $NAME"
