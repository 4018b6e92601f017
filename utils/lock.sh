#!/usr/bin/env bash
# Makes requirements.lock anew from pyproject.toml: exact versions for CPython 3.10-3.13 on Linux x86_64.
# Usage: utils/lock.sh [options of `uv pip compile`, e.g. --upgrade-package scipy]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
source "$root/path.sh"

new=$(mktemp)
trap 'rm -f "$new" "$new.txt"' EXIT
[ ! -e "$root/requirements.lock" ] || cp "$root/requirements.lock" "$new.txt" # versions stay unless asked
uv pip compile --quiet --universal --python-version 3.10 --extra dev --no-header --no-annotate \
  --no-emit-index-url --output-file "$new.txt" "$@" "$root/pyproject.toml" > /dev/null
{
  echo "# Exact versions for CPython 3.10-3.13 on Linux x86_64; path.sh installs from here."
  echo "# Made from pyproject.toml by utils/lock.sh; do not edit by hand."
  # the clauses that every line has say nothing
  sed -E "s/ and platform_machine == 'x86_64'//; s/ and sys_platform == 'linux'//; s/ and python_full_version < '3.14'//
          s/ ; python_full_version < '3.14'( and |$)/ ; \1/; s/ ;  and / ; /; s/ ; $//" "$new.txt"
} > "$new"
cp "$new" "$root/requirements.lock"
echo "requirements.lock: $(grep -c == "$root/requirements.lock") pins"
