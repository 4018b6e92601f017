# shellcheck shell=bash
# The table of the acoustic model's pieces (./run.sh an4 --table am): its rows, and its part of stages 2 to 10. Sourced
# by run.sh.
# shellcheck disable=SC2034,SC2154
#
# A row is NAME-seedN, trained with seed N more than --seed: full, the recipe's usual system, that without one of its
# pieces, or with another one; conf/table_am.yaml says what each name stands for. full-seed0 is the acoustic model of
# the recipe's usual systems; lhuc decodes with the models of full, tdnnf-lhuc with those of tdnnf. Each row has steps
# of its own named after it: one that was killed is all that is done again.
# Written: EXP/table-am/{am,decode,rescore}/ROW/, RESULTS.md there.

rows_of_am=()
for row in {0..2}; do
  rows_of_am+=({full,lhuc,lhuc-training,no-ivectors,no-speed,specaug,no-average,utterance-norm,xent,tdnnf,tdnnf-lhuc,biphones}-seed"$row")
done

# What a row is made of: sets row_am (the folder of its model), row_seed, row_inputs (the folder of its manifests),
# row_lang, row_conf, row_options (further ones of training) and row_adapt (of decoding)
split_row() {
  row_am=$exp/table-am/am/$1 row_seed=$((seed + ${1##*-seed}))
  row_inputs=$exp/ivectors row_lang=$exp/lang row_conf=conf/am.yaml row_options=()
  row_adapt=()
  [[ $1 != *lhuc* ]] || row_adapt=(--adapt lhuc --transcripts "$exp/data/train/text")
  case "${1%-seed*}" in
    lhuc) row_am=${row_am/lhuc/full} ;;
    no-ivectors) row_inputs=$exp/features row_options=(--model.ivector_dim 0) ;;
    no-speed) row_inputs=$exp/table-am/no-speed/ivectors ;;
    specaug) row_options=(--augment true) ;;
    no-average) row_options=(--fit.average 0) ;;
    utterance-norm) row_options=(--normalization utterance) ;;
    lhuc-training) row_options=(--lhuc 0.5) ;;
    xent) row_options=(--xent 0.1) ;;
    tdnnf-lhuc) row_am=${row_am/-lhuc/} row_conf=conf/am_tdnnf.yaml ;;
    tdnnf) row_conf=conf/am_tdnnf.yaml ;;
    biphones) row_lang=$exp/table-am/lang-biphones ;;
  esac
  [[ $row_am != */full-seed0 ]] || row_am=$exp/am
}

# Whether rows of a name were chosen: chosen NAME
chosen() {
  [[ " ${chosen_rows[*]}" == *" $1-seed"* ]]
}

# Stage 2: features without sped-up copies
make_table_features() {
  chosen no-speed || return 0
  local out=$exp/table-am/no-speed
  step no-speed --in "$exp"/data/{train,dev,test}/cuts.jsonl.gz --out "$out"/features/{train,dev,test}/cuts.jsonl.gz \
    -- mpq features --data "$exp/data" --out "$out/features" --speed 1.0 --nj "$nj"
  step no-speed-ivectors --in "$exp/ivectors/extractor.mpq" "$out"/features/{train,dev,test}/cuts.jsonl.gz --out "$out"/ivectors/{train,dev,test}/cuts.jsonl.gz \
    -- mpq ivector extract --extractor "$exp/ivectors/extractor.mpq" --data "$out/features" --history 2 --out "$out/ivectors" --nj "$nj"
}

# Stage 4
train_table_rows() {
  local row queued=" "
  for row in "${chosen_rows[@]}"; do
    split_row "$row"
    [[ $queued != *" $row_am "* ]] || continue
    queued+="$row_am "
    if [ "$row_am" = "$exp/am" ]; then
      train_acoustic_model
      continue
    fi
    job "${row_am##*/}" --threads 1 --gpu 1 --in "$row_conf" "$row_inputs"/{train,dev}/cuts.jsonl.gz "$row_lang"/{lexicon,phones,units}.txt --out "$row_am"/{model.mpq,seconds} \
      -- timed "$row_am" "$row_am/checkpoint.pt" mpq train-am --config "$row_conf" --train "$row_inputs/train/cuts.jsonl.gz" --dev "$row_inputs/dev/cuts.jsonl.gz" \
        --lang "$row_lang" --out "$row_am" --fit.seed "$row_seed" "${small_am[@]}" "${row_options[@]}" ${max_frames:+--max_frames "$max_frames"}
  done
  run_jobs
}

# Stage 5
decode_table_rows() {
  local row set out
  for row in "${chosen_rows[@]}"; do
    split_row "$row"
    for set in "${sets[@]}"; do
      out=$exp/table-am/decode/$row/$set
      job "$row-$set" --threads 1 --in "$row_am/model.mpq" "$row_lang/HLG.fst" "$row_inputs/$set/cuts.jsonl.gz" --out "$out/nbest.jsonl.gz" \
        -- mpq decode --am "$row_am/model.mpq" --features "$row_inputs/$set/cuts.jsonl.gz" --lang "$row_lang" --out "$out" --nj 1 "${row_adapt[@]}"
    done
  done
  run_jobs
}

# Stage 9: the weight of the n-gram model, tuned on dev
rescore_table_rows() {
  local row first_pass
  for row in "${chosen_rows[@]}"; do
    first_pass=$exp/table-am/decode/$row
    rescore_job "$row" "$exp/table-am/rescore/$row"
  done
  run_jobs
}

# Stage 10: of all rows that there are, whatever --rows
report_table() {
  step table --in conf/table_am.yaml "$exp"/data/{dev,test}/text "$exp"/table-am/rescore/*/hyp-*.txt --out "$exp/table-am/RESULTS.md" \
    -- mpq ablation --exp "$exp" --dir "$exp/table-am" --table conf/table_am.yaml
}
