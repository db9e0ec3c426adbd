# shellcheck shell=bash source-path=SCRIPTDIR
# What the scripts of this folder share: options, configuration, gcloud with retries, all workers at
# once. Messages go to stderr, answers to stdout.
set -euo pipefail

TPU_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO_DIR=$(dirname "$TPU_DIR")
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
exec 3>&1 # where a dry run prints, even from inside $(...)

say() { printf 'tpu: %s\n' "$*" >&2; }

# die CODE MESSAGE: the codes are those of flaxlm itself: 77 not allowed, 78 wrong configuration,
# 75 try again later, 1 anything else.
die() {
  local code=$1
  shift
  say "$*"
  exit "$code"
}

# The comment at the head of a script is its help page.
help_page() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# options "NAME NAME ..." "$@": --NAME=VALUE sets OPT_NAME, --NAME sets it to yes, and what follows
# -- goes into ARGS.
options() {
  local allowed=" dry-run help $1 " name value
  shift
  # shellcheck disable=SC2034 # read by the scripts
  ARGS=() DRY_RUN=no
  while (($#)); do
    case $1 in
      --)
        shift
        # shellcheck disable=SC2034
        ARGS=("$@")
        break
        ;;
      --*)
        name=${1%%=*} value=yes
        name=${name#--}
        [[ $1 == *=* ]] && value=${1#*=}
        [[ $allowed == *" $name "* ]] || die 78 "no option $1; $(basename "$0") --help shows what there is"
        printf -v "OPT_${name//-/_}" %s "$value"
        ;;
      *) die 78 "$1 is no option; $(basename "$0") --help shows what there is" ;;
    esac
    shift
  done
  if [[ -n ${OPT_help:-} ]]; then
    help_page
    exit 0
  fi
  DRY_RUN=${OPT_dry_run:-no}
  load_config
}

dry() { [[ $DRY_RUN == yes ]]; }

load_config() {
  local file=${FLAXLM_TPU_CONFIG:-$TPU_DIR/config.env} name
  [[ -r $file ]] || die 78 "no $file: copy tpu/config.env.example there and fill it in"
  # shellcheck source=config.env.example
  source "$file"
  for name in PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION SPOT SLICES RUNS_DIR RUN REF \
    PYTHON_VERSION UV_VERSION GRACE_SECONDS POLL_SECONDS BACKOFF_SECONDS RETRY_SECONDS RETRIES \
    MAX_FAILURES HEALTHY_SECONDS PEER_SECONDS LOCK_SECONDS; do
    [[ -n ${!name:-} ]] || die 78 "$file: $name is not set; config.env.example says what it is"
  done
  for name in VALID_UNTIL RUNS_BUCKET RUNS_NFS CREATE_FLAGS SSH_FLAGS WORKER_ENV; do
    declare -p "$name" &>/dev/null || die 78 "$file: $name is missing (it may be empty)"
  done
  RUN=${OPT_run:-$RUN} REF=${OPT_ref:-$REF}
  [[ $SPOT == yes || $SPOT == no ]] || die 78 "$file: SPOT=$SPOT must be yes or no"
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || die 78 "$file: SLICES=$SLICES must be a whole number from 1"
  # shellcheck disable=SC2153
  [[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    die 78 "$file: NAME=$NAME must be lower-case letters, digits and hyphens, a letter first"
  [[ $RUN =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
    die 78 "the run name '$RUN' must be letters, digits, dots, hyphens and underscores"
  [[ $RUNS_DIR == /* ]] || die 78 "$file: RUNS_DIR=$RUNS_DIR must be absolute"
  [[ -z $RUNS_BUCKET || -z $RUNS_NFS ]] || die 78 "$file: RUNS_BUCKET or RUNS_NFS, not both"
  for name in ${WORKER_ENV[@]+"${WORKER_ENV[@]}"}; do
    [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die 78 "$file: WORKER_ENV: '$name' is not NAME=VALUE"
  done
  RUNS_BUCKET=${RUNS_BUCKET#gs://}
}

# The commit that REF names; what runs on the workers is always a commit.
commit() {
  git -C "$REPO_DIR" rev-parse --verify --quiet "$REF^{commit}" ||
    die 78 "REF=$REF names no commit of $REPO_DIR"
}

pause() { sleep "$(awk -v base="$1" -v n="$2" 'BEGIN { s = base * 2 ^ (n - 1); print s < 600 ? s : 600 }')"; }

gc() { # gcloud compute tpus ..., printed only in a dry run
  local line=(gcloud compute tpus "$@" "--project=$PROJECT" "--zone=$ZONE" --quiet)
  if dry; then
    printf '%q ' "${line[@]}" >&3
    printf '\n' >&3
  else
    "${line[@]}"
  fi
}

# describe KIND NAME FLAG...: what gcloud says, or ABSENT if there is no such thing. An answer that
# is neither (no network, no permission) is never taken for an absence: it fails.
describe() {
  local kind=$1 name=$2 try errors="$SCRATCH/describe.$BASHPID"
  shift 2
  for ((try = 1; try <= RETRIES; try++)); do
    if gc "$kind" describe "$name" "$@" 2>"$errors"; then
      if dry; then echo ABSENT; fi
      return
    fi
    if grep -q NOT_FOUND "$errors" && grep -qF "/$name'" "$errors"; then
      echo ABSENT
      return
    fi
    if grep -qE 'PERMISSION_DENIED|UNAUTHENTICATED' "$errors"; then break; fi
    pause "$RETRY_SECONDS" "$try"
  done
  cat "$errors" >&2
  say "the state of $name is not known"
  return 1
}

queue_state() { describe queued-resources "$NAME" '--format=value(state.state)'; }
node_state() { describe tpu-vm "$1" '--format=value(state)'; }

# Addresses of the workers of a node, one per line.
addresses() {
  if dry; then
    echo ADDRESS # nothing is asked
  else
    describe tpu-vm "$1" '--flatten=networkEndpoints[]' '--format=csv[no-heading](networkEndpoints.ipAddress)'
  fi
}

nodes() {
  if ((SLICES == 1)); then
    echo "$NAME"
  else
    seq -f "$NAME-%.0f" 0 "$((SLICES - 1))"
  fi
}

# each_node FUNCTION ARGUMENT...: FUNCTION NODE INDEX ARGUMENT... for all nodes at once.
each_node() {
  local function=$1 node index=0 pid failed=0 pids=()
  shift
  for node in $(nodes); do
    "$function" "$node" "$index" "$@" &
    pids+=($!)
    index=$((index + 1))
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=$?; done
  return "$failed"
}

ssh_to() { # ssh_to NODE WORKER COMMAND
  gc tpu-vm ssh "$1" "--worker=$2" "--command=$3" ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"}
}

scp_to() { # scp_to NODE WORKER FILE TARGET
  gc tpu-vm scp "$3" "$1:$4" "--worker=$2" ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"}
}

# on_workers FUNCTION NODE ARGUMENT...: FUNCTION NODE all ARGUMENT..., and where that fails, FUNCTION
# NODE WORKER ARGUMENT... for each worker by itself, up to RETRIES times. What is done must bear
# being done twice.
on_workers() {
  local function=$1 node=$2 found worker count try code
  shift 2
  "$function" "$node" all "$@" && return
  say "$node: not every worker did it; one by one"
  found=$(addresses "$node") || return 1
  [[ $found != ABSENT ]] || { say "$node is gone" && return 1; }
  count=$(wc -l <<<"$found")
  for ((worker = 0; worker < count; worker++)); do
    for ((try = 1; try <= RETRIES; try++)); do
      code=0
      "$function" "$node" "$worker" "$@" || code=$?
      ((code == 0)) && continue 2
      ((code == 77 || code == 78)) && return "$code" # said by flaxlm: trying again changes nothing
      pause "$RETRY_SECONDS" "$try"
    done
    say "$node: worker $worker failed $RETRIES times, the last time with $code"
    return 1
  done
}

quoted() { # words as one command line that a shell reads back unchanged
  printf '%q ' "$@"
}

# worker WHERE_NOT_SET_UP ARGUMENT...: the command line that calls worker.sh on a worker.
worker() {
  local otherwise=$1
  shift
  echo "if [ -f flaxlm/worker.sh ]; then bash flaxlm/worker.sh $(quoted "$@"); else $otherwise; fi"
}
# shellcheck disable=SC2034,SC2016
NOT_SET_UP='echo "$(hostname): not set up: tpu/setup.sh" >&2; exit 78'

# Status lines of all workers: flaxlm-worker host=... state=... code=... One attempt, no retries.
status_lines() { each_node status_of | grep '^flaxlm-worker '; }
status_of() {
  # shellcheck disable=SC2016
  ssh_to "$1" all "$(worker 'echo "flaxlm-worker host=$(hostname) state=none code=- stopped=no not set up"' \
    status "$RUN")" 2>"$SCRATCH/status.$2"
}
