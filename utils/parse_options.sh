# shellcheck shell=bash
# The options that every recipe has, with their checks; a recipe adds its own with `option`. Sourced by stage.sh, which
# says where the recipe is (recipe_file, recipe_dir, recipe_name) and what its stages are called (stage_names).
# shellcheck disable=SC2034,SC2154
#
#   units=bpe
#   option units "bpe|word" HELP      declares --units; the value stands in $units (--a-b: $a_b), which holds the default now
#       types: count (1, 2, ...)  whole (0, 1, ...)  number  dir (a folder that exists)  path  text  flag (true or false)  a|b|c
#       a dir may be given more than once where the recipe reads the array ${NAMEs[@]} (corpus_dirs); $NAME is the last
#   parse_options "$@"                checks and sets all; --help prints the recipe's head comment and the options
#   need_option NAME WHAT             before parse_options: it exits 2 where the option is not given
#   check_options() { ...; }          the recipe's own checks, called last by parse_options; option_die MESSAGE exits 2

declare -A option_type=() option_help=() option_default=() option_needed=()
option_names=()

option() {
  local variable=${1//-/_}
  [ -n "${option_type[$1]:-}" ] || option_names+=("$1") # declared again: with another default
  option_type[$1]=$2 option_help[$1]=$3 option_default[$1]=${!variable}
  declare -gx "$variable"
}

# GB; not the user's own variables: a recipe sets them, or SLURM is not asked for any (see stage.sh). am_memory: of the
# acoustic model's training, which has a process for each GPU; empty: memory
memory=0 job_memory="" am_memory=""
corpus_dir="" corpus_dirs=() exp_dir="" stage=0 stop_stage=10 nj=$(nproc) gpus=0 cmd=run seed=0 smoke=false dry_run=false
option corpus-dir dir "folder that holds the corpus"
option exp-dir path "where everything is written (default: exp beside the recipe; exp-smoke with --smoke)"
option stage whole "first stage to run"
option stop-stage whole "last stage to run"
option nj count "jobs or threads at once"
option gpus whole "GPUs to use; 0: none"
option cmd "run|slurm" "run jobs on this machine, or submit them to SLURM"
option seed whole "seed of everything random"
option smoke flag "a run of minutes on a small part of the data; its numbers mean nothing"
option dry-run flag "print the commands, run nothing"

option_die() {
  printf '%s: error: %s\n' "${recipe_name:-run.sh}" "$*" >&2
  exit 2
}

# Does VALUE fit TYPE? Prints what was expected where it does not: option_check TYPE VALUE
option_check() {
  case "$1" in
    count) [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || echo "a whole number from 1" ;;
    whole) [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || echo "a whole number from 0" ;;
    number) [[ $2 =~ ^-?([0-9]+\.?[0-9]*|\.[0-9]+)(e-?[0-9]+)?$ ]] || echo "a number" ;;
    dir) [ -d "$2" ] || echo "a folder that exists" ;;
    path | text) [ -n "$2" ] || echo "something" ;;
    flag) [[ $2 =~ ^(true|false)$ ]] || echo "true, false or no value" ;;
    *"|"*) [[ "|$1|" == *"|$2|"* && $2 != *"|"* ]] || echo "one of ${1//|/, }" ;;
    *) echo "a known type (the recipe declares '$1')" ;;
  esac
}

option_usage() {
  local name value
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$recipe_file"
  printf '\nusage: ./run.sh %s [options]\n' "$recipe_name"
  for name in "${option_names[@]}"; do
    case "${option_type[$name]}" in
      flag) value="" ;;
      count | whole | number) value=N ;;
      *"|"*) value=${option_type[$name]} ;;
      *) value=${option_type[$name]^^} ;;
    esac
    printf '  --%-20s %s' "$name $value" "${option_help[$name]}"
    [ -z "$value" ] || [ -z "${option_default[$name]}" ] || printf ' (default: %s)' "${option_default[$name]}"
    printf '\n'
  done
  printf '\nstages:\n'
  for name in "${!stage_names[@]}"; do printf '  %2d %s\n' "$name" "${stage_names[$name]}"; done
}

parse_options() {
  local name value wanted
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help)
        option_usage
        exit 0
        ;;
      --*) ;;
      *) option_die "unexpected '$1'; options start with -- (see --help)" ;;
    esac
    name=${1%%=*}
    name=${name#--}
    if [ -z "$name" ] || [ -z "${option_type[$name]:-}" ]; then
      option_die "no option '--$name'$(did_you_mean "--$name" "${option_names[@]/#/--}"); see --help"
    fi
    if [[ $1 == *=* ]]; then
      value=${1#*=}
    elif [ "${option_type[$name]}" = flag ]; then
      value=true
    elif [ $# -lt 2 ] || [[ $2 == --* ]]; then
      option_die "--$name needs a value: ${option_help[$name]}"
    else
      value=$2
      shift
    fi
    shift
    wanted=$(option_check "${option_type[$name]}" "$value")
    [ -z "$wanted" ] || option_die "--$name '$value': expected $wanted"
    case "${option_type[$name]}" in dir | path) value=$(realpath -m -- "$value") ;; esac
    declare -gx "${name//-/_}=$value"
    if [ "${option_type[$name]}" = dir ]; then
      local -n all=${name//-/_}s
      all+=("$value")
    fi
  done
  option_cross_checks
}

# What no single option shows.
option_cross_checks() {
  local name last=$((${#stage_names[@]} - 1))
  for name in "${!option_needed[@]}"; do
    local variable=${name//-/_}
    # --rows list needs none
    [ "${rows:-}" = list ] || [ -n "${!variable}" ] || option_die "--$name is needed: ${option_needed[$name]}"
  done
  if [ "$stage" -gt "$last" ]; then option_die "--stage $stage: the last stage is $last (see --help)"; fi
  if [ "$stop_stage" -gt "$last" ]; then option_die "--stop-stage $stop_stage: the last stage is $last (see --help)"; fi
  if [ "$stage" -gt "$stop_stage" ]; then option_die "--stage $stage comes after --stop-stage $stop_stage: nothing to run"; fi
  if [ "$cmd" = slurm ] && ! command -v sbatch > /dev/null; then option_die "--cmd slurm: no sbatch on PATH; use --cmd run, or a SLURM login node"; fi
  if [ -z "$exp_dir" ]; then
    exp_dir=$recipe_dir/exp
    [ "$smoke" = false ] || exp_dir=$recipe_dir/exp-smoke
  fi
  if declare -F check_options > /dev/null; then check_options; fi
}

need_option() {
  option_needed[$1]=$2
}
