#!/usr/bin/env bash
# Builds the CUDA backend, tests it on this machine's GPU, checks the shipped model's golden numbers
# on it, times its kernels and a two-layer Mixtral 8x7B, and writes one compact report.
#
#   tools/gpu_check.sh [REPORT, default build/cuda/gpu_report.txt]
#   OSTRO_GPU_STEPS="build ops sanitize golden kernels latency" chooses the steps; all is the default.
set -uo pipefail
cd "$(dirname "$0")/.."
build=build/cuda
report=${1:-$build/gpu_report.txt}
steps=${OSTRO_GPU_STEPS:-build ops sanitize golden kernels latency}
logs=$build/logs
mkdir -p "$logs" "$(dirname "$report")"
: >"$report"
failures=0

say() { printf '%s\n' "$*" | tee -a "$report"; }
wanted() { case " $steps " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
# step NAME SECONDS COMMAND...: runs it with its output in a log; one line in the report.
step() {
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  if timeout "$limit" "$@" >"$logs/$name.log" 2>&1; then
    say "ok    $name ($((SECONDS - start)) s)"
  else
    say "FAIL  $name (exit $?, $((SECONDS - start)) s)"
    tail -n "${FAIL_LINES:-25}" "$logs/$name.log" | cut -c1-300 | tee -a "$report"
    failures=$((failures + 1))
    return 1
  fi
}

say "gpu_check of $(git describe --always --dirty 2>/dev/null || echo 'no git')"
say "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | head -1)"
say "$(nvcc --version | tail -2 | head -1); $(c++ --version | head -1)"

if wanted build; then
  launcher=()
  command -v ccache >/dev/null ||
    launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER= -DCMAKE_CUDA_COMPILER_LAUNCHER=)
  step configure 120 cmake --preset cuda "${launcher[@]}" || exit 1
  # -k 0: the tests of the ops run even if something else does not build.
  step compile 900 cmake --build "$build" -j "$(nproc)" -- -k 0
fi

if wanted ops; then
  FAIL_LINES=60 step gpu_tests 400 ctest --test-dir "$build" -L gpu -j 4 --output-on-failure
  grep -E '^ *[0-9]+/[0-9]+ Test|tests passed' "$logs/gpu_tests.log" | tee -a "$report"
fi

if wanted sanitize && command -v compute-sanitizer >/dev/null; then
  for family in attention draw embed linear moe norm rotary sample; do
    step "memcheck_$family" 300 compute-sanitizer --error-exitcode 9 --print-limit 5 \
      "$build/bin/gpu_ops_${family}_test"
  done
  # Races between the threads of a block, in what shares memory: every kernel once or more.
  race() {
    step "racecheck_$1" 300 compute-sanitizer --tool racecheck --error-exitcode 9 --print-limit 5 \
      "$build/bin/gpu_ops_$1_test" --gtest_filter="$2"
  }
  race linear '*ForManyTokens'
  race moe '*ForMoreChoicesAndF32Weights:Route.MatchesReferenceAtMixtralsSizeAndAtTheLimit'
  race attention '*AtMixtralsSize:*ForEveryGroup'
  race norm '*ForEveryWeightTypeAtMixtralsWidth'
fi

if wanted golden; then
  step golden 300 python3 tools/gpu_golden.py --ostro "$build/bin/ostro"
  cat "$logs/golden.log" >>"$report"
fi

if wanted kernels; then
  step kernels 240 "$build/bin/cuda_kernels_bench"
  cat "$logs/kernels.log" | tee -a "$report"
fi

if wanted latency; then
  engine=$build/mixtral_two_layers
  step dummy_engine 240 "$build/bin/ostro" build --preset mixtral-8x7b --n_layer 2 --dtype bfloat16 \
    --output_dir "$engine"
  step latency 240 "$build/bin/ostro" bench latency --engine_dir "$engine" --device cuda \
    --input_len 512,2048,8192 --batch_size 1,8,32,64,128 --prompt_len 64 --output_len 20 \
    --repetitions 3
  cat "$logs/latency.log" | tee -a "$report"
  rm -rf "$engine"
fi

say "$failures failed"
exit $((failures > 0))
