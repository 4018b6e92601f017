# shellcheck shell=bash
# The table of both ends compressed (./run.sh mini --table both): its rows, and stages 4 to 10. Sourced by run.sh.
# shellcheck disable=SC2034,SC2154
#
# A row is AM+LM: a row of --table conformer, which decodes, and one of --table lm, which rescores its lists. What those
# tables have made already is used, the rest is made as they make it, in their folders.
# Written: EXP/table-both/rescore/ and the results there.

rows_of_both=()
for lm in lstm transformer; do
  rows_of_both+=("conformer+$lm" "conformer-w4a8+$lm" "conformer+$lm-kl-node-18x" conformer-{w4a8,w3a8,kl-w3a8,kl-w2.5a8}"+$lm-kl-node-18x"
    conformer-kl-{w3a8,w2.5a8}"+$lm-kl-node-24x")
done

# Runs what makes the rows of another table, for those that the chosen rows need: for_parts conformer|lm FUNCTION...
for_parts() {
  local row part make table=$1 out=$exp/table-$1 seen=" " parts=()
  for row in "${chosen_rows[@]}"; do
    part=${row#*+}
    [ "$1" = lm ] || part=${row%%+*}
    [[ $seen = *" $part "* ]] || parts+=("$part")
    seen+="$part "
  done
  local chosen_rows=("${parts[@]}")
  for make in "${@:2}"; do "$make"; done
}

# The model of a row of another table: model_of TABLE ROW, relative to EXP
model_of() {
  case "$2" in
    conformer) echo "table-$1/am/$2/model.mpq" ;;
    lstm | transformer) echo "table-$1/lm/$2/model.mpq" ;;
    *) echo "table-$1/quant/$2/model.mpq" ;;
  esac
}

# Stage 9: the lists of every acoustic model, rescored by every language model it goes with
rescore_both_rows() {
  local row
  for_parts conformer decode_am_rows
  for row in "${chosen_rows[@]}"; do
    first_pass=$exp/table-conformer/decode/${row%%+*}
    rescore_job "$row" "$exp/table-both/rescore/$row" "$exp/$(model_of lm "${row#*+}")"
  done
  run_jobs
}

# What `mpq results --rows` reads, for the rows that have been rescored, now or before
list_both_rows() {
  local row am lm
  for row in "${table_rows[@]}"; do
    [ -e "$exp/table-both/rescore/$row/hyp-test.txt" ] || continue
    am=$(model_of conformer "${row%%+*}") lm=$(model_of lm "${row#*+}")
    printf '{"system": "%s", "seed": %d, "models": ["%s", "%s"], "columns": {"AM MB": %s, "LM MB": %s}}\n' \
      "$row" "$seed" "$am" "$lm" "$(megabytes "$exp/$am")" "$(megabytes "$exp/$lm")"
  done
}

# Size of a file: megabytes FILE
megabytes() {
  stat -c %s "$1" | awk '{ printf "%.3f", $1 / 1e6 }'
}
