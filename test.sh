#!/usr/bin/env bash
# Installs what is missing, builds everything for the CPU and runs the checks and tests.
#
#   ./test.sh           what every change has to pass: no GPU needed. The CUDA code is compiled and
#                       linked where nvcc is, and its tests run where a GPU is
#   ./test.sh --slow    and the slow tests, most fast ones under AddressSanitizer, those of threads
#                       under ThreadSanitizer, each fuzz target for 60 s, and a comparison with
#                       Hugging Face transformers
#
# One line a stage; the whole output of each is in build/test-logs/. Ends with ctest's own verdict.
set -uo pipefail
cd "$(dirname "$0")"

slow=0
for arg in "$@"; do
  case $arg in
    --slow) slow=1 ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "test.sh: unknown argument '$arg' (known: --slow)" >&2; exit 2 ;;
  esac
done

jobs=$(nproc)
logs=build/test-logs
mkdir -p $logs
# Ranks of one machine, as root in a container and more of them than cores.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1

summary=()
failed=()
begin=$SECONDS

# What a reader wants of a failed stage's log: compiler errors or failed tests, else its end.
show_failure() {
  local log=$1
  if grep -qE '(^|: )(fatal )?error:|^FAILED: |undefined reference' "$log"; then
    grep -nE -A 4 '(^|: )(fatal )?error:|^FAILED: |undefined reference' "$log" | cut -c 1-240 | head -n 40
  elif grep -qE '^ *[0-9]+/[0-9]+ Test .*\*\*\*' "$log"; then
    # With --output-on-failure a failed test's output follows its line.
    awk '/Test +#[0-9]+:.*\*\*\*/ { show = 1 } /Test +#[0-9]+:.* Passed/ { show = 0 }
         /^ *Start +[0-9]+:/ || /% tests passed/ { show = 0 } show' "$log" | cut -c 1-240 | tail -n 80
    sed -n '/The following tests FAILED/,$p' "$log"
  else
    tail -n 40 "$log"
  fi | sed 's/^/    /'
  echo "    The whole log is $log"
}

# stage NAME COMMAND...: runs it, says how it went, remembers.
stage() {
  local name=$1 start=$SECONDS status log
  shift
  log=$logs/${name// /-}.log
  printf '%-22s ' "$name"
  "$@" >"$log" 2>&1 </dev/null
  status=$?
  local seconds=$((SECONDS - start))
  if [ $status = 0 ]; then
    printf 'passed %5d s\n' $seconds
    summary+=("$(printf '%-22s passed %5d s' "$name" $seconds)")
  else
    printf 'FAILED %5d s (exit code %d)\n' $seconds $status
    show_failure "$log"
    summary+=("$(printf '%-22s FAILED %5d s' "$name" $seconds)")
    failed+=("$name")
  fi
  return $status
}

finish() {
  echo
  printf '%s\n' "${summary[@]}"
  printf '%-22s        %5d s\n' total $((SECONDS - begin))
  local log=$logs/tests.log
  if [ -e $log ] && [ "${tests_ran-}" = 1 ]; then
    sed -n '/% tests passed/,$p' $log | grep -v '^Label Time\|^[a-z]* *= ' | grep -v '^$' || true
  fi
  if [ ${#failed[@]} -gt 0 ]; then
    (IFS=,; echo "FAILED: ${failed[*]}")
    exit 1
  fi
  exit 0
}

configure() {  # PRESET: anew if the build folder is of another place, else ninja does it as needed
  local cache=build/$1/CMakeCache.txt
  if [ -e "$cache" ] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" "$cache"; then
    rm -rf "build/$1"
  fi
  [ -e "build/$1/build.ninja" ] || cmake --preset "$1"
}

# Tests that must not run beside others say so with RUN_SERIAL or PROCESSORS.
run_ctest() {  # PRESET ctest-options...
  local folder=build/$1
  shift
  ctest --test-dir "$folder" --output-on-failure --no-tests=error -j "$jobs" "$@"
}

# One target for a minute, from the seeds in tests/fuzz/corpus and what earlier runs found.
fuzz_one() {
  local name
  name=$(basename "$1")
  local corpus=build/fuzz/corpus/$name seeds=tests/fuzz/corpus/$name
  mkdir -p "$corpus"
  [ -d "$seeds" ] || seeds=
  "$1" -max_total_time=60 -timeout=10 -rss_limit_mb=2048 -artifact_prefix="build/fuzz/$name-" \
    "$corpus" $seeds >"build/fuzz/$name.log" 2>&1
  local status=$?
  echo "== $name: exit code $status"
  tail -n $([ $status = 0 ] && echo 2 || echo 60) "build/fuzz/$name.log"
  return $status
}

fuzz_targets() {  # as many at once as there are cores: each has one thread
  local targets=(build/fuzz/bin/*_fuzz)
  [ -x "${targets[0]}" ] || { echo "error: no fuzz target in build/fuzz/bin"; return 1; }
  export -f fuzz_one
  printf '%s\n' "${targets[@]}" | xargs -n 1 -P "$jobs" bash -c 'fuzz_one "$0"' &&
    echo "${#targets[@]} targets"
}

# Ten minutes of mixed work on a server, beside the stages that follow: it lasts as long however many
# requests it gets done.
start_soak() {
  run_ctest cpu -L soak -V >$logs/soak-run.log 2>&1 &
  soak_pid=$!
}
end_soak() {
  local status=0
  wait "$soak_pid" || status=$?
  cat $logs/soak-run.log
  return $status
}

transformers_compare() {
  local python=build/transformers-venv/bin/python
  if [ ! -x $python ]; then
    python3 -m venv build/transformers-venv || return 1
    build/transformers-venv/bin/pip install --quiet torch transformers safetensors numpy || return 1
  fi
  $python tools/make_goldens.py --check && $python tools/compare_transformers.py build/cpu/bin/ostro
}

# What the CUDA backend adds, and the program with it; no GPU is needed to compile and link. Objects
# that the CPU build has come from ccache.
cuda_build() {
  configure cuda &&
    cmake --build build/cuda -j "$jobs" --target ostro gpu_tests backends_cuda_tests \
      comm_nccl_tests comm_nccl_library_test comm_nccl_peer_memory_host_test
}

deps_options=()
[ $slow = 0 ] || deps_options=(--slow)
stage packages tools/deps.sh "${deps_options[@]}" || finish
stage layers python3 tools/check_layers.py
stage files python3 tools/check_files.py
stage format tools/check_format.sh
stage configure configure cpu || finish
stage build cmake --build build/cpu -j "$jobs" || finish

[ ! -e docs/CLI.md ] || stage 'cli docs' python3 tools/check_cli_docs.py build/cpu/bin/ostro

exclude='slow|gpu'
[ $slow = 0 ] || exclude='soak|gpu'
tests_ran=1
stage tests run_ctest cpu -LE "$exclude"

if command -v nvcc >/dev/null; then
  stage 'cuda build' cuda_build &&
    stage 'cuda tests' run_ctest cuda -R '^(backends\.cuda|comm\.nccl|gpu)\.'
else
  line='cuda build             left out: there is no nvcc here (CUDA 13 has it)'
  echo "$line"
  summary+=("$line")
fi

if [ $slow = 1 ]; then
  start_soak
  # Left out under AddressSanitizer, for the whole to stay within the hour: the long runs of the
  # program, whose code the tests of the layers below reach, and those of ops that spend most of
  # their time in references; engine.* runs the same kernels.
  long_runs='^e2e\.(golden|ranks|pipeline|batch_invariance|fp8|weight_only|cli|commands)$'
  long_runs+='|^server\.bench$|^ops\.(attention|linear|moe|sample)$'
  stage 'asan build' eval "configure asan && cmake --build build/asan -j $jobs" &&
    stage 'asan tests' run_ctest asan -L fast -E "$long_runs"
  # For the same reason only the tests of what has threads, and of guides those of the layers below
  # the server: one for all 32000 tokens takes minutes to compile there. Of ranks, which are
  # processes, ThreadSanitizer sees nothing that they do to memory they share.
  stage 'tsan build' eval "configure tsan && cmake --build build/tsan -j $jobs --target thread_tests" &&
    stage 'tsan tests' run_ctest tsan -L threads -E '^server\.guided$'
  stage 'fuzz build' eval "configure fuzz && cmake --build build/fuzz -j $jobs --target fuzz_targets" &&
    stage 'fuzz' fuzz_targets
  stage soak end_soak
  stage 'transformers' transformers_compare
fi
finish
