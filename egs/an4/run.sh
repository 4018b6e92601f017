#!/usr/bin/env bash
# an4: CMU's AN4, real speech of 84 people spelling and giving dates (--corpus-dir); about 8 minutes
#
# 948 training and 130 test utterances, 100 words. --corpus-dir is the folder that holds etc/ and wav/, with FLAC,
# WAV, SPHERE (an4_sphere) or raw files (an4_raw). The same stages as mini, with language models over words.
# The result is in EXP_DIR/report.html and RESULTS.md. 773 test words resolve differences of some 2 % absolute only.
set -euo pipefail
# shellcheck source=utils/stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/stage.sh"
# shellcheck source=utils/stages.sh
source "$stage_root/utils/stages.sh"

need_option corpus-dir "the folder of AN4 that holds etc/ and wav/"
recipe "$@"
# shellcheck disable=SC2154  # set by stage.sh
exp=$exp_dir corpus=$corpus_dir
[ -d "$corpus/etc" ] || corpus=$corpus_dir/an4
[ -f "$corpus/etc/an4_train.fileids" ] ||
  option_die "--corpus-dir '$corpus_dir': has no etc/an4_train.fileids; give the folder of AN4 that holds etc/ and wav/"
systems=(lstm-{8,4,2,1}bit transformer-{4,2}bit
  lstm-{2,1}bit-rounded) # rounded and not trained any further: shows what quantized training is good for
small=()
if [ "$smoke" = true ]; then
  small=(--smoke) small_am=(--fit.epochs 3 --max_frames 4000) small_lm=(--fit.epochs 1) systems=(lstm-2bit transformer-2bit)
fi

if stage 0; then
  step check -- mpq check --exp-dir "$exp" --disk-gb 3 --memory-gb 4
fi

if stage 1; then
  step prepare --in "$corpus"/etc/an4_{train,test}.{fileids,transcription} --out "$exp"/data/{train,dev,test}/cuts.jsonl.gz "$exp"/data/lm/{train,dev,test}.txt \
    -- mpq prepare an4 --corpus-dir "$corpus_dir" --out "$exp/data" --nj "$nj" --seed "$seed" "${small[@]}"
fi

if stage 2; then make_features 0.9,1.0,1.1; fi

if stage 3; then
  step lang --in conf/lang.yaml "$corpus/etc/an4.dic" "$exp/data/lm/train.txt" "$exp"/data/{train,dev}/text --out "$exp"/lang/{lexicon.txt,words.txt,lm.arpa,HLG.fst} \
    -- mpq lang --config conf/lang.yaml --dictionary "$corpus/etc/an4.dic" --text "$exp/data/lm/train.txt" --transcripts "$exp"/data/{train,dev}/text --out "$exp/lang"
fi

if stage 4; then train_acoustic_model; fi
if stage 5; then decode_sets; fi
if stage 6; then train_language_models "$exp/lang/words.txt"; fi
if stage 8; then quantize_systems; fi
if stage 9; then rescore_systems; fi
if stage 10; then report_results; fi
finish
