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
# shellcheck source=utils/tables.sh
source "$stage_root/utils/tables.sh"
# shellcheck source=egs/an4/table_am.sh
source "$recipe_dir/table_am.sh"

ivectors=true lhuc=false
am_options
table=none rows=""
option table "none|am" "am: instead of the usual systems, the acoustic model piece by piece (in table-am/; two hours)"
option rows text "rows of the table, by shell patterns with commas between them; 'list' names them (default: all)"
need_option corpus-dir "the folder of AN4 that holds etc/ and wav/"
recipe "$@"
# shellcheck disable=SC2154  # set by stage.sh
exp=$exp_dir corpus=$corpus_dir
[ -d "$corpus/etc" ] || corpus=$corpus_dir/an4
[ -f "$corpus/etc/an4_train.fileids" ] ||
  option_die "--corpus-dir '$corpus_dir': has no etc/an4_train.fileids; give the folder of AN4 that holds etc/ and wav/"
[ "$table/$ivectors" != am/false ] || option_die "--ivectors false: the systems of --table am have them; its rows no-ivectors have not"
systems=(lstm-{8,4,2,1}bit transformer-{4,2}bit
  lstm-{2,1}bit-rounded) # rounded and not trained any further: shows what quantized training is good for
small=()
if [ "$smoke" = true ]; then
  small=(--smoke) small_am=(--fit.epochs 3 --fit.average 2 --model.hidden 96 --model.ivector_dim 8) small_ivector=(--iterations 2 --dim 8 --gaussians 8 --num_gselect 8) small_lm=(--fit.epochs 1) systems=(lstm-2bit transformer-2bit)
fi

# Stage 3: make_lang UNITS DIR
make_lang() {
  step "${2##*/}" --in conf/lang.yaml "$corpus/etc/an4.dic" "$exp/data/lm/train.txt" "$exp"/data/{train,dev}/text --out "$2"/{lexicon.txt,words.txt,lm.arpa,HLG.fst} \
    -- mpq lang --config conf/lang.yaml --dictionary "$corpus/etc/an4.dic" --text "$exp/data/lm/train.txt" --transcripts "$exp"/data/{train,dev}/text --out "$2" --acoustic-units "$1"
}

if stage 0; then
  step check -- mpq check --exp-dir "$exp" --disk-gb 3 --memory-gb 4
fi

if stage 1; then
  step prepare --in "$corpus"/etc/an4_{train,test}.{fileids,transcription} --out "$exp"/data/{train,dev,test}/cuts.jsonl.gz "$exp"/data/lm/{train,dev,test}.txt \
    -- mpq prepare an4 --corpus-dir "$corpus_dir" --out "$exp/data" --nj "$nj" --seed "$seed" "${small[@]}"
fi

if stage 2; then
  make_features "$speeds"
  make_table_features
fi

if stage 3; then
  make_lang "$acoustic_units" "$exp/lang"
  if chosen biphones; then make_lang biphones "$exp/table-am/lang-biphones"; fi
fi

if [ "$table" = am ]; then
  if stage 4; then train_table_rows; fi
  if stage 5; then decode_table_rows; fi
  if stage 9; then rescore_table_rows; fi
  if stage 10; then report_table; fi
else
  if stage 4; then train_acoustic_model; fi
  if stage 5; then decode_sets; fi
  language_model_systems "$exp/lang/words.txt"
  if stage 10; then report_results; fi
fi
finish
