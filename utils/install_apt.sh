#!/usr/bin/env bash
# Installs the system packages that tests compare with: NIST sctk (sclite, hubscr.pl, sc_stats), and SLURM with munge,
# of which tests start a cluster of one node (utils/slurm_node.sh); and a C compiler, with which models on integers are up
# to twice as fast (mpq/quant/compiled.py). No recipe needs them to run.
# Usage: utils/install_apt.sh      Debian and Ubuntu, as root or with sudo
set -euo pipefail

packages=(sctk munge slurm-client slurmctld slurmd gcc libc6-dev)
missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${Status}' "$package" 2> /dev/null)" = "install ok installed" ] || missing+=("$package")
done
if [ "${#missing[@]}" -eq 0 ]; then
  echo "install_apt.sh: ${packages[*]}: already installed"
  exit
fi
if ! command -v apt-get > /dev/null; then
  echo "install_apt.sh: no apt-get here; install by your system's own means: ${missing[*]}" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo > /dev/null || ! sudo -n true 2> /dev/null; then
    echo "install_apt.sh: needs root; ask an administrator for: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo -n)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
export RUNLEVEL=1 # the packages' services are not started: they have no configuration yet
if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" apt-get install -y --no-install-recommends "${missing[@]}"; } \
  > "$log" 2>&1; then
  echo "install_apt.sh: apt-get failed:" >&2
  tail -n 5 "$log" >&2
  exit 1
fi
echo "install_apt.sh: installed ${missing[*]}"
