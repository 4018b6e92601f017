# shellcheck shell=bash
# The table of every method (./run.sh mini --table lm): its rows, and stages 7 to 10. Sourced by run.sh.
# shellcheck disable=SC2154
#
# A row is LM-METHOD-BITS, BITS an average or a ratio of file sizes (18x), or LM-METHOD-BITS-seedN (trained with seed N
# more than the others'); METHOD is
#   ste admm                   the same bits everywhere, trained by straight-through estimation or by ADMM
#   ste-scratch admm-scratch   the same from random weights, four passes of the text
#   kl hessian nas kl-node     bits by matrix (node: by row of a matrix) within an average; trained as mixed_train says
#   kl-admm hessian-admm nas-admm  the same plans, trained by ADMM
#   random rule                the same with plans that know nothing of the model
# and LM-lossless the smallest model without significant loss on dev, by `mpq search --lossless`.
# Each row has steps of its own named after it in stages 7 (its plan), 8 (training) and 9 (rescoring): one that was
# killed is all that is done again. What a method measures serves all its rows, but an architecture search aims at one
# average. How: conf/table/*.yaml.
# The float models are trained until dev stops improving (the recipe's usual ones are not), so that more training alone
# cannot make a compressed one look good.
# Written: EXP/table-lm/{lm,search/LM-METHOD,plan,quant,rescore}/ and the results there.

rows_of_lm=()
for lm in lstm transformer; do
  rows_of_lm+=("$lm" "$lm"-{ste,admm}-{8,4,3,2,1} "$lm"-{kl,hessian,nas,kl-node}-{4,3,2} "$lm"-kl-node-{18,20,24}x "$lm"-{random,rule}-{3,2}
    "$lm"-{kl,hessian,nas}-admm-2 "$lm"-lossless "$lm"-{ste,admm}-2-seed{1,2})
  [ "$lm" = lstm ] || rows_of_lm+=("$lm"-nas-2-seed{1,2}) # little better than the same bits everywhere
  [ "$lm" != lstm ] || rows_of_lm+=("$lm"-{ste,admm}-scratch-1)
done
mixed_train=ste # or admm
lossless_method=kl-node # or kl

# The parts of a row's name: sets row_lm row_method row_bits row_seed, of mixed bits row_train and row_plan (the file);
# false for a float model, whose row is LM.
split_row() {
  local core=${1%-seed*}
  row_lm=${1%%-*} row_bits=${core##*-} row_method=${core#*-} row_seed=$seed
  row_method=${row_method%-*}
  [ "$core" = "$1" ] || row_seed=$((seed + ${1##*-seed}))
  row_train=$mixed_train
  [[ $row_method != *-admm ]] || row_method=${row_method%-admm} row_train=admm
  row_plan=$exp/table-lm/plan/$row_lm-$row_method-$row_bits.yaml
  [ "$1" != "$row_lm" ]
}

# The row's search (of a lossless row that of lossless_method): sets row_search, and where it keeps what it measured,
# row_costs, and the average that is measured for, row_aim; false for rows without one.
row_search() {
  split_row "$1" && [[ $row_method != @(ste|admm)* ]] || return 1
  [ "$row_method" != lossless ] || row_method=$lossless_method
  local method=${row_method%-node} level=layer
  [ "$row_method" = "$method" ] || level=node
  row_costs=$exp/table-lm/search/$row_lm-$row_method row_aim=4
  row_conf=conf/table/$method.yaml
  [ "$method" != nas ] || row_costs+=-at-$row_bits row_aim=$row_bits
  row_search=(mpq search --config "$row_conf" --method "$method" --level "$level" --model "$exp/table-lm/lm/$row_lm/model.mpq"
    --text "$exp/data/lm/train.txt" --dev "$exp/data/lm/dev.txt" --seed "$seed" --costs "$row_costs/costs.json" "${small_search[@]}")
  [ "$method" != nas ] || row_search+=(--nas.fit.seed "$((seed + 1))")
}

# Stage 7: what each method measures once for a model, then the plan of every row
search_table_bits() {
  local row name budget seen=" " planned=" "
  for row in "${chosen_rows[@]}"; do
    row_search "$row" || continue
    name=${row_costs##*/}
    [[ $seen != *" $name "* ]] || continue
    seen+="$name "
    job "$name" --threads 1 --gpu 1 --in "$row_conf" "$exp/table-lm/lm/$row_lm/model.mpq" "$exp"/data/lm/{train,dev}.txt --out "$row_costs/costs.json" \
      -- timed "$row_costs" "$row_costs/plan.yaml.search/checkpoint.pt" "${row_search[@]}" --bits "$row_aim" --out "$row_costs/plan.yaml"
  done
  run_jobs
  for row in "${chosen_rows[@]}"; do
    row_search "$row" && [[ $row_bits != lossless && $planned != *" $row_plan "* ]] || continue
    planned+="$row_plan "
    budget=(--bits "$row_bits")
    [[ $row_bits != *x ]] || budget=(--ratio "${row_bits%x}")
    job "${row/-admm/}" --threads 1 --in "$row_costs/costs.json" --out "$row_plan" -- "${row_search[@]}" "${budget[@]}" --out "$row_plan"
  done
  run_jobs
}

# The job of a lossless row: search, training and rescoring of ever larger models: find_lossless ROW OUT
find_lossless() {
  local train=conf/table/${1%%-*}-$mixed_train.yaml sets_in=("$exp"/{decode/{dev,test}/nbest.jsonl.gz,data/{dev,test}/text})
  row_search "$1"
  job "$1" --threads 1 --gpu 1 --in "$row_conf" conf/table/lossless.yaml "$train" "$row_costs/costs.json" "$exp"/data/lm/{train,dev}.txt "${sets_in[@]}" \
    --out "$2"/{model.mpq,lossless.yaml,seconds} \
    -- timed "$2" "$2/tried/tried.jsonl" "${row_search[@]}" --config conf/table/lossless.yaml --lossless --out "$2" "${small_lossless[@]}" \
      --train "$mixed_train" --quantize "$train" --quantize.fit.seed "$row_seed" "${small_lm[@]/#--/--quantize.}" \
      --nbest "${sets_in[0]}" --test-nbest "${sets_in[1]}" --ref "${sets_in[2]}" --test-ref "${sets_in[3]}"
}

# Stage 8
train_table_rows() {
  local row out model train plan bits
  for row in "${chosen_rows[@]}"; do
    split_row "$row" || continue
    out=$exp/table-lm/quant/$row model=$exp/table-lm/lm/$row_lm/model.mpq
    if [ "$row_method" = lossless ]; then
      find_lossless "$row" "$out"
      continue
    fi
    case "$row_method" in
      ste* | admm*) train=$row_method plan=() bits=(--bits "$row_bits") ;;
      *) train=$row_train plan=("$row_plan") bits=(--plan "$row_plan") ;;
    esac
    job "$row" --threads 1 --gpu 1 --in "conf/table/$row_lm-$train.yaml" "$model" "${plan[@]}" "$exp"/data/lm/{train,dev}.txt --out "$out"/{model.mpq,seconds} \
      -- timed "$out" "$out/model.mpq.train/checkpoint.pt" mpq quantize --config "conf/table/$row_lm-$train.yaml" --model "$model" "${bits[@]}" \
        --train "${train%-scratch}" --text "$exp/data/lm/train.txt" --dev "$exp/data/lm/dev.txt" --out "$out/model.mpq" --fit.seed "$row_seed" "${small_lm[@]}"
  done
  run_jobs
}

# Stage 9; the first pass is that of the usual table
rescore_table_rows() {
  local row lm
  rescore_job first-pass "$exp/rescore/first-pass"
  for lm in "${lms[@]}"; do
    [[ " ${chosen_rows[*]}" != *" $lm"* ]] || rescore_job "table-$lm" "$exp/table-lm/rescore/$lm" "$exp/table-lm/lm/$lm/model.mpq"
  done
  for row in "${chosen_rows[@]}"; do
    ! split_row "$row" || rescore_job "$row" "$exp/table-lm/rescore/$row" "$exp/table-lm/quant/$row/model.mpq"
  done
  run_jobs
}

# What `mpq results --rows` reads, for the rows that have been rescored, now or before
list_table_rows() {
  local row columns none='"Search min": "–", "Train min": "–"' # from the first row: they say the columns' order
  echo '{"system": "first-pass"}'
  for row in "${table_rows[@]}"; do
    if ! split_row "$row"; then
      [ ! -e "$exp/table-lm/rescore/$row/hyp-test.txt" ] || printf '{"system": "%s", "seed": %d, "columns": {%s}}\n' "$row" "$seed" "$none"
      continue
    fi
    [ -e "$exp/table-lm/rescore/$row/hyp-test.txt" ] || continue
    columns="\"Train min\": $(minutes "$exp/table-lm/quant/$row")"
    ! row_search "$row" || columns="\"Search min\": $(minutes "$row_costs"), $columns"
    printf '{"system": "%s", "seed": %d, "columns": {%s}}\n' "$row" "$row_seed" "$columns"
  done
}
