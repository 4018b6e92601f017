# shellcheck shell=bash
# The stage runner. A recipe (egs/NAME/run.sh) is a list of stages, a stage a list of steps and jobs:
#
#   #!/usr/bin/env bash
#   # NAME: one line for `./run.sh --help`; the following comment lines are printed by `./run.sh NAME --help`.
#   set -euo pipefail
#   # shellcheck source=utils/stage.sh
#   source "$(dirname "${BASH_SOURCE[0]}")/../../utils/stage.sh"
#   units=bpe
#   option units "bpe|word" "units of the language models"            # own options: see parse_options.sh
#   need_option corpus-dir "the folder that holds wav/ and etc/"
#   recipe "$@"                     # parses the options, makes .venv, goes to the recipe's folder
#   exp=$exp_dir
#
#   if stage 1; then
#     step prepare --in conf/data.yaml --out "$exp/data/train/cuts.jsonl.gz" \
#       -- mpq prepare NAME --config conf/data.yaml --out "$exp/data" --seed "$seed"
#   fi
#   if stage 6; then
#     for lm in lstm transformer; do
#       job "$lm" --gpu 1 --in conf/$lm.yaml "$exp/data/lm/train.txt" --out "$exp/lm/$lm/model.mpq" \
#         -- mpq train-lm --config conf/$lm.yaml --out "$exp/lm/$lm"
#     done
#     run_jobs                      # --nj at a time
#   fi
#   finish
#
# step NAME [--in FILE...] [--out FILE...] [--threads N] [--gpu N] [--memory GB] -- COMMAND...   runs now
# job  NAME ... (the same)                                                                     waits for run_jobs
#   COMMAND is a program with its arguments, or a shell function of the recipe (it sees exported variables only).
#   It is done when it exited 0 and all of --out exist. It runs again where a word of the command, a file of --in or
#   a file of --out changed or is gone, and says which. The value of a `--nj` in the command may change freely.
#   --threads: OMP_NUM_THREADS (default: --nj for a step; shared evenly among the jobs of a stage), of each process where
#   there is one for each of several GPUs a share. SLURM is asked for as many CPUs, for at least 8 a GPU, for at most --nj.
#   --gpu: how many of the --gpus it is given, by CUDA_VISIBLE_DEVICES (default: 0).
#   --memory: what SLURM is asked for, GB (default: $memory for a step, $job_memory for a job, if the recipe sets them).
#
# Written: $exp_dir/log/stageN.NAME.log and $exp_dir/.done/N.NAME (what it was made from; remove it to run it again).

stage_names=(check data features lang "acoustic model" decode "language models" "bit search"
  "quantized training and packing" rescore "score, compare, report")

stage_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
recipe_file=$(realpath "${BASH_SOURCE[1]:-$0}")
recipe_dir=$(dirname "$recipe_file")
recipe_name=$(basename "$recipe_dir")
stage_now=""
stage_queue=()
# shellcheck source=utils/nearest.sh
source "$stage_root/utils/nearest.sh"
# shellcheck source=utils/parse_options.sh
source "$stage_root/utils/parse_options.sh"

recipe() {
  parse_options "$@"
  # shellcheck source=path.sh
  source "$stage_root/path.sh"
  cd "$recipe_dir" || exit 1
  if [ "$dry_run" = false ]; then
    mkdir -p "$exp_dir/log" "$exp_dir/.done" || exit 2
    exec 8> "$exp_dir/.lock"
    flock -w 3 8 || option_die "$exp_dir is in use by another run; wait for it, or give this one another --exp-dir"
  fi
  SECONDS=0
}

# Seconds as m:ss or h:mm:ss.
stage_clock() {
  if [ "$1" -lt 3600 ]; then
    printf '%d:%02d' $(($1 / 60)) $(($1 % 60))
  else
    printf '%d:%02d:%02d' $(($1 / 3600)) $(($1 % 3600 / 60)) $(($1 % 60))
  fi
}

# Ends the stage that is open: its jobs, its time.
stage_end() {
  [ -n "$stage_now" ] || return 0
  run_jobs || exit # set -e is off inside `if stage N`
  [ "$dry_run" = true ] || printf -- '-- stage %d took %s\n' "$stage_now" "$(stage_clock $((SECONDS - stage_start)))"
  stage_now=""
}

# True where --stage and --stop-stage let stage N run: if stage N; then ...; fi
stage() {
  stage_end
  if [ "$1" -lt "$stage" ] || [ "$1" -gt "$stop_stage" ]; then return 1; fi
  stage_now=$1 stage_start=$SECONDS
  printf '== %s, stage %d: %s\n' "$recipe_name" "$1" "${stage_names[$1]}"
}

# The command words of a step, with a shell function made a program: sets stage_words. stage_resolve WORD...
stage_resolve() {
  stage_words=()
  while [ $# -gt 0 ]; do
    stage_words+=("$1")
    shift
    [ "${stage_words[-1]}" != -- ] || break
  done
  if [ $# -gt 0 ] && declare -F "$1" > /dev/null; then
    stage_words+=(bash -euo pipefail -c "$(declare -f "$1"); $1 \"\$@\"" "$1" "${@:2}")
  else
    stage_words+=("$@")
  fi
}

# Runs what stands on its input, for each step the number of its words and the words, NUL after each: see steps.py.
stage_run() {
  local options=(--recipe "$recipe_name" --stage "$stage_now" --exp-dir "$exp_dir" --nj "$nj" --gpus "$gpus" --cmd "$cmd")
  [ "$dry_run" = false ] || options+=(--dry-run)
  python "$stage_root/utils/steps.py" "${options[@]}" "$@"
}

step() {
  [ -n "$stage_now" ] || option_die "step $1 stands outside every stage"
  stage_resolve "$@"
  stage_run --memory "$memory" < <(printf '%s\0' "${#stage_words[@]}" "${stage_words[@]}")
}

job() {
  [ -n "$stage_now" ] || option_die "job $1 stands outside every stage"
  stage_resolve "$@"
  stage_queue+=("${#stage_words[@]}" "${stage_words[@]}")
}

run_jobs() {
  [ "${#stage_queue[@]}" -gt 0 ] || return 0
  local queue=("${stage_queue[@]}")
  stage_queue=()
  stage_run --memory "${job_memory:-$memory}" --parallel < <(printf '%s\0' "${queue[@]}")
}

# The last line of a recipe.
finish() {
  stage_end
  [ "$dry_run" = true ] || printf '== %s: done in %s\n' "$recipe_name" "$(stage_clock "$SECONDS")"
}
