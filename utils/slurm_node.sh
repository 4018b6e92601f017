#!/usr/bin/env bash
# A SLURM cluster of this machine alone, for tests of `--cmd slurm`: munged, slurmctld and slurmd, without systemd and
# without control groups, so that it runs in a container; a job's processes are bound to its CPUs, as on most clusters. All
# of it lives in one folder, and leaves a system's own SLURM alone.
#
#   utils/slurm_node.sh start DIR    as root; then: export SLURM_CONF=DIR/slurm.conf
#   utils/slurm_node.sh stop DIR
set -euo pipefail

fail() {
  echo "slurm_node.sh: $1" >&2
  exit "${2:-1}"
}

start() {
  local program
  for program in munged slurmctld slurmd sinfo; do
    command -v "$program" > /dev/null || fail "no $program here; utils/install_apt.sh installs it"
  done
  [ "$(id -u)" -eq 0 ] || fail "needs root"
  [ ! -e "$dir/slurm.conf" ] || fail "$dir is in use; stop it first"
  mkdir -p "$dir/state" "$dir/spool"
  chmod 755 "$dir" # munged wants a folder that nobody else can write to
  head -c 1024 /dev/urandom > "$dir/munge.key"
  chmod 600 "$dir/munge.key"
  configure > "$dir/slurm.conf"
  export SLURM_CONF=$dir/slurm.conf
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" > "$dir/start.log" 2>&1 || fail "munged: $(tail -n 1 "$dir/start.log")"
  slurmctld -c -f "$SLURM_CONF" > "$dir/start.log" 2>&1 || fail "slurmctld: $(tail -n 1 "$dir/start.log")"
  slurmd -N "$node" -f "$SLURM_CONF" > "$dir/start.log" 2>&1 || fail "slurmd: $(tail -n 1 "$dir/start.log")"
  for _ in $(seq 300); do
    if [ "$(sinfo -h -o %t 2> /dev/null)" = idle ]; then
      echo "slurm_node.sh: ready; export SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.1
  done
  fail "the node did not become idle in 30 s; see $dir/*.log"
}

# Ports that nobody listens on, and the processors that slurmd finds.
configure() {
  local ports
  ports=$(python3 -c '
import socket
sockets = [socket.socket() for _ in range(2)]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))')
  cat << CONF
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
SlurmctldPort=${ports% *}
SlurmdPort=${ports#* }
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
TaskPluginParam=autobind=threads
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
MpiDefault=none
ReturnToService=1
KillWait=2
SlurmdParameters=config_overrides
NodeName=$node NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(env -u OMP_NUM_THREADS nproc) RealMemory=$(free -m | awk '/^Mem/ { print $2 }') State=UNKNOWN
PartitionName=all Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
}

stop() {
  local name pid
  [ -e "$dir/slurm.conf" ] || fail "nothing runs in $dir"
  export SLURM_CONF=$dir/slurm.conf
  scancel --quiet --user=root 2> /dev/null || true
  for _ in $(seq 100); do # jobs end before those who end them do
    [ -n "$(squeue -h 2> /dev/null)" ] || break
    sleep 0.1
  done
  for name in slurmd slurmctld munged; do
    pid=$(cat "$dir/$name.pid" 2> /dev/null) || continue
    kill "$pid" 2> /dev/null || continue
    for _ in $(seq 50); do
      kill -0 "$pid" 2> /dev/null || continue 2
      sleep 0.1
    done
    kill -9 "$pid" 2> /dev/null || true
  done
  rm -rf "$dir"
}

[ $# -eq 2 ] || fail "usage: slurm_node.sh start|stop DIR" 2
dir=$(realpath -m "$2") node=node1
case "$1" in
  start) start ;;
  stop) stop ;;
  *) fail "usage: slurm_node.sh start|stop DIR" 2 ;;
esac
