#!/usr/bin/env bash
# Ask for the slice(s) of config.env as a queued resource. Does not wait for them: run.sh does.
#
#   tpu/create.sh [--dry-run]
#
# If it is there already, says so and changes nothing. Exit codes: 0 it is there or asked for,
# 75 no (quota, or the remains of a dead one: tpu/delete.sh), 77 not allowed, 78 refused as asked for.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "" "$@"

state=$(queue_state)
case $state in
  ABSENT) ;;
  FAILED | SUSPENDED | SUSPENDING | DELETING)
    die 75 "$NAME is there but $state: tpu/delete.sh first"
    ;;
  *)
    say "$NAME is there: $state"
    exit 0
    ;;
esac

flags=("--accelerator-type=$ACCELERATOR_TYPE" "--runtime-version=$RUNTIME_VERSION")
if ((SLICES == 1)); then
  flags+=("--node-id=$NAME")
else
  flags+=("--node-count=$SLICES" "--node-prefix=$NAME")
fi
if [[ $SPOT == yes ]]; then flags+=(--spot); fi
if [[ -n $VALID_UNTIL ]]; then flags+=("--valid-until-duration=$VALID_UNTIL"); fi

errors=$SCRATCH/create
if gc queued-resources create "$NAME" "${flags[@]}" ${CREATE_FLAGS[@]+"${CREATE_FLAGS[@]}"} 2>"$errors"; then
  say "asked for $NAME: $SLICES x $ACCELERATOR_TYPE"
elif grep -q ALREADY_EXISTS "$errors"; then
  say "$NAME is there"
else
  cat "$errors" >&2
  if grep -qE 'PERMISSION_DENIED|UNAUTHENTICATED' "$errors"; then die 77 "gcloud may not create $NAME"; fi
  if grep -qE 'INVALID_ARGUMENT|unrecognized arguments|Invalid value' "$errors"; then
    die 78 "gcloud refuses what config.env asks for"
  fi
  die 75 "$NAME was not created"
fi
