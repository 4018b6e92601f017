#!/usr/bin/env bash
# librispeech: LibriSpeech, 960 hours of read books (--corpus-dir), with the n-gram model and text of OpenSLR 11
#
# A Conformer over sentencepiece units (--am tdnnf: a CNN-TDNN-F over phones; --am ssl: wav2vec 2.0 or HuBERT over phones,
# fine-tuned from --checkpoint, or over letters where that is fine-tuned already) trained by CTC and LF-MMI on 100, 460 or
# 960 hours (--train), first pass with the pruned trigram of OpenSLR 11, its lists rescored with the 4-gram, neural
# language models of 800 million words, quantized, rescoring dev and test, clean and other. --corpus-dir is the folder
# that holds train-clean-100 and so on; the files of OpenSLR 11 lie in it, in a folder in it, or in a second --corpus-dir.
# The result is in EXP_DIR/report.html and RESULTS.md. --table conformer or ssl: this acoustic model on few bits
# instead, in EXP_DIR/table-conformer or table-ssl; --table lm: every way of compressing the language models.
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

train=960 am=conformer checkpoint="" partial=false acoustic_units="" ivectors=false lhuc=false table=none rows=""
am_options
option am "conformer|tdnnf|ssl" "acoustic model: conf/am.yaml with sentencepiece units, or conf/am_{tdnnf,ssl}.yaml with phones"
option checkpoint text "for --am ssl: a bundle of torchaudio.pipelines, HUBERT_LARGE or (fine-tuned) HUBERT_ASR_LARGE, a file of its format, a Hugging Face folder"
option table "none|lm|conformer|ssl" "instead of the usual systems language models or the acoustic model (implies --am) on few bits, by every method"
option rows text "rows of the table, by shell patterns with commas between them; 'list' names them (default: all)"
option train "100|460|960" "hours of training speech"
option partial flag "a part of the corpus will do; what is missing is told, and left out"
check_options() {
  check_rows
  [[ $table = @(none|lm) ]] || am=$table
  [[ $table = @(none|lm) || $lhuc = false ]] || option_die "--lhuc true: the rows of --table $table are decoded once, without it"
  [ "$am" != ssl ] || [ -n "$checkpoint" ] || option_die "--am ssl needs --checkpoint: what is fine-tuned, such as WAV2VEC2_BASE"
  [ "$am" = ssl ] || [ -z "$checkpoint" ] || option_die "--checkpoint $checkpoint: only --am ssl begins with one"
  [ "$am" != ssl ] || [ "$ivectors" = false ] || option_die "--ivectors true: the models of --am ssl read audio alone"
  [ ! -e "$checkpoint" ] || checkpoint=$(realpath "$checkpoint")
}
need_option corpus-dir "the folder of LibriSpeech that holds train-clean-100, dev-clean, ..."
recipe "$@"
# shellcheck disable=SC2154  # set by stage.sh
exp=$exp_dir lm_units=$exp_dir/lang/tokenizer.model
# weights are tuned on dev-clean, for all sets
sets=(dev-clean dev-other test-clean test-other) lossless_test=test-clean
systems=(lstm-{8,4,2,1}bit transformer-{4,2}bit lstm-{2,1}bit-rounded)
given_corpus --train "$train" --nj "$nj"
graphs=6 # GB: manifests and LF-MMI's graphs, which each process of training holds; those of phones are larger
[ "$am" = conformer ] || graphs=13
[ "$am" != conformer ] || lhuc_conf="" # its phone model is not theirs
disk=$((10 + train / 10)) # features and text
memory=$((18 + graphs)) job_memory=8 am_memory=$((18 + graphs * (gpus > 1 ? gpus : 1))) # the graph of 200,000 words
[ "$table" != lm ] || disk=$((disk + ${#chosen_rows[@]} / 2)) # a checkpoint of each row
float_mb=300 # of the Conformer
if [ "$am" = tdnnf ]; then am_conf=conf/am_tdnnf.yaml acoustic_units=${acoustic_units:-phones}; fi
waveforms=()
if [ "$am" = ssl ]; then
  am_conf=conf/am_ssl.yaml ivectors="" waveforms=(--type waveform) disk=$((disk - train / 10 + 10)) # reads the corpus' own files
  case "$checkpoint" in
    *XLARGE* | *_1B*) float_mb=3900 ;;
    *_2B*) float_mb=8700 ;;
    *LARGE* | *XLSR*) float_mb=1300 ;;
    *) float_mb=400 ;;
  esac
  [ ! -e "$checkpoint" ] || float_mb=$(du -cLm "$checkpoint" | tail -n 1 | cut -f 1)
  # fine-tuned already: taken as it is, over its letters, unless other units are asked for, and put on few bits by CTC too
  kind=$(mpq import-am --checkpoint "$checkpoint" --check)
  if [ -z "$acoustic_units" ] && [[ $kind = "import-am: fine-tuned: "* ]]; then
    acoustic_units=letters am_search=(--loss ctc) am_train=(--ctc_part 1)
  fi
  acoustic_units=${acoustic_units:-phones}
fi
# of each row a checkpoint, four times a float model, and its weights, and lattices
[[ $table = @(none|lm) ]] || disk=$((disk + ${#chosen_rows[@]} * (9 * float_mb / 2 + 200) / 1000))
lang_options=(--acoustic-units "${acoustic_units:-pieces}")
[ "$acoustic_units" != letters ] || lang_options+=(--letters "$exp/am/units.txt")
if [ "$smoke" = true ]; then
  disk=1 memory=4 job_memory="" am_memory="" sets=(dev-clean test-clean) lms=(lstm) systems=(lstm-2bit)
  model_options=(--model.dim 16 --model.heads 2 --model.feed_forward 32 --model.layers 1 --model.channels 4)
  [ "$am" != ssl ] || model_options=()
  [ "$am" != tdnnf ] || model_options=(--model.hidden 48 --model.bottleneck 16 --model.first_bottleneck 16 --model.channels "[4,8]"
    --model.height_strides "[2,2]" --model.strides "[1]" --model.prefinal 16)
  small_am=(--fit.epochs 4 --fit.average 0 --epoch_part 0.5 --max_frames 4000)
  [ "$am" = ssl ] || model_options+=(--model.ivector_dim 8)
  small_ivector=(--dim 8 --gaussians 8 --iterations 2) lang_options+=(--pieces 60)
  small_lm=(--fit.epochs 1) small_dim=(--model.dim 64 --model.layers 1)
fi
[ "$am" != ssl ] || model_options+=(--checkpoint "$checkpoint")
out=$exp/table-$table

if stage 0; then check_corpus librispeech "$disk"; fi

if stage 1; then
  names=(train dev-clean dev-other test-clean test-other)
  names=("${names[@]/%//cuts.jsonl.gz}")
  step prepare --out "${names[@]/#/$exp/data/}" "$exp"/data/lm/{train.txt,dev.txt,test.txt,transcripts.txt,lexicon.txt,3-gram.arpa} \
    -- mpq prepare librispeech "${corpus_options[@]}" --out "$exp/data"
fi
# not prepared yet: --dry-run shows all
if [[ $table = @(none|lm) ]] && { [ -f "$exp/data/lm/4-gram.arpa.gz" ] || [ ! -f "$exp/data/lm/3-gram.arpa" ]; }; then ngram=4-gram; fi

if stage 2; then make_features "$speeds" "${waveforms[@]}"; fi

if stage 3; then
  text=$exp/data/lm
  # its letters are the units of the graph
  [ "$acoustic_units" != letters ] || step am --in conf/am_letters.yaml --out "$exp"/am/{model.mpq,units.txt} \
    -- mpq import-am --config conf/am_letters.yaml --checkpoint "$checkpoint" --out "$exp/am"
  step lang --in conf/lang.yaml "$text"/{transcripts.txt,lexicon.txt,3-gram.arpa} "$exp"/data/dev-{clean,other}/text \
    --out "$exp"/lang/{lexicon.txt,tokenizer.model,lm.arpa,HLG.fst} \
    -- mpq lang --config conf/lang.yaml --dictionary "$text/lexicon.txt" cmudict --text "$text/transcripts.txt" \
      --transcripts "$exp"/data/dev-{clean,other}/text --arpa "$text/3-gram.arpa" --out "$exp/lang" "${lang_options[@]}"
fi

if stage 4; then [ "$acoustic_units" = letters ] || train_acoustic_model; fi

if [[ $table = @(conformer|ssl) ]]; then
  if stage 7; then
    step "$table" --in "$exp/am/model.mpq" --out "$out/am/$table/model.mpq" -- install -D "$exp/am/model.mpq" "$out/am/$table/model.mpq"
    search_am_bits
  fi
  if stage 8; then train_am_rows; fi
  if stage 9; then decode_am_rows; fi
  if stage 10; then report_rows "$out" "conf/table_$table.yaml" "$table" list_am_rows; fi
  finish
  exit
fi

if stage 5; then
  decode_sets
  rescore_by_ngram
fi

language_model_stages
if stage 10; then
  if [ "$table" = lm ]; then report_table_lm; else report_results; fi
fi
finish
