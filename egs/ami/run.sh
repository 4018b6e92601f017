#!/usr/bin/env bash
# ami: the AMI meetings, 100 hours of people who talk at once (--corpus-dir), headsets or a distant microphone (--mic)
#
# --corpus-dir is the folder that holds the meetings (or wav_db or amicorpus with them) and ami_public_manual_1.6.2,
# folder or zip; a second --corpus-dir may hold Fisher's transcripts (LDC2004T19, LDC2005T19) for the language models.
# A CNN-TDNN-F trained by LF-MMI on left biphones, with i-vectors and LHUC speaker adaptation; the trigram is one of AMI
# mixed with one of Fisher, weights by EM on the dev transcripts.
# The result is in EXP_DIR/report.html, RESULTS.md and nist.txt (scores by STM and GLM).
set -euo pipefail
# shellcheck source=utils/stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/stage.sh"
# shellcheck source=utils/stages.sh
source "$stage_root/utils/stages.sh"

mic=ihm partial=false acoustic_units=biphones ivectors=true lhuc=true
am_options
option mic "ihm|sdm|mdm" "headsets, first microphone of the first array, or beamformed files"
option partial flag "a part of the corpus will do; what is missing is told, and left out"
need_option corpus-dir "the folder of AMI that holds the meetings and ami_public_manual_1.6.2"
recipe "$@"
# shellcheck disable=SC2154  # set by stage.sh
exp=$exp_dir
sets=(dev eval)
systems=(lstm-{8,4,2,1}bit transformer-{4,2}bit lstm-{2,1}bit-rounded)
given_corpus --mic "$mic" --nj "$nj"
disk=20 prune=1e-7
memory=$((7 + (gpus > 1 ? gpus : 1))) # each process of training holds manifests and LF-MMI's graphs
# counting the trigrams of Fisher's 22 million words takes about 6 to 7 GB, beside what else runs
[ -z "$(find -H "${corpus_dirs[@]}" -name 'fe_03_*.txt' -print -quit 2> /dev/null)" ] || memory=$((memory > 12 ? memory : 12))
if [ "$smoke" = true ]; then
  prune=1e-5 disk=1 memory=4 lms=(lstm) systems=(lstm-2bit)
  small_am=(--fit.epochs 2 --fit.average 0 --max_frames 4000 --model.hidden 48 --model.bottleneck 16 --model.first_bottleneck 16
    --model.channels "[4,8]" --model.height_strides "[2,2]" --model.strides "[1]" --model.prefinal 16 --model.ivector_dim 8)
  small_ivector=(--dim 8 --gaussians 8 --iterations 2)
  small_lm=(--fit.epochs 1) small_dim=(--model.dim 64 --model.layers 1)
fi

if stage 0; then check_corpus ami "$disk" "$memory"; fi

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
if stage 6; then train_language_models "$exp/lang/tokenizer.model"; fi
if stage 8; then quantize_systems; fi
if stage 9; then rescore_systems; fi

# NIST's scores of the systems on dev and eval, speech of up to four at once where they share a microphone, in
# EXP/nist.txt: nist EXP MIC INPUTS SYSTEM...
nist() {
  local exp=$1 mic=$2 inputs=$3 system set out options times
  for system in "${@:4}"; do
    for set in dev eval; do
      out=$exp/rescore/$system/$set options=() times=()
      [ "$mic" = ihm ] || options=(--overlap 4) times=(--am "$exp/am/model.mpq" --lang "$exp/lang")
      mpq ctm --hyp "$exp/rescore/$system/hyp-$set.txt" --features "$inputs/$set/cuts.jsonl.gz" "${times[@]}" --out "$out.ctm" >&2
      mpq score --stm "$exp/data/$set/stm" --glm conf/ami.glm --ctm "$out.ctm" "${options[@]}" | sed "s/^/$set $system /"
    done
  done > "$exp/nist.txt.tmp"
  mv "$exp/nist.txt.tmp" "$exp/nist.txt"
  cat "$exp/nist.txt"
}

if stage 10; then
  report_results
  names=(first-pass "${lms[@]}" "${systems[@]}")
  [ "$smoke" = false ] || names=(first-pass)
  hyps=("${names[@]/#/$exp/rescore/}")
  find_cuts dev
  if [ "$mic" = ihm ] || command -v asclite > /dev/null || [ -x /usr/lib/sctk/bin/asclite ]; then
    step nist --in "${hyps[@]/%//hyp-eval.txt}" conf/ami.glm "$exp"/data/{dev,eval}/stm --out "$exp/nist.txt" -- nist "$exp" "$mic" "${cuts%/dev/*}" "${names[@]}"
  else
    echo "-- no NIST scores: speech that overlaps is scored by asclite only; utils/install_apt.sh installs it (sctk)"
  fi
fi
finish
