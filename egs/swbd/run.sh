#!/usr/bin/env bash
# swbd: Switchboard, 300 hours of telephone talk; tests Hub5'00 and RT03; language models with Fisher (--corpus-dir ...)
#
# A CNN-TDNN-F trained by LF-MMI on left biphones, with i-vectors and LHUC speaker adaptation; n-gram models of
# Switchboard and Fisher mixed by EM; neural language models, quantized, rescoring the tests; NIST's scoring by STM and
# GLM. Give --corpus-dir once for each folder that holds one of LDC97S62, swb_ms98_transcriptions, LDC2002S09,
# LDC2002T43, LDC2007S10, LDC2004T19 and LDC2005T19, whatever it is named; what lies where is found by content.
# The result is in EXP_DIR/report.html, RESULTS.md and hub5.txt (NIST's scores). --table lm: every way of compressing the
# language models instead, in EXP_DIR/table-lm.
set -euo pipefail
# shellcheck source=utils/stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/stage.sh"
# shellcheck source=utils/stages.sh
source "$stage_root/utils/stages.sh"
# shellcheck source=utils/tables.sh
source "$stage_root/utils/tables.sh"
# shellcheck source=utils/table_lm.sh
source "$stage_root/utils/table_lm.sh"

partial=false acoustic_units="" ivectors=true lhuc=true table=none rows=""
am_options
option table "none|lm" "lm: instead of the usual systems every method of compression of language models (in table-lm/)"
option rows text "rows of the table, by shell patterns with commas between them; 'list' names them (default: all)"
option partial flag "a part of the corpora will do; what is missing is told, and left out"
need_option corpus-dir "a folder that holds LDC97S62, Hub5'00 or another part; give the option for each"
recipe "$@"
# shellcheck disable=SC2154  # set by stage.sh
exp=$exp_dir lm_units=$exp_dir/lang/words.txt
systems=(lstm-{8,4,2,1}bit transformer-{4,2}bit lstm-{2,1}bit-rounded)
# shellcheck disable=SC2119  # it has no options of its own
given_corpus
prune=1e-7 disk=$((50 + 2 * ${#chosen_rows[@]})) units=biphones # a checkpoint of each row of a table
memory=24 job_memory=8 am_memory=$((20 + 4 * (gpus > 1 ? gpus : 1))) # each process of training holds manifests and LF-MMI's graphs
if [ "$smoke" = true ]; then
  prune=1e-4 disk=1 memory=4 job_memory="" am_memory="" lms=(lstm) systems=(lstm-2bit) units=phones # some 70 utterances teach no 1,560 biphones
  small_am=(--fit.epochs 6 --fit.average 2 --fit.lr 0.003 --ctc_part 0.8 --max_frames 1000 --model.hidden 64 --model.bottleneck 16 --model.first_bottleneck 16
    --model.channels "[8,8]" --model.height_strides "[2,2]" --model.strides "[1]" --model.prefinal 32 --model.ivector_dim 8)
  small_ivector=(--dim 8 --gaussians 8 --iterations 2)
  small_lm=(--fit.epochs 1) small_dim=(--model.dim 64 --model.layers 1)
fi

if stage 0; then check_corpus swbd "$disk"; fi

if stage 1; then
  step prepare --out "$exp"/data/{train,dev,eval2000}/cuts.jsonl.gz "$exp/data/dictionary.txt" "$exp"/data/lm/{train,swbd,fisher,dev,test}.txt \
    -- mpq prepare swbd "${corpus_options[@]}" --out "$exp/data" --nj "$nj"
fi
sets=(dev eval2000)
if [ -f "$exp/data/rt03/stm" ] || [ ! -f "$exp/data/eval2000/stm" ]; then sets+=(rt03); fi # not prepared yet: --dry-run shows all

if stage 2; then make_features "$speeds" --n-mels 40; fi

if stage 3; then
  step ngram --in "$exp"/data/lm/{swbd,fisher,dev}.txt --out "$exp/ngram/mixed.arpa" -- mix_ngrams "$exp" swbd 4 "$prune"
  step lang --in conf/lang.yaml "$exp/data/dictionary.txt" "$exp"/data/lm/{swbd,fisher}.txt "$exp"/data/{train,dev}/text "$exp/ngram/mixed.arpa" \
    --out "$exp"/lang/{lexicon.txt,words.txt,lm.arpa,HLG.fst} \
    -- mpq lang --config conf/lang.yaml --dictionary "$exp/data/dictionary.txt" cmudict --text "$exp"/data/lm/{swbd,fisher}.txt \
      --transcripts "$exp"/data/{train,dev}/text --arpa "$exp/ngram/mixed.arpa" --out "$exp/lang" --acoustic-units "${acoustic_units:-$units}"
fi

if stage 4; then train_acoustic_model; fi
if stage 5; then decode_sets; fi
language_model_stages

# NIST's scores of a system on the tests, also of Switchboard (sw), CallHome (en) and Fisher (fsh) alone, in
# FOLDER/hub5.txt: hub5 EXP "SET..." FOLDER
hub5() {
  local exp=$1 folder=$3 set part parts subsets
  for set in $2; do
    mapfile -t parts < <(sed '/^;;/d; s/_.*//' "$exp/data/$set/stm" | sort -u)
    subsets=()
    for part in "${parts[@]}"; do subsets+=(--subset "$part=${part}_"); done
    mpq ctm --hyp "$folder/hyp-$set.txt" --features "$exp/features/$set/cuts.jsonl.gz" --out "$folder/$set.ctm" >&2
    mpq score --stm "$exp/data/$set/stm" --glm "$exp/data/$set/glm" --ctm "$folder/$set.ctm" "${subsets[@]}" | sed "s/^/$set ${folder##*/} /"
  done > "$folder/hub5.txt.tmp"
  mv "$folder/hub5.txt.tmp" "$folder/hub5.txt"
}

if stage 10; then
  tests=("${sets[@]:1}")
  nist_command=(hub5 "$exp" "${tests[*]}") nist_inputs=("${tests[@]/#/$exp/data/}") nist_inputs=("${nist_inputs[@]/%//stm}" "${nist_inputs[@]/%//glm}")
  for name in "${tests[@]}"; do nist_pairs+=("$name" "$exp/data/$name"/{stm,glm}); done
  if [ "$table" = lm ]; then
    report_table_lm
    nist_scores table-hub5 "$exp/table-lm/hub5.txt" "${row_folders[@]}"
  else
    report_results
    names=(first-pass "${lms[@]}" "${systems[@]}")
    [ "$smoke" = false ] || names=(first-pass)
    nist_scores hub5 "$exp/hub5.txt" "${names[@]/#/$exp/rescore/}"
  fi
fi
finish
