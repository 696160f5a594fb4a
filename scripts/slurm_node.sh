#!/usr/bin/env bash
# A SLURM of this machine alone, for trying sweeps and for the tests marked slurm. Debian or Ubuntu, as root.
#
#   scripts/slurm_node.sh start [NODES]   install what is missing, start, wait until the nodes are idle
#   scripts/slurm_node.sh stop            end the daemons; the packages stay
#
# Each of the NODES (1 unless given) has all of this machine's cores, on a port of its own. Configuration, state and
# logs are under /run/attnseg-slurm: a cluster that this machine belongs to is left alone.
set -euo pipefail
home=/run/attnseg-slurm
export SLURM_CONF=$home/slurm.conf DEBIAN_FRONTEND=noninteractive

fail() {
    echo "error: $1: $2; $3" >&2
    exit 5
}

stop() {
    if [ -f "$SLURM_CONF" ]; then
        timeout 10 scancel --full --signal=KILL --state=running >/dev/null 2>&1 || true
    fi
    for file in "$home"/*.pid; do
        [ -f "$file" ] && kill "$(cat "$file")" 2>/dev/null || true
    done
    for _ in $(seq 100); do # a second start needs the ports
        alive=0
        for file in "$home"/*.pid; do
            [ -f "$file" ] && kill -0 "$(cat "$file")" 2>/dev/null && alive=1
        done
        [ "$alive" -eq 0 ] && break
        sleep 0.1
    done
    rm -rf "$home"
}

install_packages() {
    local missing=()
    for package in slurmctld slurmd slurm-client munge; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    apt-get -qq update
    apt-get -qq install --no-install-recommends --yes "${missing[@]}" >/dev/null
}

start_munge() { # a running munged is used as it is
    munge --no-input >/dev/null 2>&1 && return
    install -d -o munge -g munge -m 755 /run/munge
    runuser -u munge -- munged --pid-file=/run/munge/attnseg.pid
    ln -s /run/munge/attnseg.pid "$home/munged.pid"
}

configure() {
    local cores memory
    cores=$(nproc)
    memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 * 9 / 10))
    cat >"$home/slurm.conf" <<CONF
ClusterName=attnseg
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$home/state
SlurmctldPidFile=$home/slurmctld.pid
SlurmctldLogFile=$home/slurmctld.log
SlurmdPidFile=$home/slurmd-%n.pid
SlurmdLogFile=$home/slurmd-%n.log
SlurmdSpoolDir=$home/spool-%n
# Neither cgroups nor accounting: both need more than a container has.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# As on clusters: jobs can be requeued, and have a moment between SIGTERM and SIGKILL.
JobRequeue=1
KillWait=30
SchedulerParameters=sched_interval=2
ReturnToService=2
SlurmdTimeout=60
NodeName=node[1-$nodes] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[16821-$((16820 + nodes))] CPUs=$cores RealMemory=$memory
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    echo "CgroupPlugin=cgroup/v1" >"$home/cgroup.conf"
}

start() {
    nodes=$1
    [ "$(id -u)" -eq 0 ] || fail "scripts/slurm_node.sh" "SLURM's daemons need root" "run it as root"
    command -v apt-get >/dev/null || fail "scripts/slurm_node.sh" "no apt-get" "use Debian or Ubuntu, in a container say"
    stop
    install_packages
    install -d "$home" "$home/state"
    configure
    start_munge
    slurmctld
    for number in $(seq "$nodes"); do
        slurmd -N "node$number"
    done
    for _ in $(seq 300); do
        idle=$(sinfo --noheader --Node --states=idle 2>/dev/null | wc -l)
        if [ "$idle" -eq "$nodes" ]; then
            sinfo
            echo "Ready; for other commands: export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.1
    done
    tail -n 5 "$home"/*.log >&2
    fail "SLURM" "the nodes are not idle after 30 s" "see $home/*.log"
}

case "${1:-}" in
start) start "${2:-1}" ;;
stop) stop ;;
*)
    echo "usage: scripts/slurm_node.sh start [NODES] | stop" >&2
    exit 2
    ;;
esac
