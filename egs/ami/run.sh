#!/usr/bin/env bash
# ami: the AMI meetings, 100 hours of people who talk at once (--corpus-dir), headsets or a distant microphone (--mic)
#
# --corpus-dir is the folder that holds the meetings (or wav_db or amicorpus with them) and ami_public_manual_1.6.2,
# folder or zip; a second --corpus-dir may hold Fisher's transcripts (LDC2004T19, LDC2005T19) for the language models.
# A CNN-TDNN-F trained by LF-MMI on left biphones, with i-vectors and LHUC speaker adaptation; the trigram is one of AMI
# mixed with one of Fisher, weights by EM on the dev transcripts.
# The result is in EXP_DIR/report.html, RESULTS.md and nist.txt (scores by STM and GLM). --table lm: every way of
# compressing the language models instead, in EXP_DIR/table-lm.
set -euo pipefail
# shellcheck source=utils/stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/stage.sh"
# shellcheck source=utils/stages.sh
source "$stage_root/utils/stages.sh"
# shellcheck source=utils/tables.sh
source "$stage_root/utils/tables.sh"
# shellcheck source=utils/table_lm.sh
source "$stage_root/utils/table_lm.sh"

mic=ihm partial=false acoustic_units=biphones ivectors=true lhuc=true table=none rows=""
am_options
option table "none|lm" "lm: instead of the usual systems every method of compression of language models (in table-lm/)"
option rows text "rows of the table, by shell patterns with commas between them; 'list' names them (default: all)"
option mic "ihm|sdm|mdm" "headsets, first microphone of the first array, or beamformed files"
option partial flag "a part of the corpus will do; what is missing is told, and left out"
need_option corpus-dir "the folder of AMI that holds the meetings and ami_public_manual_1.6.2"
recipe "$@"
# shellcheck disable=SC2154  # set by stage.sh
exp=$exp_dir lm_units=$exp_dir/lang/tokenizer.model
sets=(dev eval)
systems=(lstm-{8,4,2,1}bit transformer-{4,2}bit lstm-{2,1}bit-rounded)
given_corpus --mic "$mic" --nj "$nj"
disk=$((20 + ${#chosen_rows[@]} / 5)) prune=1e-7 # a checkpoint of each row of a table
memory=8 job_memory=6 am_memory=$((7 + (gpus > 1 ? gpus : 1))) # each process of training holds manifests and LF-MMI's graphs
# counting the trigrams of Fisher's 22 million words takes about 6 to 7 GB, beside what else runs
[ -z "$(find -H "${corpus_dirs[@]}" -name 'fe_03_*.txt' -print -quit 2> /dev/null)" ] || memory=12
if [ "$smoke" = true ]; then
  prune=1e-5 disk=1 memory=4 job_memory="" am_memory="" lms=(lstm) systems=(lstm-2bit)
  small_am=(--fit.epochs 2 --fit.average 0 --max_frames 4000 --model.hidden 48 --model.bottleneck 16 --model.first_bottleneck 16
    --model.channels "[4,8]" --model.height_strides "[2,2]" --model.strides "[1]" --model.prefinal 16 --model.ivector_dim 8)
  small_ivector=(--dim 8 --gaussians 8 --iterations 2)
  small_lm=(--fit.epochs 1) small_dim=(--model.dim 48 --model.layers 1)
fi

if stage 0; then check_corpus ami "$disk"; fi

if stage 1; then
  step prepare --out "$exp"/data/{train,dev,eval}/cuts.jsonl.gz "$exp"/data/{dev,eval}/stm "$exp"/data/lm/{train,ami,fisher,dev,eval}.txt \
    -- mpq prepare ami "${corpus_options[@]}" --out "$exp/data"
fi

if stage 2; then make_features "$speeds"; fi

if stage 3; then
  step ngram --in "$exp"/data/lm/{ami,fisher,dev}.txt --out "$exp/ngram/mixed.arpa" -- mix_ngrams "$exp" ami 3 "$prune"
  step lang --in conf/{lang.yaml,dict.txt} "$exp/data/lm/train.txt" "$exp"/data/{train,dev}/text "$exp/ngram/mixed.arpa" \
    --out "$exp"/lang/{lexicon.txt,tokenizer.model,lm.arpa,HLG.fst} \
    -- mpq lang --config conf/lang.yaml --dictionary conf/dict.txt cmudict --text "$exp/data/lm/train.txt" --transcripts "$exp"/data/{train,dev}/text \
      --arpa "$exp/ngram/mixed.arpa" --out "$exp/lang" --acoustic-units "$acoustic_units"
fi

if stage 4; then train_acoustic_model; fi
if stage 5; then decode_sets; fi
language_model_stages

# NIST's scores of a system on dev and eval, speech of up to four at once where they share a microphone, in
# FOLDER/nist.txt: nist EXP MIC INPUTS FOLDER
nist() {
  local exp=$1 mic=$2 inputs=$3 folder=$4 set options=() times=()
  [ "$mic" = ihm ] || options=(--overlap 4) times=(--am "$exp/am/model.mpq" --lang "$exp/lang")
  for set in dev eval; do
    mpq ctm --hyp "$folder/hyp-$set.txt" --features "$inputs/$set/cuts.jsonl.gz" "${times[@]}" --out "$folder/$set.ctm" >&2
    mpq score --stm "$exp/data/$set/stm" --glm conf/ami.glm --ctm "$folder/$set.ctm" "${options[@]}" | sed "s/^/$set ${folder##*/} /"
  done > "$folder/nist.txt.tmp"
  mv "$folder/nist.txt.tmp" "$folder/nist.txt"
}

# Of all systems, where they can be: score_by_stm STEP OUT FOLDER...
score_by_stm() {
  local set
  find_cuts dev
  nist_command=(nist "$exp" "$mic" "${cuts%/dev/*}") nist_inputs=(conf/ami.glm "$exp"/data/{dev,eval}/stm)
  # no p where people share a microphone: mpq compare refuses speech that overlaps
  [ "$mic" != ihm ] || for set in dev eval; do nist_pairs+=("$set" "$exp/data/$set/stm" conf/ami.glm); done
  if [ "$mic" = ihm ] || command -v asclite > /dev/null || [ -x /usr/lib/sctk/bin/asclite ]; then
    nist_scores "$@"
  else
    echo "-- no NIST scores: speech that overlaps is scored by asclite only; utils/install_apt.sh installs it (sctk)"
  fi
}

if stage 10; then
  if [ "$table" = lm ]; then
    report_table_lm
    score_by_stm table-nist "$exp/table-lm/nist.txt" "${row_folders[@]}"
  else
    report_results
    names=(first-pass "${lms[@]}" "${systems[@]}")
    score_by_stm nist "$exp/nist.txt" "${names[@]/#/$exp/rescore/}"
  fi
fi
finish
