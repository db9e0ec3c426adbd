#!/usr/bin/env bash
# Train to the end: create the slice, wait for it, set it up, launch, watch; when it is preempted,
# delete what is left, create it again and go on with the same run.
#
#   tpu/run.sh [--run=NAME] [--ref=REF] [--delete] [--dry-run] -- --experiment t5_11b_c4 ...
#
# --delete gives the slice back at the end, however the run ends. May be stopped with Ctrl-C and
# started again at any time: the run goes on meanwhile. Exit code: that of the training, 0 if it is
# done. 75, 71 and 134 (a signal, a lost peer, JAX aborting) are tried again, 65 66 70 74 77 78 are not.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options "run ref delete" "$@"

((${#ARGS[@]})) || die 78 "nothing to train: give the arguments of flaxlm.train after --"
REF=$(commit) # one commit for the whole run, wherever the branch goes meanwhile
LOG=runs/tpu/$RUN.log

tool() { # tool SCRIPT ARGUMENT...
  local script=$1
  shift
  if dry; then set -- --dry-run "$@"; fi
  bash "$TPU_DIR/$script.sh" "$@"
}

finish() { # finish CODE MESSAGE
  say "$2"
  if [[ ${OPT_delete:-no} == yes ]]; then
    tool delete || say "the slice was not deleted: tpu/delete.sh"
  else
    say "$NAME stays and costs: tpu/delete.sh gives it back"
  fi
  exit "$1"
}

is_dead() { [[ $1 =~ ^(ABSENT|FAILED|SUSPENDED|SUSPENDING|DELETING|PREEMPTED|TERMINATED|STOPPED|STOPPING)$ ]]; }

# The slice in one word: WAITING, ACTIVE, or what it died of. Fails if nobody knows.
health() {
  local state node found
  state=$(queue_state) || return 1
  if [[ $state == ACTIVE ]]; then
    for node in $(nodes); do
      found=$(node_state "$node") || return 1
      if is_dead "$found"; then state=$found; fi
    done
  fi
  if is_dead "$state" || [[ $state == ACTIVE ]]; then echo "$state"; else echo WAITING; fi
}

acquire() { # create and wait until ACTIVE; 75 try again, anything else: give up
  local state said='' code unknown=0
  state=$(health) || return 75
  if is_dead "$state"; then
    if [[ $state != ABSENT ]]; then tool delete || return 75; fi
    code=0
    tool create || code=$?
    ((code == 0)) || return "$code"
  fi
  while true; do
    if ! state=$(health); then
      state=UNKNOWN
      ((++unknown < RETRIES)) || return 75
    fi
    [[ $state == ACTIVE ]] && return
    if is_dead "$state"; then
      say "$NAME: $state before it was ready"
      return 75 # FAILED counts as a failure, a preemption does not: see below
    fi
    if [[ $state != "$said" ]]; then say "$NAME: $state"; fi
    said=$state
    sleep "$POLL_SECONDS"
  done
}

keep_log() { # the last lines of every worker, here, before the machines are gone
  mkdir -p "$(dirname "$LOG")"
  each_node log_of >"$LOG" 2>&1 || true
  tail -n 40 "$LOG" >&2
  say "the last lines of every worker are in $LOG"
}
log_of() { ssh_to "$1" all "$(worker "$NOT_SET_UP" log "$RUN" 40)"; }

# Watch until the attempt is over. OUTCOME: done, stopped, stop CODE, retry CODE, lost STATE.
watch() {
  local state lines all=0 node found unreachable=0 ended=0 running codes code worst
  for node in $(nodes); do
    until found=$(addresses "$node"); do sleep "$POLL_SECONDS"; done
    if [[ $found == ABSENT ]]; then
      OUTCOME="lost ABSENT"
      return
    fi
    all=$((all + $(wc -l <<<"$found")))
  done
  while true; do
    sleep "$POLL_SECONDS"
    state=$(health) || continue # not known: the network here may be down, the run may be well
    if is_dead "$state"; then
      OUTCOME="lost $state"
      return
    fi
    if ! lines=$(status_lines) || (($(wc -l <<<"$lines") < all)); then
      if ((++unreachable >= RETRIES * 2)); then
        OUTCOME="lost UNREACHABLE"
        return
      fi
      continue
    fi
    unreachable=0
    running=$(grep -c ' state=running ' <<<"$lines" || true)
    codes=$(sed -nE 's/.* state=exited code=([0-9]+) .*/\1/p; s/.* state=(lost|none) .*/134/p' <<<"$lines")
    worst=0
    for code in $codes; do
      case $code in
        65 | 66 | 70 | 74 | 77 | 78)
          OUTCOME="stop $code" # the others fail because of this one, whatever they say
          return
          ;;
        0) ;;
        *) if ((code > worst)); then worst=$code; fi ;;
      esac
    done
    if ((running == 0)); then
      OUTCOME="retry $worst"
      if ((worst == 0)); then OUTCOME='done'; fi
      if grep -q ' stopped=yes ' <<<"$lines"; then OUTCOME=stopped; fi
      return
    fi
    # Once one has ended the others end by themselves, or never.
    if [[ -n $codes ]]; then
      if ((ended == 0)); then ended=$SECONDS; fi
      if ((SECONDS - ended >= PEER_SECONDS)); then
        OUTCOME="retry $((worst ? worst : 71))"
        return
      fi
    fi
  done
}

if dry; then
  for script in create "setup --ref=$REF" "launch --run=$RUN --ref=$REF" "status --run=$RUN" delete; do
    say "$script"
    read -ra words <<<"$script"
    if [[ $script == launch* ]]; then words+=(-- "${ARGS[@]}"); fi
    tool "${words[@]}"
  done
  exit 0
fi

trap 'say "no longer watching; $RUN goes on. The same command watches again, tpu/stop.sh ends it"; exit 130' INT TERM
failures=0
while true; do
  code=0 OUTCOME='' began=$SECONDS
  acquire || code=$?
  if ((code == 0)); then tool setup "--ref=$REF" || code=$?; fi
  if ((code == 0)); then tool launch "--run=$RUN" "--ref=$REF" -- "${ARGS[@]}" || code=$?; fi
  if ((code == 77 || code == 78)); then finish "$code" "not ready, and trying again would not help"; fi
  if ((code == 0)); then
    began=$SECONDS
    watch
  elif state=$(health) && is_dead "$state" && [[ $state != ABSENT && $state != FAILED ]]; then
    OUTCOME="lost $state" # taken away meanwhile
  fi
  if ((SECONDS - began >= HEALTHY_SECONDS)); then failures=0; fi
  case $OUTCOME in
    done) finish 0 "$RUN is done" ;;
    stopped) finish 75 "$RUN was stopped by tpu/stop.sh; the same command goes on" ;;
    stop*)
      keep_log
      tool stop --retry "--run=$RUN" || true
      finish "${OUTCOME#stop }" "$RUN ended with ${OUTCOME#stop }, which trying again would not change"
      ;;
    lost*)
      say "$NAME is ${OUTCOME#lost }: deleted and created again, $RUN goes on from its last checkpoint"
      tool delete || say "not deleted yet"
      sleep "$BACKOFF_SECONDS"
      continue
      ;;
    retry*)
      code=${OUTCOME#retry }
      keep_log
      tool stop --retry "--run=$RUN" || true
      ;;
  esac
  failures=$((failures + 1))
  if ((failures >= MAX_FAILURES)); then finish "$code" "$failures attempts in a row failed, the last one with $code"; fi
  say "attempt failed with $code ($failures of $MAX_FAILURES); another one follows"
  # 73: the lock of a machine that was taken away is respected until its heartbeat is old.
  if ((code == 73)); then sleep "$LOCK_SECONDS"; else pause "$BACKOFF_SECONDS" "$failures"; fi
done
