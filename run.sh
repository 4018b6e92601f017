#!/usr/bin/env bash
# The one entry of the project.
#
#   ./run.sh                        the embedded recipe `mini`, end to end
#   ./run.sh RECIPE [options]       a recipe of egs/; its options: ./run.sh RECIPE --help
#   ./run.sh test [pytest options]  the tests
#   ./run.sh lint                   all linters
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$root/utils/nearest.sh"

recipes() { for f in "$root"/egs/*/run.sh; do [ ! -f "$f" ] || basename "$(dirname "$f")"; done; }

usage() {
  sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "$root/run.sh"
  printf 'recipes:\n'
  for name in $(recipes); do
    printf '  %-12s %s\n' "$name" "$(sed -n '2s/^# *//p' "$root/egs/$name/run.sh")"
  done
}

case "${1:-mini}" in
  -h | --help)
    usage
    exit
    ;;
  -*) set -- mini "$@" ;;
esac
what=${1:-mini}
[ $# -eq 0 ] || shift

case "$what" in
  test)
    source "$root/path.sh"
    cd "$root"
    exec python -m pytest "$@"
    ;;
  lint)
    source "$root/path.sh"
    exec "$root/utils/lint.sh" "$@"
    ;;
esac
if [ ! -f "$root/egs/$what/run.sh" ]; then
  mapfile -t known < <(recipes)
  echo "run.sh: no recipe named '$what'$(did_you_mean "$what" "${known[@]}" test lint); ./run.sh --help lists them" >&2
  exit 2
fi
exec bash "$root/egs/$what/run.sh" "$@"
