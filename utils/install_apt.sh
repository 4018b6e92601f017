#!/usr/bin/env bash
# Installs the system packages that tests compare with: NIST sctk (sclite, sc_stats). No recipe needs them.
# Usage: utils/install_apt.sh      Debian and Ubuntu, as root or with sudo
set -euo pipefail

packages=(sctk)
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
if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" apt-get install -y --no-install-recommends "${missing[@]}"; } \
  > "$log" 2>&1; then
  echo "install_apt.sh: apt-get failed:" >&2
  tail -n 5 "$log" >&2
  exit 1
fi
echo "install_apt.sh: installed ${missing[*]}"
