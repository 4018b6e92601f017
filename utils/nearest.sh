# shellcheck shell=bash
# Suggests the word that was probably meant. Sourced; needs awk only, since it runs before .venv is made.

# Prints "; did you mean 'X'?" for the nearest CANDIDATE (Levenshtein distance at most half of the longer word),
# or nothing where none is near: did_you_mean WORD CANDIDATE...
did_you_mean() {
  [ $# -gt 1 ] || return 0
  printf '%s\n' "$@" | awk '
    function min(a, b) { return a < b ? a : b }
    function distance(s, t,   i, j, row, diag, old) {
      for (j = 0; j <= length(t); j++) row[j] = j
      for (i = 1; i <= length(s); i++) {
        diag = row[0]; row[0] = i
        for (j = 1; j <= length(t); j++) {
          old = row[j]
          row[j] = min(min(row[j], row[j - 1]) + 1, diag + (substr(s, i, 1) != substr(t, j, 1)))
          diag = old
        }
      }
      return row[length(t)]
    }
    NR == 1 { word = $0; next }
    {
      d = index($0, word) == 1 ? 0.5 : distance(word, $0)
      longer = length($0) > length(word) ? length($0) : length(word)
      if (d <= longer / 2 && (best == "" || d < least)) { best = $0; least = d }
    }
    END { if (best != "") printf "; did you mean \047%s\047?", best }'
}
