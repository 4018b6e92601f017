# shellcheck shell=bash
# Sourced by every script: makes .venv on first use (from requirements.lock), activates it, sets LC_ALL=C and PATH.
#
#   source path.sh               the first Python 3.10-3.13 found on PATH
#   PYTHON=python3.12 ./run.sh   this one; .venv is made anew if it was made with another
#   MPQ_VENV=DIR ./run.sh        use the environment in DIR as it is; nothing is installed
#
# Safe to kill at any moment (what is half-made is made anew) and to start twice at once (the second waits).

MPQ_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
export MPQ_ROOT
export LC_ALL=C PYTHONUTF8=1
# glibc hands big blocks back to the kernel and takes page faults for the next ones: 4/5 of a training step's system time.
export MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=2000000000
# shellcheck source=utils/venv.sh
source "$MPQ_ROOT/utils/venv.sh"

if [ -n "${MPQ_VENV:-}" ]; then
  venv_adopt "$MPQ_VENV" || return 1
else
  venv_ready "$MPQ_ROOT" || venv_make "$MPQ_ROOT" || return 1
  venv_activate "$MPQ_ROOT/.venv"
fi
