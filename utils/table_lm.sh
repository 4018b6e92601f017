# shellcheck shell=bash
# The table of every way of compressing language models (--table lm): its rows, and stages 6 to 10. Sourced by the recipes
# that have it, after stages.sh and tables.sh.
# shellcheck disable=SC2154
#
# A row is LM-METHOD-BITS, BITS an average or a ratio of file sizes (18x), or LM-METHOD-BITS-seedN (trained with seed N
# more than the others'); METHOD is
#   ste admm                   the same bits everywhere, trained by straight-through estimation or by ADMM
#   ste-scratch admm-scratch   the same from random weights, as long as a float model
#   kl hessian nas kl-node     bits by matrix (node: by row of a matrix) within an average; trained as mixed_train says
#   kl-admm hessian-admm nas-admm  the same plans, trained by ADMM
#   random rule                the same with plans that know nothing of the model
# and LM-lossless the smallest model without significant loss on the first set, by `mpq search --lossless`.
# Each row has steps of its own named after it in stages 7 (its plan), 8 (training) and 9 (rescoring): one that was
# killed is all that is done again. What a method measures serves all its rows, but an architecture search aims at one
# average. How: see find_conf.
# Written: EXP/table-lm/{lm,search/LM-METHOD,plan,quant,rescore}/ and the results there.
#
# Taken from the recipe, beside what stages.sh takes:
#   lm_units         units of the language models: EXP/lang/tokenizer.model
#   own_floats       true: float models of the table's own, trained as conf/table/LM.yaml says; false: the usual systems'
#   lossless_test    the set on which lossless rows are tested, beside the table: the second of sets

lm_units="" own_floats=false lossless_test=""
rows_of_lm=()
for lm in lstm transformer; do
  rows_of_lm+=("$lm" "$lm"-{ste,admm}-{8,4,3,2,1} "$lm"-{kl,hessian,nas,kl-node}-{4,3,2} "$lm"-kl-node-{18,20,24}x "$lm"-{random,rule}-{3,2}
    "$lm"-{kl,hessian,nas}-admm-2 "$lm"-lossless "$lm"-{ste,admm}-2-seed{1,2})
  [ "$lm" = lstm ] || rows_of_lm+=("$lm"-nas-2-seed{1,2}) # little better than the same bits everywhere
  [ "$lm" != lstm ] || rows_of_lm+=("$lm"-{ste,admm}-scratch-1)
done
# shellcheck disable=SC2034  # the small models of a smoke run reach no high ratios
smoke_rows_of_lm=lstm,transformer,lstm-ste-2,lstm-hessian-admm-2,lstm-kl-node-2,lstm-lossless,transformer-nas-2
mixed_train=ste # or admm
lossless_method=kl-node # or kl

# The parts of a row's name: sets row_lm row_method row_bits row_seed, the float model row_float, of mixed bits row_train
# and row_plan (the file); false for a float model, whose row is LM.
split_row() {
  local core=${1%-seed*}
  row_lm=${1%%-*} row_bits=${core##*-} row_method=${core#*-} row_seed=$seed
  row_method=${row_method%-*}
  [ "$core" = "$1" ] || row_seed=$((seed + ${1##*-seed}))
  row_train=$mixed_train
  [[ $row_method != *-admm ]] || row_method=${row_method%-admm} row_train=admm
  row_plan=$exp/table-lm/plan/$row_lm-$row_method-$row_bits.yaml
  row_float=$exp/lm/$row_lm/model.mpq
  [ "$own_floats" = false ] || row_float=$exp/table-lm/lm/$row_lm/model.mpq
  [ "$1" != "$row_lm" ]
}

# Settings of a row's training or search, in $conf: the recipe's for its language model or for both, those of the usual
# systems for straight-through training, else mini's, where they have been tried: find_conf NAME
find_conf() {
  local usual=()
  [ "$1" != ste ] || usual=(conf/quantize.yaml)
  for conf in conf/table/"$row_lm-$1".yaml conf/table/"$1".yaml "${usual[@]}" ../mini/conf/table/"$1".yaml; do
    if [ -e "$conf" ]; then return; fi
  done
}

# The row's search (of a lossless row that of lossless_method): sets row_search, and where it keeps what it measured,
# row_costs, and the average that is measured for, row_aim; false for rows without one.
row_search() {
  split_row "$1" && [[ $row_method != @(ste|admm)* ]] || return 1
  [ "$row_method" != lossless ] || row_method=$lossless_method
  local conf method=${row_method%-node} level=layer
  [ "$row_method" = "$method" ] || level=node
  row_costs=$exp/table-lm/search/$row_lm-$row_method row_aim=4
  find_conf "$method" && row_conf=$conf
  [ "$method" != nas ] || row_costs+=-at-$row_bits row_aim=$row_bits
  row_search=(mpq search --config "$row_conf" --method "$method" --level "$level" --model "$row_float"
    --text "$exp/data/lm/train.txt" --dev "$exp/data/lm/dev.txt" --seed "$seed" --costs "$row_costs/costs.json")
  [ "$smoke" = false ] || row_search+=(--tokens 500 --hessian.max_probes 4 --nas.fit.epochs 1)
  [ "$method" != nas ] || row_search+=(--nas.fit.seed "$((seed + 1))")
}

# The language models of the chosen rows: sets lms
find_lms() {
  local lm
  lms=()
  for lm in lstm transformer; do [[ " ${chosen_rows[*]}" != *" $lm"* ]] || lms+=("$lm"); done
}

# Stage 6
train_table_lms() {
  local lms
  find_lms
  if [ "$own_floats" = true ]; then
    train_language_models "$lm_units" conf/table "$exp/table-lm/lm" table-
  else
    train_language_models "$lm_units"
  fi
}

# Stage 7: what each method measures once for a model, then the plan of every row
search_table_bits() {
  local row name budget seen=" " planned=" "
  for row in "${chosen_rows[@]}"; do
    row_search "$row" || continue
    name=${row_costs##*/}
    [[ $seen != *" $name "* ]] || continue
    seen+="$name "
    job "$name" --threads 1 --gpu 1 --in "$row_conf" "$row_float" "$exp"/data/lm/{train,dev}.txt --out "$row_costs/costs.json" \
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
  local conf train lists=$exp/decode${ngram:+-$ngram} dev=${sets[0]} test=${lossless_test:-${sets[1]}} loss=()
  row_search "$1"
  find_conf "$mixed_train" && train=$conf
  find_conf lossless
  local sets_in=("$lists"/{"$dev","$test"}/nbest.jsonl.gz "$exp"/data/{"$dev","$test"}/text)
  [ "$smoke" = false ] || loss=(--max-perplexity-increase 1000000)
  job "$1" --threads 1 --gpu 1 --in "$row_conf" "$conf" "$train" "$row_costs/costs.json" "$exp"/data/lm/{train,dev}.txt "${sets_in[@]}" \
    --out "$2"/{model.mpq,lossless.yaml,seconds} \
    -- timed "$2" "$2/tried/tried.jsonl" "${row_search[@]}" --config "$conf" --lossless --out "$2" "${loss[@]}" \
      --train "$mixed_train" --quantize "$train" --quantize.fit.seed "$row_seed" "${small_lm[@]/#--/--quantize.}" \
      --nbest "${sets_in[0]}" --test-nbest "${sets_in[1]}" --ref "${sets_in[2]}" --test-ref "${sets_in[3]}"
}

# Stage 8
train_table_rows() {
  local row out train plan bits conf
  for row in "${chosen_rows[@]}"; do
    split_row "$row" || continue
    out=$exp/table-lm/quant/$row
    if [ "$row_method" = lossless ]; then
      find_lossless "$row" "$out"
      continue
    fi
    case "$row_method" in
      ste* | admm*) train=$row_method plan=() bits=(--bits "$row_bits") ;;
      *) train=$row_train plan=("$row_plan") bits=(--plan "$row_plan") ;;
    esac
    find_conf "$train"
    job "$row" --threads 1 --gpu 1 --in "$conf" "$row_float" "${plan[@]}" "$exp"/data/lm/{train,dev}.txt --out "$out"/{model.mpq,seconds} \
      -- timed "$out" "$out/model.mpq.train/checkpoint.pt" mpq quantize --config "$conf" --model "$row_float" "${bits[@]}" \
        --train "${train%-scratch}" --text "$exp/data/lm/train.txt" --dev "$exp/data/lm/dev.txt" --out "$out/model.mpq" --fit.seed "$row_seed" "${small_lm[@]}"
  done
  run_jobs
}

# Where a row's hypotheses lie: sets row_out. Those of the first pass and of the usual float models are the usual table's.
find_row_out() {
  row_out=$exp/table-lm/rescore/$1
  split_row "$1" || [ "$own_floats" = true ] || row_out=$exp/rescore/$1
}

# Stage 9; the first pass is that of the usual table
rescore_table_rows() {
  local row lm prefix="" lms
  find_lms
  rescore_job first-pass "$exp/rescore/first-pass"
  [ -z "$ngram" ] || rescore_job "$ngram" "$exp/rescore/$ngram"
  [ "$own_floats" = false ] || prefix=table-
  for lm in "${lms[@]}"; do
    find_row_out "$lm"
    rescore_job "$prefix$lm" "$row_out" "$row_float"
  done
  for row in "${chosen_rows[@]}"; do
    find_row_out "$row"
    ! split_row "$row" || rescore_job "$row" "$row_out" "$exp/table-lm/quant/$row/model.mpq"
  done
  run_jobs
}

# The folders of the systems that have been rescored, now or before (--dry-run: would have been), in the table's order: sets
# row_folders
find_row_folders() {
  local row
  row_folders=("$exp/rescore/first-pass")
  [ -z "$ngram" ] || row_folders+=("$exp/rescore/$ngram")
  for row in "${table_rows[@]}"; do
    find_row_out "$row"
    if [ -e "$row_out/hyp-${sets[-1]}.txt" ] || [[ $dry_run = true && " ${chosen_rows[*]} " = *" $row "* ]]; then row_folders+=("$row_out"); fi
  done
}

# What `mpq results --rows` reads of these
list_table_rows() {
  local folder row columns none='"Search min": "–", "Train min": "–"' # from the first row: they say the columns' order
  find_row_folders
  for folder in "${row_folders[@]}"; do
    row=${folder##*/}
    if [[ $row = @(first-pass|"$ngram") ]]; then
      printf '{"system": "%s"}\n' "$row"
      continue
    fi
    columns=$none
    if split_row "$row"; then
      columns="\"Train min\": $(minutes "$exp/table-lm/quant/$row")"
      ! row_search "$row" || columns="\"Search min\": $(minutes "$row_costs"), $columns"
    fi
    printf '{"system": "%s", "seed": %d, "columns": {%s}}\n' "$row" "$row_seed" "$columns"
  done
}

# Stages 6 to 9: the table's, or those of the usual systems
language_model_stages() {
  if [ "$table" = lm ]; then
    if stage 6; then train_table_lms; fi
    if stage 7; then search_table_bits; fi
    if stage 8; then train_table_rows; fi
    if stage 9; then rescore_table_rows; fi
  else
    language_model_systems "$lm_units"
  fi
}

# Stage 10; sets row_folders, too
report_table_lm() {
  find_row_folders
  report_rows "$exp/table-lm" conf/table_lm.yaml table list_table_rows "$exp"/rescore/*/hyp-*.txt
}
