# shellcheck shell=bash
# Tables of many systems (--table NAME): choice of their rows, and how long each took. Sourced by the recipes that have some.
# shellcheck disable=SC2154
#
# A recipe has an array rows_of_NAME for each of its tables, and the options `table` and `rows`. With --smoke and without
# --rows, smoke_rows_of_NAME says which rows; unset: all.

table_rows=() chosen_rows=()

# Called by parse_options; a recipe that has more to check defines this anew.
check_options() { check_rows; }

# --table and --rows: sets table_rows, and of them chosen_rows, in the table's order
check_rows() {
  local pattern row found patterns few=smoke_rows_of_$table usual="*"
  local -A chosen=()
  if [ "$table" = none ]; then
    [ -z "$rows" ] || option_die "--rows is for --table; give both or neither"
    return 0
  fi
  local -n rows_of_table=rows_of_$table
  table_rows=("${rows_of_table[@]}")
  if [ "$rows" = list ]; then
    printf '%s\n' "${table_rows[@]}"
    exit 0
  fi
  [ "$smoke" = false ] || usual=${!few:-*}
  IFS=, read -ra patterns <<< "${rows:-$usual}"
  for pattern in "${patterns[@]}"; do
    found=false
    for row in "${table_rows[@]}"; do
      # shellcheck disable=SC2053  # a pattern, not a text
      if [[ $row == $pattern ]]; then chosen[$row]=1 found=true; fi
    done
    [ "$found" = true ] || option_die "--rows: no row fits '$pattern'$(did_you_mean "$pattern" "${table_rows[@]}"); --rows list names them"
  done
  for row in "${table_rows[@]}"; do [ -z "${chosen[$row]:-}" ] || chosen_rows+=("$row"); done
}

# Runs COMMAND, which writes into DIR, and leaves in DIR/seconds how long its result took: DIR is emptied first, unless
# the same command was killed and CHECKPOINT is there, from which it goes on; then what led to that counts too.
# timed DIR CHECKPOINT COMMAND...
timed() {
  local dir=$1 checkpoint=$2 word key began=0 before=0 old=""
  shift 2
  key=$( (printf '%s\n' "$@" && for word; do [ ! -f "$word" ] || cat "$word"; done) | sha256sum)
  [ ! -e "$dir/running" ] || { read -r began before && read -r old; } < "$dir/running"
  if [ -e "$checkpoint" ] && [ "$old" = "$key" ]; then
    before=$(stat -c %.Y "$checkpoint" | awk -v began="$began" -v before="$before" '{ print before + ($1 > began ? $1 - began : 0) }')
  else
    rm -rf "$dir"
    mkdir -p "$dir"
    before=0
  fi
  began=$EPOCHREALTIME
  printf '%s %s\n%s\n' "$began" "$before" "$key" > "$dir/running"
  "$@"
  rm "$dir/running"
  awk -v began="$began" -v before="$before" -v now="$EPOCHREALTIME" 'BEGIN { printf "%.1f\n", before + now - began }' > "$dir/seconds"
}

# Stage 10, results, table, plot and page of all rows that there are, whatever --rows; steps are named after PREFIX, and
# LIST prints what `mpq results --rows` reads: report_rows DIR CONFIG PREFIX LIST [HYPOTHESES...]
report_rows() {
  local dir=$1 texts=("${sets[@]/%//text}") names larger=()
  names=$(IFS=,; echo "${sets[*]}")
  [ -z "$ngram" ] || larger=(--ngram "$ngram")
  if [ "$dry_run" = false ]; then
    mkdir -p "$dir"
    "$4" > "$dir/rows.jsonl.tmp"
    mv "$dir/rows.jsonl.tmp" "$dir/rows.jsonl"
  fi
  step "$3-results" --in "$dir/rows.jsonl" "${texts[@]/#/$exp/data/}" "${@:5}" "$dir"/rescore/*/hyp-*.txt --out "$dir/results.jsonl" \
    -- mpq results "$exp" --systems "$dir" --rows "$dir/rows.jsonl" --sets "$names" --seed "$seed" "${larger[@]}"
  step "$3-report" --in "$dir/results.jsonl" "$2" --out "$dir"/{RESULTS.md,report.html,size_wer.png} \
    -- report "$dir" "$2" "$smoke"
}

# The minutes that DIR/seconds says: minutes DIR
minutes() {
  awk '{ printf "%.2f", $1 / 60 }' "$1/seconds"
}
