#!/usr/bin/env bash
# Runs one tool of compute-sanitizer over a small part of each family of GPU operations: every kernel
# once or more, at few shapes. One line a family; fails if a tool found something or a test failed.
#
#   tools/sanitize_ops.sh memcheck|racecheck|synccheck|initcheck [FAMILY ...]
set -uo pipefail
cd "$(dirname "$0")/.."
declare -A tests=(
  [attention]='*ForEveryGroup:*AtMixtralsSize'
  [copy_blocks]='*'
  [draw]='Draw.MatchesReference'
  [embed]='Embed.OfASlice:GatherRows.*'
  [linear]='*ForManyTokens:*DecodesEvery*:*OfE4m3WeightsIsScaled*'
  [moe]='*ForMoreChoicesAndF32Weights:*OfKnownActivations:*IsZeroWithoutALocalExpert'
  [norm]='*ForEveryWeightTypeAtMixtralsWidth'
  [rotary]='*MatchesReference'
  [route]='*AtMixtralsSizeAndAtTheLimit'
  [sample]='*MatchesReferenceForOddRows'
)
tool=${1:?memcheck, racecheck, synccheck or initcheck}
shift
# initcheck takes a copy of the last few bytes of a row for one of 16: false alarms for rows of K = 1.
[ "$tool" = initcheck ] && tests[linear]='*ForManyTokens:*OfE4m3WeightsIsScaled*'
families=("$@")
[ $# -gt 0 ] || mapfile -t families < <(printf '%s\n' "${!tests[@]}" | sort)

sanitize() {  # FAMILY FILTER
  local log=build/cuda/logs/${tool}_$1.log begin=$SECONDS status verdict=ok
  timeout 150 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 5 \
    "build/cuda/bin/gpu_ops_$1_test" --gtest_filter="$2" >"$log" 2>&1
  status=$?
  # A filter that names no test runs none, and finds nothing.
  grep -q '\[       OK \]' "$log" || verdict=FAIL
  [ "$status" -eq 0 ] || verdict=FAIL
  echo "$verdict $tool $1, $(grep -c '\[       OK \]' "$log") tests ($((SECONDS - begin)) s, exit $status)"
  [ "$verdict" = ok ] || grep -E '^=====|FAILED' "$log" | head -12
  [ "$verdict" = ok ]
}

mkdir -p build/cuda/logs
failed=0
running=()
for family in "${families[@]}"; do
  sanitize "$family" "${tests[$family]:?no family $family}" &
  running+=($!)
done
for pid in "${running[@]}"; do wait "$pid" || failed=1; done
exit $failed
