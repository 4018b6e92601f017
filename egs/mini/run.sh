#!/usr/bin/env bash
# mini: synthetic English (espeak reads the World English Bible), made here; no data, no root; about 15 minutes
#
# From nothing to a table of word error rate, size and significance of quantized language models:
# speech is synthesized, an acoustic model trained, lattices decoded, an LSTM and a Transformer language model
# trained, quantized to 8, 4, 2 and 1 bits, and used to rescore 100-best lists.
# The result is in EXP_DIR/report.html and RESULTS.md (with --table lm in EXP_DIR/table-lm). The speech is
# synthetic: its error rates say how systems compare on it, not how they would do on people.
set -euo pipefail
# shellcheck source=utils/stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/stage.sh"
# shellcheck source=utils/stages.sh
source "$stage_root/utils/stages.sh"
# shellcheck source=utils/tables.sh
source "$stage_root/utils/tables.sh"
# shellcheck source=utils/table_lm.sh
source "$stage_root/utils/table_lm.sh"
# shellcheck source=utils/table_am.sh
source "$stage_root/utils/table_am.sh"
# shellcheck source=egs/mini/table_both.sh
source "$recipe_dir/table_both.sh"

# shellcheck disable=SC2034  # all: its small models are not as small as the corpora's
table=none rows="" smoke_rows_of_lm=""
option table "none|lm|conformer|ssl|both" "instead of the usual systems every method of compression, of language models, a Conformer or wav2vec 2.0, or some of both ends together (in table-lm/, ...; some hours)"
option rows text "rows of the table, by shell patterns with commas between them; 'list' names them (default: all)"
recipe "$@"
# shellcheck disable=SC2154  # set by stage.sh
exp=$exp_dir
systems=(lstm-{8,4,2,1}bit transformer-{4,2}bit
  lstm-{2,1}bit-rounded) # rounded and not trained any further: shows what quantized training is good for
small=() waveforms=()
if [ "$smoke" = true ]; then
  small=(--smoke) small_am=(--fit.epochs 3 --max_frames 4000) small_lm=(--fit.epochs 1) small_dim=(--model.dim 128)
  systems=(lstm-{4,1}bit transformer-2bit lstm-2bit-rounded)
  [[ $table != @(conformer|ssl|both) ]] || model_options=(--model.layers 1)
fi
out=$exp/table-$table lm_units=$exp/lang/tokenizer.model
# trained until dev stops improving, which the usual ones are not: more training alone cannot make a compressed one look good
own_floats=true
[ "$table" != ssl ] || features=waves waveforms=(--type waveform)

if stage 0; then
  step check -- mpq check --exp-dir "$exp" --disk-gb 3 --memory-gb 4
fi

if stage 1; then
  step prepare --out "$exp"/data/{train,dev,test}/cuts.jsonl.gz "$exp"/data/lm/{train,dev,test}.txt \
    -- mpq prepare mini --out "$exp/data" --nj "$nj" --seed "$seed" "${small[@]}"
fi

if stage 2; then make_features 0.9,1.0,1.1 "${waveforms[@]}"; fi

if stage 3; then
  step lang --in conf/lang.yaml "$exp/data/lm/train.txt" "$exp"/data/{train,dev}/text --out "$exp"/lang/{lexicon.txt,tokenizer.model,lm.arpa,HLG.fst} \
    -- mpq lang --config conf/lang.yaml --text "$exp/data/lm/train.txt" --transcripts "$exp"/data/{train,dev}/text --out "$exp/lang"
fi

if [[ $table = @(conformer|ssl) ]]; then
  if stage 4; then train_table_am; fi
  if stage 7; then search_am_bits; fi
  if stage 8; then train_am_rows; fi
  if stage 9; then decode_am_rows; fi
  if stage 10; then report_rows "$out" "conf/table_$table.yaml" "$table" list_am_rows; fi
  finish
  exit
fi
if [ "$table" = both ]; then
  if stage 4; then for_parts conformer train_table_am; fi
  if stage 6; then for_parts lm train_table_lms; fi
  if stage 7; then for_parts conformer search_am_bits; for_parts lm search_table_bits; fi
  if stage 8; then for_parts conformer train_am_rows; for_parts lm train_table_rows; fi
  if stage 9; then rescore_both_rows; fi
  if stage 10; then report_rows "$out" conf/table_both.yaml both list_both_rows; fi
  finish
  exit
fi

if stage 4; then train_acoustic_model; fi
if stage 5; then decode_sets; fi

language_model_stages
if stage 10; then
  if [ "$table" = lm ]; then report_table_lm; else report_results; fi
fi
finish
