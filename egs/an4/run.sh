#!/usr/bin/env bash
# an4: CMU's AN4, real speech of 84 people spelling and giving dates (--corpus-dir); about 15 minutes
#
# 948 training and 130 test utterances, 100 words. --corpus-dir is the folder that holds etc/ and wav/, with FLAC,
# WAV, SPHERE (an4_sphere) or raw files (an4_raw). The same stages as mini, with language models over words.
# The result is in EXP_DIR/report.html and RESULTS.md. 773 test words resolve differences of some 2 % absolute only.
set -euo pipefail
# shellcheck source=utils/stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/stage.sh"

need_option corpus-dir "the folder of AN4 that holds etc/ and wav/"
recipe "$@"
# shellcheck disable=SC2154  # set by stage.sh
exp=$exp_dir corpus=$corpus_dir
[ -d "$corpus/etc" ] || corpus=$corpus_dir/an4
lstm_bits=(8 4 2 1)
transformer_bits=(4 2)
rounded_bits=(2 1) # the LSTM rounded and not trained any further: shows what quantized training is good for
small=() small_lm=() small_am=()
if [ "$smoke" = true ]; then
  small=(--smoke) small_am=(--fit.epochs 3 --max_frames 4000) small_lm=(--fit.epochs 1)
fi

if stage 0; then
  step check -- mpq check --exp-dir "$exp" --disk-gb 3 --memory-gb 4
fi

if stage 1; then
  step prepare --in "$corpus"/etc/an4_{train,test}.{fileids,transcription} --out "$exp"/data/{train,dev,test}/cuts.jsonl.gz "$exp"/data/lm/{train,dev,test}.txt \
    -- mpq prepare an4 --corpus-dir "$corpus_dir" --out "$exp/data" --nj "$nj" --seed "$seed" "${small[@]}"
fi

if stage 2; then
  step features --in "$exp"/data/{train,dev,test}/cuts.jsonl.gz --out "$exp"/features/{train,dev,test}/cuts.jsonl.gz \
    -- mpq features --data "$exp/data" --out "$exp/features" --speed 0.9,1.0,1.1 --nj "$nj"
fi

if stage 3; then
  step lang --in conf/lang.yaml "$corpus/etc/an4.dic" "$exp/data/lm/train.txt" "$exp"/data/{train,dev}/text --out "$exp"/lang/{lexicon.txt,words.txt,lm.arpa,HLG.fst} \
    -- mpq lang --config conf/lang.yaml --dictionary "$corpus/etc/an4.dic" --text "$exp/data/lm/train.txt" --transcripts "$exp"/data/{train,dev}/text --out "$exp/lang"
fi

if stage 4; then
  step am --gpu 1 --in conf/am.yaml "$exp"/features/{train,dev}/cuts.jsonl.gz "$exp"/lang/{lexicon,phones}.txt --out "$exp/am/model.mpq" \
    -- mpq train-am --config conf/am.yaml --train "$exp/features/train/cuts.jsonl.gz" --dev "$exp/features/dev/cuts.jsonl.gz" \
      --lang "$exp/lang" --out "$exp/am" --fit.seed "$seed" "${small_am[@]}"
fi

if stage 5; then
  for set in dev test; do
    step "$set" --in "$exp/am/model.mpq" "$exp/lang/HLG.fst" "$exp/features/$set/cuts.jsonl.gz" --out "$exp/decode/$set/nbest.jsonl.gz" \
      -- mpq decode --am "$exp/am/model.mpq" --features "$exp/features/$set/cuts.jsonl.gz" --lang "$exp/lang" \
        --out "$exp/decode/$set" --nj "$nj"
  done
fi

if stage 6; then
  for lm in lstm transformer; do
    job "$lm" --gpu 1 --in conf/$lm.yaml "$exp"/data/lm/{train,dev}.txt "$exp/lang/words.txt" --out "$exp/lm/$lm/model.mpq" \
      -- mpq train-lm --config conf/$lm.yaml --train "$exp/data/lm/train.txt" --dev "$exp/data/lm/dev.txt" \
        --tokenizer "$exp/lang/words.txt" --out "$exp/lm/$lm" --fit.seed "$seed" "${small_lm[@]}"
  done
  run_jobs
fi

systems=() rounded=()
for bits in "${lstm_bits[@]}"; do systems+=("lstm $bits"); done
for bits in "${transformer_bits[@]}"; do systems+=("transformer $bits"); done
for bits in "${rounded_bits[@]}"; do rounded+=("lstm-${bits}bit-rounded"); done

if stage 8; then
  for system in "${systems[@]}"; do
    read -r lm bits <<< "$system"
    job "$lm-${bits}bit" --gpu 1 --in conf/quantize.yaml "$exp/lm/$lm/model.mpq" "$exp"/data/lm/{train,dev}.txt --out "$exp/quant/$lm-${bits}bit/model.mpq" \
      -- mpq quantize --config conf/quantize.yaml --model "$exp/lm/$lm/model.mpq" --bits "$bits" --train ste \
        --text "$exp/data/lm/train.txt" --dev "$exp/data/lm/dev.txt" --out "$exp/quant/$lm-${bits}bit/model.mpq" \
        --fit.seed "$seed" "${small_lm[@]}"
  done
  for bits in "${rounded_bits[@]}"; do
    job "lstm-${bits}bit-rounded" --in "$exp/lm/lstm/model.mpq" "$exp/data/lm/dev.txt" --out "$exp/quant/lstm-${bits}bit-rounded/model.mpq" \
      -- mpq quantize --model "$exp/lm/lstm/model.mpq" --bits "$bits" --train none --dev "$exp/data/lm/dev.txt" \
        --out "$exp/quant/lstm-${bits}bit-rounded/model.mpq"
  done
  run_jobs
fi

# Rescores dev, tuning the weights there, then test with those weights: rescore EXP SYSTEM [MODEL]
rescore() {
  local exp=$1 out=$1/rescore/$2 lm=()
  [ $# -lt 3 ] || lm=(--lm "$3")
  mpq rescore --nbest "$exp/decode/dev/nbest.jsonl.gz" "${lm[@]}" --tune "$exp/data/dev/text" \
    --weights-out "$out/weights.yaml" --out "$out/dev.jsonl.gz" --hyp-out "$out/hyp-dev.txt"
  mpq rescore --nbest "$exp/decode/test/nbest.jsonl.gz" "${lm[@]}" --weights "$out/weights.yaml" \
    --out "$out/test.jsonl.gz" --hyp-out "$out/hyp-test.txt"
}

if stage 9; then
  nbest=("$exp"/decode/{dev,test}/nbest.jsonl.gz)
  job first-pass --in "${nbest[@]}" --out "$exp"/rescore/first-pass/{weights.yaml,hyp-dev.txt,hyp-test.txt} -- rescore "$exp" first-pass
  for lm in lstm transformer; do
    job $lm --in "${nbest[@]}" "$exp/lm/$lm/model.mpq" --out "$exp/rescore/$lm"/{weights.yaml,hyp-dev.txt,hyp-test.txt} \
      -- rescore "$exp" $lm "$exp/lm/$lm/model.mpq"
  done
  for system in "${systems[@]}" "${rounded[@]}"; do
    name=$system
    [[ $system != *" "* ]] || name=${system/ /-}bit
    job "$name" --in "${nbest[@]}" "$exp/quant/$name/model.mpq" --out "$exp/rescore/$name"/{weights.yaml,hyp-dev.txt,hyp-test.txt} \
      -- rescore "$exp" "$name" "$exp/quant/$name/model.mpq"
  done
  run_jobs
fi

# Table, plot and page: report EXP
report() {
  cp conf/report.yaml "$1/report.yaml"
  mpq report "$1"
}

if stage 10; then
  step results --in "$exp"/data/{dev,test}/text "$exp"/rescore/*/hyp-*.txt --out "$exp/results.jsonl" -- mpq results "$exp" --seed "$seed"
  step report --in "$exp/results.jsonl" conf/report.yaml --out "$exp"/{RESULTS.md,report.html,size_wer.png} -- report "$exp"
fi
finish
