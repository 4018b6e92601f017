#!/usr/bin/env bash
# Makes .venv-k2: CPython 3.9 with k2 1.23.4 and torch 1.13.1, the pair that `--fst k2` and the tests marked k2 use
# where mpq's own environment has no k2. About 2 GB to download, 3.4 GB on disk; safe to kill and to start twice.
#
#   utils/k2_env.sh                           the first python3.9 of PATH and pyenv
#   PYTHON39=/path/python3.9 utils/k2_env.sh  this one
#
# Ends with status 3 where there is no CPython 3.9.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
env=$root/.venv-k2 lock=$root/utils/k2_env.lock
source "$root/utils/venv.sh"
venv_say() { printf 'k2_env.sh: %s\n' "$*" >&2; }

is_python39() { [ "$("$1" -I -c 'import sys; print(*sys.version_info[:2])' 2> /dev/null)" = "3 9" ]; }

# Prints a CPython 3.9; pyenv's own `python3.9` is of no use where no such version is chosen.
find_python39() {
  local python
  for python in "${PYTHON39:-python3.9}" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.9.*/bin/python; do
    if is_python39 "$python"; then
      printf '%s\n' "$python"
      return
    fi
  done
  return 1
}

is_ready() { [ -x "$env/bin/python" ] && [ "$(cat "$env/mpq-mark" 2> /dev/null)" = "$(venv_key "$root" "$lock")" ]; }

# Installs by the project's uv, else by pip: fill PYTHON
fill() {
  "$1" -m venv "$env" || return 1
  if [ -x "$root/.venv/bin/uv" ]; then
    "$root/.venv/bin/uv" pip install --python "$env/bin/python" --require-hashes -r "$lock" || return 1
  else
    "$env/bin/python" -m pip install --progress-bar off --require-hashes -r "$lock" || return 1
  fi
  "$env/bin/python" -c 'import k2'
}

case "${1:-}" in
  -h | --help)
    sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "${BASH_SOURCE[0]}"
    exit
    ;;
  ?*)
    venv_say "unknown option '$1'; see --help"
    exit 2
    ;;
esac
is_ready && exit 0
if ! python=$(find_python39); then
  venv_say "no CPython 3.9 (${PYTHON39:-python3.9}, or one of pyenv's): install one, such as by 'pyenv install 3.9', or set PYTHON39"
  exit 3
fi
exec 9> "$root/.venv-k2.lock" || exit 1
if command -v flock > /dev/null && ! flock -n 9; then
  venv_say "another shell is making $env; waiting for it"
  flock 9
fi
is_ready && exit 0
free=$(($(df -Pk "$root" | awk 'NR == 2 { print $4 }') / 1048576))
if [ "$free" -lt "${MPQ_VENV_GB:-8}" ]; then
  venv_say "$root: $free GB free, making the environment needs ${MPQ_VENV_GB:-8}; free some space and run this again"
  exit 1
fi
if [ -d "$env" ] && [ ! -f "$env/install.log" ]; then
  venv_say "$env is there but this script did not make it; move it away"
  exit 1
fi
rm -rf "$env" && mkdir "$env" && : > "$env/install.log" || exit 1
venv_say "making $env with $python (about 2 GB to download, log in .venv-k2/install.log)"
set -m # a process group of its own, so that Ctrl-C ends all of it
fill "$python" > "$env/install.log" 2>&1 9>&- &
set +m
venv_watch "$!" "$env/install.log" || exit 1
venv_key "$root" "$lock" > "$env/mpq-mark.new" && mv "$env/mpq-mark.new" "$env/mpq-mark" || exit 1
venv_say "ready after $SECONDS s"
