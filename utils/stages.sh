# shellcheck shell=bash
# What the recipes do alike, a function for each stage; source it after stage.sh and call them inside `if stage N`.
# shellcheck disable=SC2154
#
# Taken from the recipe:
#   exp              the experiment folder
#   sets             what is decoded and rescored; weights are tuned on the first: (dev test)
#   lms              language models, each with conf/NAME.yaml: (lstm transformer)
#   systems          their quantized versions, LM-NBITbit or LM-NBITbit-rounded (rounded, not trained): (lstm-2bit ...)
#   am_conf          the acoustic model's configuration: conf/am.yaml
#   lhuc_conf        that of the adaptation by LHUC, if there is such a file: conf/lhuc.yaml
#   first_pass       the folder of the n-best lists that are rescored: EXP/decode
#   features         where the acoustic models' features lie: EXP/features
#   ngram            name of a larger n-gram model that rescores the lists first, as EXP/data/lm/NAME.arpa.gz: (4-gram)
#   model_options    further options of training the float acoustic model
#   nist_command     what scores a system's folder by STM and GLM, and nist_inputs, what it reads besides: (hub5 EXP eval2000)
#   nist_pairs       what two systems are compared by, for each set its name, STM and GLM: (eval2000 EXP/stm EXP/glm)
#   small_am small_ivector small_lm small_dim    further options of training where --smoke is given
# and of its user, where it calls am_options: speeds, acoustic_units, ivectors, lhuc, max_frames

sets=(dev test) lms=(lstm transformer) systems=() am_conf=conf/am.yaml lhuc_conf=conf/lhuc.yaml features=features first_pass="" ngram=""
model_options=() nist_command=() nist_inputs=() nist_pairs=() small_am=() small_ivector=() small_lm=() small_dim=()
# shellcheck disable=SC2034
speeds=0.9,1.0,1.1 acoustic_units=phones ivectors="" lhuc="" max_frames=""

# Declares the options of the acoustic model's pieces; what the variables hold is their default. And --gpus is 1 by
# default where this machine has a GPU that CUDA_VISIBLE_DEVICES does not hide: without one these models train for weeks.
am_options() {
  if [[ ${CUDA_VISIBLE_DEVICES-0} = [!-]* ]] && command -v nvidia-smi > /dev/null && [[ $(nvidia-smi -L 2> /dev/null) = GPU* ]]; then gpus=1; fi
  option gpus whole "GPUs to use; 0: none"
  option speeds text "speeds of the copies of the training speech; 1.0: no copies"
  option acoustic-units "phones|biphones|pieces" "what the acoustic model tells apart; biphones: phones by their left neighbour"
  option ivectors "true|false" "i-vectors as further input (conf/ivector.yaml)"
  option lhuc "true|false" "LHUC: speaker adaptive training; tests are decoded twice, adapted to their speakers"
  option max-frames count "frames (10 ms) of an acoustic model's batch on each GPU (default: conf/'s max_frames divided by --gpus; 20000 where a GPU of 24 GB is too small)"
}

# What `mpq prepare` is told of a corpus that the user has: sets corpus_options, by $partial too: given_corpus [OPTION...]
given_corpus() {
  local folder
  corpus_options=("$@")
  for folder in "${corpus_dirs[@]}"; do corpus_options+=(--corpus-dir "$folder"); done
  [ "$partial" = false ] || corpus_options+=(--partial)
  [ "$smoke" = false ] || corpus_options+=(--smoke)
}

# Stage 0, of such a corpus: check_corpus NAME DISK_GB
check_corpus() {
  local most=$((am_memory > memory ? am_memory : memory))
  step check --memory "$most" -- mpq check --exp-dir "$exp" --disk-gb "$2" --memory-gb "$most"
  step corpus -- mpq prepare "$1" "${corpus_options[@]}" --check-only
  if [ "$gpus" -eq 0 ] && [ "$smoke" = false ] && [ "$dry_run" = false ]; then
    echo "$1: warning: no GPU is used (--gpus 0): stages 4, 6 and 8 take weeks on processors; give --gpus N, with --cmd slurm too" >&2
  fi
}

# Stage 2, features of train and all sets: make_features SPEEDS [further options of mpq features]
make_features() {
  local all=(train "${sets[@]}") names
  names=("${all[@]/%//cuts.jsonl.gz}")
  step "$features" --in "${names[@]/#/$exp/data/}" --out "${names[@]/#/$exp/$features/}" \
    -- mpq features --data "$exp/data" --out "$exp/$features" --speed "$1" --nj "$nj" "${@:2}"
  [ "$ivectors" != true ] || make_ivectors "${names[@]}"
}

# Stage 2, an extractor and the i-vectors of all sets: make_ivectors SET/cuts.jsonl.gz...
make_ivectors() {
  local train=$exp/features/train/cuts.jsonl.gz extractor=$exp/ivectors/extractor.mpq
  step ivector-extractor --in conf/ivector.yaml "$train" --out "$extractor" \
    -- mpq ivector train --config conf/ivector.yaml --features "$train" --out "$extractor" --seed "$seed" "${small_ivector[@]}"
  step ivectors --in "$extractor" "${@/#/$exp/features/}" --out "${@/#/$exp/ivectors/}" \
    -- mpq ivector extract --extractor "$extractor" --data "$exp/features" --history 2 --out "$exp/ivectors" --nj "$nj"
}

# The manifest of what the acoustic model reads of a set, in $cuts: find_cuts SET
find_cuts() {
  cuts=$exp/$features/$1/cuts.jsonl.gz
  [ "$ivectors" != true ] || cuts=$exp/ivectors/$1/cuts.jsonl.gz
}

# Stage 3, the n-gram model of EXP/data/lm/TEXT.txt, mixed with that of fisher.txt where there is any, into EXP/ngram/mixed.arpa;
# weights suit dev.txt, which no model has seen: mix_ngrams EXP TEXT ORDER PRUNE
mix_ngrams() {
  local lm=$1/data/lm out=$1/ngram
  mpq ngram --text "$lm/$2.txt" --order "$3" --lm "$out/$2.arpa" --ppl "$lm/dev.txt"
  if [ -s "$lm/fisher.txt" ]; then
    mpq ngram --text "$lm/fisher.txt" --order "$3" --lm "$out/fisher.arpa" --ppl "$lm/dev.txt"
    mpq ngram --interpolate "$out/$2.arpa" "$out/fisher.arpa" --held-out "$lm/dev.txt" --prune "$4" --lm "$out/mixed.arpa" --ppl "$lm/dev.txt"
  else
    mpq ngram --text "$lm/$2.txt" --order "$3" --prune "$4" --lm "$out/mixed.arpa" --ppl "$lm/dev.txt"
  fi
}

# Stage 4
train_acoustic_model() {
  train_float_am am "$am_conf" "$exp/am"
}

# What the batch of a float model is in each process, as options: sets share. Without --max-frames all processes together
# have the batch of one: that is what learning rate and epochs were chosen for. share_batch CONF PROCESSES
share_batch() {
  local frames word last=""
  share=()
  if [ -n "$max_frames" ]; then
    share=(--max_frames "$max_frames")
  elif [ "$2" -gt 1 ]; then
    frames=$(sed -n 's/^max_frames: *//p' "$1")
    for word in "${small_am[@]}"; do
      [ "$last" != --max_frames ] || frames=$word
      last=$word
    done
    [[ $frames = [1-9]* ]] || option_die "$1: no line 'max_frames: N', which --gpus $2 divides; add it, or give --max-frames N"
    share=(--max_frames $((frames / $2)))
  fi
}

# An acoustic model; on several GPUs a process for each, by torchrun: train_float_am STEP CONF OUT
train_float_am() {
  local name=$1 conf=$2 out=$3 cuts train dev made_from without=() mpq=(mpq) processes=1 threads=() share
  if [ "$gpus" -gt 1 ]; then
    mpq=(torchrun --standalone --nproc-per-node "$gpus" -m mpq) processes=$gpus
  fi
  [ "$gpus" -eq 0 ] || threads=(--threads $((8 * processes))) # not all of a node's processors for a GPU
  share_batch "$conf" "$processes"
  find_cuts train && train=$cuts
  find_cuts "${sets[0]}" && dev=$cuts
  made_from=("$conf" "$train" "$exp"/lang/{lexicon,phones}.txt)
  # what is made together with train's manifest and the lexicon; that others go without keeps the marks of finished runs
  [ "$name" != am ] || made_from+=("$dev" "$exp/lang/units.txt")
  [ "$ivectors" != false ] || without+=(--model.ivector_dim 0)
  [ "$lhuc" != false ] || without+=(--lhuc 0)
  step "$name" --gpu "$processes" "${threads[@]}" --memory "${am_memory:-$memory}" --in "${made_from[@]}" --out "$out/model.mpq" \
    -- "${mpq[@]}" train-am --config "$conf" --train "$train" --dev "$dev" \
      --lang "$exp/lang" --out "$out" --fit.seed "$seed" "${small_am[@]}" "${model_options[@]}" "${without[@]}" "${share[@]}"
}

# Stage 5: lattices and n-best lists
decode_sets() {
  local set cuts adapt=() adapt_conf=()
  if [ "$lhuc" = true ]; then
    adapt=(--adapt lhuc --transcripts "$exp/data/train/text")
    [ ! -e "$lhuc_conf" ] || adapt_conf=("$lhuc_conf")
  fi
  for set in "${sets[@]}"; do
    find_cuts "$set"
    step "$set" --gpu 1 --in "$exp/am/model.mpq" "$exp/lang/HLG.fst" "$cuts" "${adapt_conf[@]}" --out "$exp/decode/$set/nbest.jsonl.gz" \
      -- mpq decode --am "$exp/am/model.mpq" --features "$cuts" --lang "$exp/lang" --out "$exp/decode/$set" --nj "$nj" "${adapt_conf[@]/#/--config=}" "${adapt[@]}"
  done
}

# Stage 5, where the recipe has a larger n-gram model: its scores take the place of the first pass's in all lists
rescore_by_ngram() {
  [ -n "$ngram" ] || return 0
  local arpa=$exp/data/lm/$ngram.arpa.gz names=("${sets[@]/%//nbest.jsonl.gz}")
  step "$ngram" --in "$arpa" "${names[@]/#/$exp/decode/}" --out "${names[@]/#/$exp/decode-$ngram/}" \
    -- mpq rescore --nbest "${names[@]/#/$exp/decode/}" --arpa "$arpa" --out "${names[@]/#/$exp/decode-$ngram/}"
}

# Stage 6, of other configurations under steps of other names: train_language_models UNITS [CONF OUT PREFIX]
train_language_models() {
  local lm conf=${2:-conf} out=${3:-$exp/lm}
  for lm in "${lms[@]}"; do
    job "${4:-}$lm" --gpu 1 --in "$conf/$lm.yaml" "$exp"/data/lm/{train,dev}.txt "$1" --out "$out/$lm/model.mpq" \
      -- mpq train-lm --config "$conf/$lm.yaml" --train "$exp/data/lm/train.txt" --dev "$exp/data/lm/dev.txt" \
        --tokenizer "$1" --out "$out/$lm" --fit.seed "$seed" "${small_lm[@]}" "${small_dim[@]}"
  done
  run_jobs
}

# Stage 8
quantize_systems() {
  local name model out bits
  for name in "${systems[@]}"; do
    model=$exp/lm/${name%%-*}/model.mpq out=$exp/quant/$name/model.mpq bits=${name#*-} bits=${bits%%bit*}
    case "$name" in
      *-rounded)
        job "$name" --in "$model" "$exp/data/lm/dev.txt" --out "$out" \
          -- mpq quantize --model "$model" --bits "$bits" --train none --dev "$exp/data/lm/dev.txt" --out "$out"
        ;;
      *)
        job "$name" --gpu 1 --in conf/quantize.yaml "$model" "$exp"/data/lm/{train,dev}.txt --out "$out" \
          -- mpq quantize --config conf/quantize.yaml --model "$model" --bits "$bits" --train ste \
            --text "$exp/data/lm/train.txt" --dev "$exp/data/lm/dev.txt" --out "$out" --fit.seed "$seed" "${small_lm[@]}"
        ;;
    esac
  done
  run_jobs
}

# Rescores all sets, with weights tuned on the first; the n-gram model alone where there is no other: rescore_job NAME OUT [MODEL]
# The lists are those of the larger n-gram model, but for the first pass.
rescore_job() {
  local out=$2 lm=() nbest=("${sets[@]/%//nbest.jsonl.gz}") rescored=("${sets[@]/%/.jsonl.gz}") hyps=("${sets[@]/#/hyp-}")
  local lists=${first_pass:-$exp/decode}
  [ $# -eq 2 ] || lm=(--lm "$3")
  [ -z "$ngram" ] || [ "$1" = first-pass ] || lists=$exp/decode-$ngram
  nbest=("${nbest[@]/#/$lists/}") rescored=("${rescored[@]/#/$out/}") hyps=("${hyps[@]/#/$out/}") hyps=("${hyps[@]/%/.txt}")
  job "$1" --in "${nbest[@]}" "${@:3}" --out "$out/weights.yaml" "${hyps[@]}" \
    -- mpq rescore --nbest "${nbest[@]}" "${lm[@]}" --tune "$exp/data/${sets[0]}/text" \
      --weights-out "$out/weights.yaml" --out "${rescored[@]}" --hyp-out "${hyps[@]}"
}

# Stage 9
rescore_systems() {
  local name
  rescore_job first-pass "$exp/rescore/first-pass"
  [ -z "$ngram" ] || rescore_job "$ngram" "$exp/rescore/$ngram"
  for name in "${lms[@]}"; do rescore_job "$name" "$exp/rescore/$name" "$exp/lm/$name/model.mpq"; done
  for name in "${systems[@]}"; do rescore_job "$name" "$exp/rescore/$name" "$exp/quant/$name/model.mpq"; done
  run_jobs
}

# Table, plot and page of a folder that holds results; what --smoke made says so: report FOLDER CONFIG true|false. Words that
# stand in CONFIG are about the project's own run, whose page is made by: cp CONFIG FOLDER/report.yaml; mpq report FOLDER
report() {
  local note=""
  [ "$3" = false ] || note=", smoke run: its numbers mean nothing"
  sed "s/^title: \"\(.*\)\"\$/title: \"\1$note\"/" "$2" | awk '/^[^ ]/ {words = /^words:/} !words' > "$1/report.yaml"
  mpq report "$1"
}

# Stages 6, 8 and 9 of the usual systems: language_model_systems UNITS
language_model_systems() {
  if stage 6; then train_language_models "$1"; fi
  if stage 8; then quantize_systems; fi
  if stage 9; then rescore_systems; fi
}

# Stage 10
report_results() {
  local texts=("${sets[@]/%//text}") names larger=()
  names=$(IFS=,; echo "${sets[*]}")
  [ -z "$ngram" ] || larger=(--ngram "$ngram")
  step results --in "${texts[@]/#/$exp/data/}" "$exp"/rescore/*/hyp-*.txt --out "$exp/results.jsonl" \
    -- mpq results "$exp" --sets "$names" --seed "$seed" "${larger[@]}"
  step report --in "$exp/results.jsonl" conf/report.yaml --out "$exp"/{RESULTS.md,report.html,size_wer.png} \
    -- report "$exp" conf/report.yaml "$smoke"
}

# Stage 10, NIST's scores of systems: nist_command FOLDER makes FOLDER/NAME.txt of the hypotheses there, and FOLDER/SET.ctm; a
# system whose name goes on after that of another one (lstm-2bit, lstm) is compared with it by nist_pairs, in FOLDER/NAME-p.txt.
# All lines, by set, are gathered and shown: nist_scores STEP DIR/NAME.txt FOLDER...
nist_scores() {
  local folder other name=${2##*/} files=("${@:3}") pairs=() number
  files=("${files[@]/%//$name}") name=${name%.txt}
  for folder in "${@:3}"; do
    job "$name-${folder##*/}" --in "$folder"/hyp-*.txt "${nist_inputs[@]}" --out "$folder/$name.txt" -- "${nist_command[@]}" "$folder"
  done
  run_jobs
  for folder in "${@:3}"; do
    for other in "${@:3}"; do
      if [ ${#nist_pairs[@]} -eq 0 ] || [[ ${folder##*/} != "${other##*/}-"* ]] || [[ ${other##*/} = *-* ]]; then continue; fi
      pairs=()
      for ((number = 0; number < ${#nist_pairs[@]}; number += 3)); do
        pairs+=("$other/${nist_pairs[number]}.ctm" "$folder/${nist_pairs[number]}.ctm" "${nist_pairs[@]:number + 1:2}")
      done
      files+=("$folder/$name-p.txt")
      job "$name-${folder##*/}-p" --in "${pairs[@]}" --out "${files[-1]}" -- compare_words "$other" "$folder" "${files[-1]}" "${nist_pairs[@]}"
    done
  done
  run_jobs
  step "$1" --in "${files[@]}" --out "$2" -- gather_scores "$2" "${files[@]}"
}

# The p of MAPSSWE over the segments of the references, of the words with times in A and in B: compare_words A B OUT [SET STM GLM]...
compare_words() {
  local first=$1 second=$2 a=${1##*/} b=${2##*/} out=$3
  shift 3
  while [ $# -gt 0 ]; do
    mpq compare --stm "$2" --glm "$3" --ctm "$first/$1.ctm" --ctm "$second/$1.ctm" |
      sed -n "s/: A is \(.*\) than B /: $a is \1 than $b /; s/: B is \(.*\) than A /: $b is \1 than $a /; s/^MAPSSWE: /$1 $b MAPSSWE against $a: /p"
    shift 3
  done > "$out.tmp"
  mv "$out.tmp" "$out"
}

gather_scores() {
  sort --stable --key 1,1 "${@:2}" > "$1.tmp"
  mv "$1.tmp" "$1"
  cat "$1"
}
