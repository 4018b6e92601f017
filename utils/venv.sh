# shellcheck shell=bash
# The Python environment of the project, made and activated. Sourced by path.sh; sets no shell options.
# A finished .venv holds the file `mpq-mark`: what it was made from (lock file, place, interpreter).

venv_say() { printf 'path.sh: %s\n' "$*" >&2; }

# What an environment must have been made from, the lock file and the place: venv_key ROOT [LOCK]
venv_key() { printf '%s %s\n' "$(sha256sum < "${2:-$1/requirements.lock}" | cut -c1-64)" "$1"; }

# Prints "VERSION EXECUTABLE" of an interpreter outside any virtual environment: venv_python_info PYTHON
venv_python_info() {
  "$1" -I -S -c 'import sys
v = sys.version_info
print("%d.%d.%d" % v[:3], getattr(sys, "_base_executable", None) or sys.executable)
sys.exit(not ((3, 10) <= v[:2] <= (3, 13)))' 2> /dev/null
}

# Is .venv there, finished, made from this lock file at this place, by the interpreter asked for? venv_ready ROOT
venv_ready() {
  local root=$1 key python
  [ -x "$root/.venv/bin/python" ] && [ -f "$root/.venv/mpq-mark" ] || return 1
  { read -r key; read -r python; } < "$root/.venv/mpq-mark"
  [ "$key" = "$(venv_key "$root")" ] || return 1
  [ -z "${PYTHON:-}" ] || [ "$python" = "$(venv_python_info "$PYTHON")" ]
}

# Prints "VERSION EXECUTABLE" of the interpreter to use; says what to do where there is none.
venv_find_python() {
  local name info
  if [ -n "${PYTHON:-}" ]; then
    if info=$(venv_python_info "$PYTHON"); then
      printf '%s\n' "$info"
      return
    fi
    venv_say "PYTHON=$PYTHON is ${info:+Python ${info%% *}, }not a working Python 3.10-3.13; set PYTHON to one that is"
    return 1
  fi
  for name in python3 python3.13 python3.12 python3.11 python3.10 python; do
    if info=$(venv_python_info "$name"); then
      printf '%s\n' "$info"
      return
    fi
  done
  venv_say "no Python 3.10-3.13 on PATH (python3 is: $(python3 -V 2>&1 | head -n 1)); install one or set PYTHON=/path/to/python3"
  return 1
}

# Makes .venv, one shell at a time: venv_make ROOT
venv_make() (
  set +e
  root=$1
  exec 9> "$root/.venv.lock" || exit 1
  if command -v flock > /dev/null && ! flock -n 9; then
    venv_say "another shell is making $root/.venv; waiting for it"
    flock 9
  fi
  venv_ready "$root" && exit 0
  info=$(venv_find_python) || exit 1
  if [ -d "$root/.venv" ] && [ ! -f "$root/.venv/mpq-made-by-path.sh" ]; then
    venv_say "$root/.venv is there but path.sh did not make it; move it away, or set MPQ_VENV=$root/.venv to use it as it is"
    exit 1
  fi
  free=$(($(df -Pk "$root" | awk 'NR == 2 { print $4 }') / 1048576))
  if [ "$free" -lt "${MPQ_VENV_GB:-8}" ]; then
    venv_say "$root: $free GB free, the environment needs ${MPQ_VENV_GB:-8}; free some space and run this again"
    exit 1
  fi
  rm -rf "$root/.venv" && mkdir "$root/.venv" && : > "$root/.venv/mpq-made-by-path.sh" || exit 1
  venv_say "first use: making $root/.venv with Python ${info%% *} (about 3 GB to download, log in .venv/install.log)"
  set -m # a process group of its own, so that Ctrl-C ends all of it
  venv_fill "$root" "${info#* }" > "$root/.venv/install.log" 2>&1 &
  set +m
  venv_watch "$!" "$root/.venv/install.log" || exit 1
  printf '%s\n%s\n' "$(venv_key "$root")" "$info" > "$root/.venv/mpq-mark.new" &&
    mv "$root/.venv/mpq-mark.new" "$root/.venv/mpq-mark" || exit 1
  venv_say "ready after $SECONDS s"
)

# Shows that the installation is alive, one line every 20 s, and its last words if it fails: venv_watch PID LOG
venv_watch() {
  local pid=$1 log=$2 next=20 last rc
  trap 'kill -- "-$pid" 2> /dev/null; exit 130' INT TERM HUP
  SECONDS=0
  while kill -0 "$pid" 2> /dev/null; do
    sleep 0.2
    if [ "$SECONDS" -ge "$next" ]; then
      last=$(tail -n 1 "$log" | tr -d '\r' | cut -c1-90)
      [[ $last != "Installed "* ]] || last="All packages are there; compiling them, so that programs start faster"
      venv_say "$SECONDS s, still installing. $last"
      next=$((next + 20))
    fi
  done
  wait "$pid"
  rc=$?
  [ "$rc" -eq 0 ] && return
  venv_say "installing failed (status $rc). The last lines of $log:"
  tail -n 5 "$log" | cut -c1-300 >&2
  return 1
}

# Creates the environment and installs what the lock file names, by uv where it can be had, else by pip; compiled, so that
# each of a recipe's many processes starts a second sooner: venv_fill ROOT PYTHON
venv_fill() {
  local root=$1 base=$2 python=$1/.venv/bin/python lock=$1/requirements.lock uv
  if ! "$base" -m venv "$root/.venv"; then
    echo "$base cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
    return 1
  fi
  uv=$(grep -o '^uv==[^ ;]*' "$lock")
  if [ -z "$uv" ] || ! "$python" -m pip install --quiet "$uv" ||
    ! "$root/.venv/bin/uv" pip install --python "$python" --compile-bytecode -r "$lock"; then
    echo "going on with pip"
    "$python" -m pip install --progress-bar off -r "$lock" || return 1
  fi
  venv_link "$root" "$python"
}

# Makes `import mpq` and the command `mpq` use this checkout: venv_link ROOT PYTHON
venv_link() {
  local site
  site=$("$2" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || return 1
  printf '%s\n' "$1" > "$site/mpq-checkout.pth" || return 1
  # a shell start line: a `#!` line cannot hold a path with spaces
  cat > "$1/.venv/bin/mpq" << 'END' && chmod +x "$1/.venv/bin/mpq"
#!/bin/sh
'''exec' "$(dirname "$(readlink -f "$0")")/python" "$0" "$@"
' '''
import sys

from mpq.cli.main import main

sys.exit(main())
END
}

# venv_activate DIR
venv_activate() {
  export VIRTUAL_ENV=$1
  unset PYTHONHOME
  case ":$PATH:" in
    *":$1/bin:"*) ;;
    *) PATH="$1/bin:$PATH" ;;
  esac
  export PATH
}

# Uses an environment that the user made, with this checkout's package: venv_adopt DIR
venv_adopt() {
  if [ ! -x "$1/bin/python" ]; then
    venv_say "MPQ_VENV=$1 holds no bin/python"
    return 1
  fi
  venv_activate "$(cd "$1" && pwd -P)"
  export PYTHONPATH="$MPQ_ROOT${PYTHONPATH:+:$PYTHONPATH}"
}
