# shellcheck shell=bash
# Tables of quantized acoustic models (--table conformer|ssl): their rows, and stages 4 to 10. Sourced by the recipes that
# have them, after stages.sh and tables.sh. ssl is wav2vec 2.0 or HuBERT.
# shellcheck disable=SC2034,SC2154
#
# A row is MODEL-wWaA: weights of W bits, activations of A (32: float), trained by straight-through estimation from the
# float model.
#   MODEL-METHOD-wWaA   bits of every matrix by METHOD, W on average: kl hessian one-stage, or by a rule; hessian-plain:
#                       traces are summed over a matrix, as the paper writes, not averaged over its weights; encoder: 1 bit
#                       for the linear layers of the encoder, 4 for convolutions and output (arXiv 2505.21245)
#   ...-KIND            rounded: not trained any further; pass1: what a one-stage search leaves, with its weights and
#                       learned scales, not trained any further; asym: asymmetric table, with zero points;
#                       cotrain: trained together with a higher precision of the same weights; alone, cotrain-alone:
#                       without the float model's predictions, as the paper trains; long-...: for long_passes passes
#   ...-seedN           trained with seed N more than the others'
# Each row has steps of its own named after it in stages 7 (its plan), 8 (training) and 9 (decoding): one that was killed
# is all that is done again. How: conf/table/MODEL-{search,ste}.yaml, and MODEL-one-stage.yaml for what a one-stage row
# trains otherwise, once its bits are found.
# Written: EXP/table-MODEL/{am,search,plan,quant,decode,rescore}/ and the results there.
#
# Taken from the recipe, beside what stages.sh takes:
#   table, out              NAME, EXP/table-NAME
#   am_search am_train      further options of searching bits and of training on few bits

rows_of_conformer=(conformer conformer-w{8,4,3,2,1}a8 conformer-w{8,4}a4 conformer-w{8,4,2}a32 conformer-w4a8-{rounded,asym} conformer-w2a8-asym
  conformer-w{2,1}a8-{cotrain,alone,cotrain-alone} conformer-{rule,kl}-w5a8 conformer-{kl,hessian,hessian-plain,one-stage}-w{3,2.5}a8
  conformer-{kl,hessian}-w3a8-rounded conformer-one-stage-w{3,2.5}a8-pass1 conformer-w8a8-long-alone conformer-encoder-w1.5a8-long{,-alone,-cotrain-alone})
rows_of_ssl=(ssl ssl-w{8,4,3,2}a8 ssl-w{8,4,3,2}a32 ssl-{kl,hessian,hessian-plain,one-stage}-w{3.5,3}a8 ssl-{kl,hessian,one-stage}-w3.5a32
  ssl-{kl,hessian}-w3.5a8-rounded ssl-one-stage-w{3.5,3}a8-pass1 ssl-{kl,hessian,one-stage}-w3.5a8-seed{1,2})
am_row='^([a-z]+)-((kl|hessian|hessian-plain|one-stage|rule|encoder)-)?w([0-9.]+)a([0-9]+)(-(rounded|pass1|asym|long|(long-)?(cotrain|alone|cotrain-alone)))?(-seed([0-9]+))?$'
encoder_rule='*conv*=+20,join*=+20,output*=+20'
long_passes=3 # times as many as conf/table/MODEL-ste.yaml has
am_search=() am_train=()

# The parts of a row's name: sets row_method (empty: the same bits everywhere) row_bits row_a_bits row_kind row_seed, the
# bits that its method chooses from, the method and, but for 8, the bits of activations as options of mpq search, row_how
# and row_a, and where the method keeps what it measured, row_search; false for the float model, whose row is MODEL.
split_am_row() {
  [[ $1 =~ $am_row ]] || return 1
  row_method=${BASH_REMATCH[3]} row_bits=${BASH_REMATCH[4]} row_a_bits=${BASH_REMATCH[5]} row_kind=${BASH_REMATCH[7]}
  row_seed=$((seed + ${BASH_REMATCH[11]:-0})) row_candidates=2,4,8 row_a=()
  [ "$row_a_bits" = 8 ] || row_a=(--a-bits "$row_a_bits")
  [ "$row_bits" != 5 ] || row_candidates=4,8 # the paper's mixture
  [ "$row_method" != encoder ] || row_candidates=1,4
  row_search=$out/search/$table-$row_method-$row_candidates
  [ "$row_method" != one-stage ] || row_search=$out/search/${1/-pass1/} # aims at one average, and leaves weights
  case "$row_method" in
    *-plain) row_how=(--method "${row_method%-plain}" --hessian.normalize false) ;;
    encoder) row_how=(--method rule --rule "$encoder_rule") ;;
    *) row_how=(--method "$row_method") ;;
  esac
}

# What a row is searched and trained with: sets row_data
am_row_data() {
  find_cuts train && row_data=(--features "$cuts")
  find_cuts "${sets[0]}" && row_data+=(--dev "$cuts" --lang "$exp/lang")
}

# Stage 7: what a method measures once for the model (one-stage: for every row), then the plan of every row
search_am_bits() {
  local row search seen=" " conf=conf/table/$table-search.yaml model=$out/am/$table/model.mpq again
  am_row_data
  for row in "${chosen_rows[@]}"; do
    split_am_row "$row" && [ -n "$row_method" ] || continue
    # a measurement serves all averages; one-stage: part of an epoch is other data than those that training goes on with
    again=(--seed "$seed" --costs "$row_search/costs.json" --bits "${row_candidates##*,}")
    [ "$row_method" != one-stage ] || again=(--one_stage.fit.seed $((row_seed + 2)) --bits "$row_bits" "${row_a[@]}")
    search=(mpq search --config "$conf" "${row_how[@]}" --candidates "$row_candidates" --model "$model" "${row_data[@]}" "${am_search[@]}")
    [[ $seen = *" $row_search "* ]] || job "${row_search##*/}" --threads 1 --gpu 1 --memory "$memory" --in "$conf" "$model" "${row_data[@]:1:1}" --out "$row_search/plan.yaml" \
      -- timed "$row_search" "$row_search/plan.yaml.search/checkpoint.pt" "${search[@]}" "${again[@]}" --out "$row_search/plan.yaml"
    seen+="$row_search "
  done
  run_jobs
  for row in "${chosen_rows[@]}"; do
    split_am_row "$row" && [ -n "$row_method" ] && [ "$row_method" != one-stage ] || continue
    job "$row" --threads 1 --in "$row_search/costs.json" --out "$out/plan/$row.yaml" -- mpq search --config "$conf" "${row_how[@]}" \
      --candidates "$row_candidates" --model "$model" "${row_data[@]}" "${am_search[@]}" --seed "$seed" --costs "$row_search/costs.json" \
      --bits "$row_bits" "${row_a[@]}" --out "$out/plan/$row.yaml"
  done
  run_jobs
}

# The epochs that a configuration asks for
epochs_of() {
  sed -n 's/^fit:.*epochs: *\([0-9]*\).*/\1/p' "$1"
}

# Stage 8
train_am_rows() {
  local row quant train options inputs
  am_row_data
  for row in "${chosen_rows[@]}"; do
    split_am_row "$row" || continue
    inputs=("conf/table/$table-ste.yaml" "$out/am/$table/model.mpq" "${row_data[@]:1:1}")
    quant=$out/quant/$row train=ste options=(--bits "$row_bits" --a-bits "$row_a_bits")
    case "$row_method" in
      "") ;;
      one-stage)
        inputs+=("conf/table/$table-one-stage.yaml" "$row_search"/plan.yaml{,.search/latent.mpq})
        options=(--config "${inputs[-3]}" --plan "${inputs[-2]}" --init "${inputs[-1]}")
        ;;
      *) inputs+=("$out/plan/$row.yaml") options=(--plan "$out/plan/$row.yaml") ;;
    esac
    case "$row_kind" in
      rounded | pass1) train=none ;;
      asym) options+=(--table asym) ;;
      *cotrain*) options+=(--cotrain_bits $((2 * ${row_bits%.*}))) ;;&
      long*) options+=(--fit.epochs $((long_passes * $(epochs_of "conf/table/$table-ste.yaml")))) ;;&
      *alone) options+=(--distill 0) ;;
    esac
    job "$row" --threads 1 --gpu 1 --memory "$memory" --in "${inputs[@]}" --out "$quant"/{model.mpq,seconds} \
      -- timed "$quant" "$quant/model.mpq.train/checkpoint.pt" mpq quantize --config "conf/table/$table-ste.yaml" --model "$out/am/$table/model.mpq" \
        --train "$train" "${options[@]}" "${row_data[@]}" --out "$quant/model.mpq" --fit.seed "$row_seed" "${small_am[@]}" "${am_train[@]}" ${max_frames:+--max_frames "$max_frames"}
  done
  run_jobs
}

# Stage 4: the float model
train_table_am() {
  train_float_am "$table" "conf/am_$table.yaml" "$out/am/$table"
}

# Stage 9: lattices and n-best lists of every row, then the n-gram model's weight, tuned on the first set
decode_am_rows() {
  local row set model searches=1 # processes of a job; without GPUs as many jobs run as there are processors
  [ "$gpus" -eq 0 ] || [ "$gpus" -gt "$nj" ] || searches=$((nj / gpus))
  for row in "${chosen_rows[@]}"; do
    model=$out/quant/$row/model.mpq
    split_am_row "$row" || model=$out/am/$row/model.mpq
    for set in "${sets[@]}"; do
      find_cuts "$set"
      job "$row-$set" --threads "$searches" --gpu 1 --memory "$memory" --in "$model" "$exp/lang/HLG.fst" "$cuts" --out "$out/decode/$row/$set/nbest.jsonl.gz" \
        -- mpq decode --am "$model" --features "$cuts" --lang "$exp/lang" --out "$out/decode/$row/$set" --nj "$searches"
    done
  done
  run_jobs
  for row in "${chosen_rows[@]}"; do
    first_pass=$out/decode/$row
    rescore_job "$row" "$out/rescore/$row"
  done
  run_jobs
}

# What `mpq results --rows` reads, for the rows that have been decoded, now or before
list_am_rows() {
  local row columns none='"Search min": "–"'
  for row in "${table_rows[@]}"; do
    [ -e "$out/rescore/$row/hyp-${sets[-1]}.txt" ] || continue
    row_seed=$seed columns="$none, \"Train min\": \"–\""
    if split_am_row "$row"; then
      columns="\"Train min\": $(minutes "$out/quant/$row")"
      [ -z "$row_method" ] && columns="$none, $columns" || columns="\"Search min\": $(minutes "$row_search"), $columns"
    fi
    printf '{"system": "%s", "seed": %d, "columns": {%s}}\n' "$row" "$row_seed" "$columns"
  done
}
