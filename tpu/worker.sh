#!/usr/bin/env bash
# The part that runs on a worker; the other scripts of this folder call it through ssh.
#
#   worker.sh setup KEY=VALUE...                     uv, Python, packages, run folder; may be repeated
#   worker.sh start KEY=VALUE... -- ARGUMENT...      train, detached; left alone if it runs
#   worker.sh status RUN | log RUN LINES [follow] | stop RUN GRACE_SECONDS yes|no
#
# What is known of a run lies in ~/flaxlm/runs/RUN: pid (of the training process and of its
# supervisor, each with its time of birth, so that no later process is taken for it), exit, stopped, log.
set -euo pipefail

fail() { # fail CODE MESSAGE
  printf 'flaxlm-worker: %s: %s\n' "$(hostname)" "$2" >&2
  exit "$1"
}

read_words() { # KEY=VALUE into the associative array GIVEN, env=KEY=VALUE into ENVIRONMENT
  declare -gA GIVEN=()
  ENVIRONMENT=() REST=()
  while (($#)); do
    if [[ $1 == -- ]]; then
      shift
      REST=("$@")
      return
    elif [[ $1 == env=* ]]; then
      ENVIRONMENT+=("${1#env=}")
    else
      GIVEN[${1%%=*}]=${1#*=}
    fi
    shift
  done
}

# --- set-up ---------------------------------------------------------------------------------------

setup() {
  read_words "$@"
  local tree=$HOME/flaxlm/${GIVEN[sha]} wanted="python ${GIVEN[python]} uv ${GIVEN[uv]}"
  export PATH=$HOME/.local/bin:$PATH
  [[ -d $tree ]] || fail 78 "${GIVEN[sha]} is not here: tpu/sync.sh"
  mount_runs "${GIVEN[bucket]}" "${GIVEN[nfs]}" "${GIVEN[runs]}"
  if [[ -f $tree/.venv/ready && $(<"$tree/.venv/ready") == "$wanted" ]]; then
    echo "$(hostname): ready"
    return
  fi
  if [[ $(uv --version 2>/dev/null || true) != "uv ${GIVEN[uv]}"* ]]; then
    curl -LsSf "https://astral.sh/uv/${GIVEN[uv]}/install.sh" >"$tree/.uv-install.sh"
    UV_INSTALL_DIR=$HOME/.local/bin UV_NO_MODIFY_PATH=1 sh "$tree/.uv-install.sh"
  fi
  # The system's Python is too old on the images that TPU VMs start from; uv brings one.
  rm -rf "$tree/.venv"
  uv venv --managed-python --python "${GIVEN[python]}" "$tree/.venv"
  uv pip install --python "$tree/.venv/bin/python" --constraint "$tree/tpu/constraints.txt" "${tree}[tpu]"
  echo "$wanted" >"$tree/.venv/ready"
  echo "$(hostname): installed"
}

mount_runs() { # mount_runs BUCKET NFS FOLDER
  if [[ -n $1$2 ]] && ! mountpoint -q "$3"; then
    sudo mkdir -p "$3"
    if [[ -n $2 ]]; then
      command -v mount.nfs >/dev/null || sudo apt-get install -y nfs-common
      sudo mount -t nfs -o hard "$2" "$3"
    else
      command -v gcsfuse >/dev/null || install_gcsfuse
      sudo chown "$(id -u):$(id -g)" "$3"
      # Checkpoints become whole by renaming their folder, and every host must see at once what
      # another one wrote: hence the limit on renames and no caching of metadata.
      gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 \
        --metadata-cache-negative-ttl-secs=0 "$1" "$3"
    fi
  fi
  [[ -d $3 && -w $3 ]] || fail 78 "the run folder $3 is not there or cannot be written: set RUNS_BUCKET or RUNS_NFS"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update && sudo apt-get install -y gcsfuse
}

# --- processes ------------------------------------------------------------------------------------

birth() { # when process $1 started, in clock ticks since boot; nothing if it is gone or a zombie
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  read -ra stat <<<"${stat##*) }"
  [[ ${stat[0]} == Z ]] || echo "${stat[19]}"
}

alive() { # alive PID BIRTH
  [[ -n $2 && $(birth "$1") == "$2" ]]
}

read_pids() { # CHILD CHILD_BIRTH LEADER LEADER_BIRTH of the run in folder $1
  CHILD='' CHILD_BIRTH='' LEADER='' LEADER_BIRTH=''
  if [[ -f $1/pid ]]; then read -r CHILD CHILD_BIRTH LEADER LEADER_BIRTH <"$1/pid"; fi
}

supervise() { # supervise FOLDER COMMAND...: run it and write down how it ends
  local folder=$1 child code leader=$BASHPID # in $(...) it would be another one
  shift
  trap : TERM HUP INT # the signal is for the training process, which then saves
  "$@" &
  child=$!
  echo "$child $(birth "$child") $leader $(birth "$leader")" >"$folder/pid.new"
  mv "$folder/pid.new" "$folder/pid"
  while [[ -n $(birth "$child") ]]; do wait "$child" || true; done # a signal ends the waiting, too
  code=0
  wait "$child" || code=$?
  echo "$code" >"$folder/exit.new"
  mv "$folder/exit.new" "$folder/exit"
  echo "=== exit $code $(date -u +%FT%TZ)"
  kill -KILL -- "-$leader" # whatever it left behind, and this
}

start() {
  read_words "$@"
  local folder=$HOME/flaxlm/runs/${GIVEN[run]} tree=$HOME/flaxlm/${GIVEN[sha]} waited=0
  [[ -f $tree/.venv/ready ]] || fail 78 "${GIVEN[sha]} is not set up here: tpu/setup.sh"
  [[ -d ${GIVEN[runs]} ]] || fail 78 "the run folder ${GIVEN[runs]} is not here: tpu/setup.sh"
  mkdir -p "$folder"
  read_pids "$folder"
  if alive "$LEADER" "$LEADER_BIRTH"; then
    echo "$(hostname): ${GIVEN[run]} runs already as process $CHILD"
    return
  fi
  if [[ -f $folder/exit && $(<"$folder/launch") == "${GIVEN[launch]}" ]]; then
    echo "$(hostname): ${GIVEN[run]} was started and ended with $(<"$folder/exit")"
    return
  fi
  echo "${GIVEN[launch]}" >"$folder/launch"
  rm -f "$folder/pid" "$folder/exit" "$folder/stopped"
  # JAX's own default port is one that the default firewall of a TPU network keeps shut.
  export JAX_COORDINATOR_PORT=8476 PYTHONUNBUFFERED=1
  if ((GIVEN[slices] > 1)) && ! in_metadata MEGASCALE_NUM_SLICES; then
    export MEGASCALE_NUM_SLICES=${GIVEN[slices]} MEGASCALE_SLICE_ID=${GIVEN[slice]}
    export MEGASCALE_COORDINATOR_ADDRESS=${GIVEN[coordinator]}
  fi
  for variable in ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"}; do export "${variable?}"; done
  cd "$tree"
  {
    echo "=== start $(date -u +%FT%TZ) ${GIVEN[sha]} on $(hostname)"
    printf '%q ' "${REST[@]}"
    echo
  } >>"$folder/log"
  # A session of its own: the end of the ssh connection does not reach it.
  setsid bash "$HOME/flaxlm/worker.sh" supervise "$folder" \
    "$tree/.venv/bin/python" -m flaxlm.train "${REST[@]}" "--run.directory=${GIVEN[runs]}/${GIVEN[run]}" \
    </dev/null >>"$folder/log" 2>&1 &
  until [[ -f $folder/pid ]]; do
    sleep 0.1
    ((++waited < 100)) || fail 1 "${GIVEN[run]} did not start: see $folder/log"
  done
  read_pids "$folder"
  echo "$(hostname): ${GIVEN[run]} started as process $CHILD"
}

in_metadata() { # slices of one queued resource know each other from the metadata of their machines
  curl -fsS -m 10 -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/tpu-env 2>/dev/null | grep -q "$1"
}

status() {
  local folder=$HOME/flaxlm/runs/$1 state=none code=- stopped=no last=''
  read_pids "$folder"
  if [[ -f $folder/exit ]]; then
    state=exited code=$(<"$folder/exit")
  elif alive "$LEADER" "$LEADER_BIRTH"; then
    state=running
  elif [[ -n $LEADER ]]; then
    state=lost # it ended and nobody wrote down how: the machine restarted
  fi
  if [[ -f $folder/stopped ]]; then stopped=yes; fi
  if [[ -f $folder/log ]]; then last=$(tail -n 1 "$folder/log" | tr -d '\r' | cut -c 1-160); fi
  echo "flaxlm-worker host=$(hostname) run=$1 state=$state code=$code stopped=$stopped pid=${CHILD:--} last=$last"
}

show_log() {
  local file=$HOME/flaxlm/runs/$1/log
  [[ -f $file ]] || fail 66 "no log of $1 here"
  if [[ ${3:-} == follow ]]; then exec tail -n "$2" -F "$file"; fi
  tail -n "$2" "$file"
}

stop() { # stop RUN GRACE RETRY
  local folder=$HOME/flaxlm/runs/$1 deadline=$((SECONDS + $2))
  if [[ $3 == no && -d $folder ]]; then touch "$folder/stopped"; fi
  read_pids "$folder"
  if ! alive "$LEADER" "$LEADER_BIRTH"; then
    echo "$(hostname): $1 does not run"
    return
  fi
  if alive "$CHILD" "$CHILD_BIRTH"; then kill -TERM "$CHILD" 2>/dev/null || true; fi
  while alive "$LEADER" "$LEADER_BIRTH" && ((SECONDS < deadline)); do sleep 0.2; done
  if alive "$LEADER" "$LEADER_BIRTH"; then
    echo "$(hostname): $1 did not end in $2 s: killed"
    echo 137 >"$folder/exit"
    kill -KILL -- "-$LEADER" 2>/dev/null || true
    sleep 0.5
  fi
  if alive "$LEADER" "$LEADER_BIRTH" || alive "$CHILD" "$CHILD_BIRTH"; then fail 1 "$1 is still there"; fi
  echo "$(hostname): $1 stopped with $(cat "$folder/exit")"
}

case ${1:-} in
  setup | start | status | stop | supervise)
    "$@"
    ;;
  log)
    shift
    show_log "$@"
    ;;
  *)
    fail 78 "no command '${1:-}'"
    ;;
esac
