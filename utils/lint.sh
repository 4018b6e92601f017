#!/usr/bin/env bash
# Runs every linter over the project and says at the end which ones found something.
# Usage: utils/lint.sh [--fix]      --fix lets ruff mend and format what it can first
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
source "$root/path.sh" || exit 1
cd "$root" || exit 1

if [ "${1:-}" = --fix ]; then
  ruff check --quiet --fix-only . && ruff format --quiet .
fi
failed=()
# lint NAME COMMAND...
lint() {
  local name=$1
  shift
  printf -- '-- %s\n' "$name"
  "$@" || failed+=("$name")
}
mapfile -t scripts < <(git ls-files -co --exclude-standard '*.sh' '.ci/run')
lint "ruff check" ruff check .
lint "ruff format" ruff format --check --output-format concise .
lint "mypy --strict" mypy
lint shellcheck shellcheck --external-sources --source-path="$root" "${scripts[@]}"
lint import-linter lint-imports --no-cache --no-logo

if [ "${#failed[@]}" -gt 0 ]; then
  IFS=,
  echo "lint: found by ${failed[*]}" >&2
  exit 1
fi
echo "lint: all clean"
