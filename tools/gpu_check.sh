#!/usr/bin/env bash
# Builds the CUDA backend, tests it on this machine's GPU, checks the shipped model's golden numbers
# on it and on two ranks of it, times its kernels, Mixtral 8x7B (dummy weights), many requests at
# once and loading, and writes one compact report.
#
#   tools/gpu_check.sh [--bench] [REPORT, default build/cuda/gpu_report.txt]
#   --bench only times. OSTRO_GPU_STEPS="build ops sanitize golden fp8 ranks nccl kernels latency throughput
#   throughput_long load tune" chooses the steps; the default is all of them but sanitize and tune.
#   nccl needs two GPUs and NCCL, and says so where they are not.
set -uo pipefail
cd "$(dirname "$0")/.."
build=build/cuda
steps="kernels latency throughput throughput_long load"
if [ "${1:-}" = --bench ]; then
  steps="build $steps"
  shift
else
  steps="build ops golden fp8 ranks nccl $steps"
fi
steps=${OSTRO_GPU_STEPS:-$steps}
report=${1:-$build/gpu_report.txt}
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
  step compile 900 cmake --build "$build" -j "$(nproc)" \
    --target ostro gpu_tests cuda_kernels_bench cuda_upload_bench comm_nccl_bench -- -k 0
fi

if wanted ops; then
  FAIL_LINES=60 step gpu_tests 400 ctest --test-dir "$build" -L gpu -j 4 --output-on-failure
  grep -E '^ *[0-9]+/[0-9]+ Test|tests passed' "$logs/gpu_tests.log" | tee -a "$report"
fi

# What races, misses a barrier, or touches memory that is not there or not written: a few minutes, so
# only where it is asked for.
if wanted sanitize; then
  for tool in memcheck racecheck synccheck initcheck; do
    step "$tool" 200 tools/sanitize_ops.sh "$tool"
    cat "$logs/$tool.log" >>"$report"
  done
fi

if wanted golden; then
  step golden 300 python3 tools/gpu_golden.py --ostro "$build/bin/ostro"
  cat "$logs/golden.log" >>"$report"
fi

# Perplexity of the shipped model with fp8 weights beside bf16's, on this GPU and on the CPU as the
# GPU rounds activations; and with int4 weights, prompts in fp8 or not.
if wanted fp8; then
  score() {  # NAME ENGINE flags...
    local name=$1 engine=$2
    shift 2
    step "fp8_$name" 200 "$build/bin/ostro" eval perplexity --engine_dir "$build/$engine" \
      --tokenizer_dir models/tiny-mixtral --dataset models/tiny-mixtral/validation.jsonl "$@"
    say "      $(tail -1 "$logs/fp8_$name.log")"
  }
  build_tiny() {
    "$build/bin/ostro" build --model_dir models/tiny-mixtral --log_level off --output_dir "$build/$1" "${@:2}"
  }
  build_tiny tiny_bf16
  build_tiny tiny_fp8 --enable_fp8
  build_tiny tiny_fp8_kv --enable_fp8 --fp8_kv_cache
  build_tiny tiny_int4 --use_weight_only --weight_only_precision int4
  score bf16 tiny_bf16 --device cuda
  score weights tiny_fp8 --device cuda
  score cpu tiny_fp8 --device cpu --emulate_fp8_activations
  score kv tiny_fp8_kv --device cuda
  score int4 tiny_int4 --device cuda
  score int4_fp8_prompts tiny_int4 --device cuda --fp8_prompts
  rm -rf "$build"/tiny_{bf16,fp8,fp8_kv,int4}
fi

# Generated ids of the shipped model in float32: run_ids NAME ostro-run-flags...
run_ids() {
  local out=$1
  shift
  "$build/bin/ostro" run --max_output_len 48 --end_id -1 --max_tokens_in_paged_kv_cache 8192 \
    --tokenizer_dir models/tiny-mixtral --output_csv "$logs/$out.csv" "$@" \
    --input_text "I love french quiche" "A fast web server" "The" "Once upon a time there was"
}
# same_ids NAME flags...: those of one rank on the CPU.
same_ids() { run_ids "$@" && cmp "$logs/cpu_ids.csv" "$logs/$1.csv"; }
export -f run_ids same_ids
export build logs

# The shipped model in float32 for one rank and for two that share the experts out.
build_pair() {
  "$build/bin/ostro" build --model_dir models/tiny-mixtral --dtype float32 --log_level off \
    --output_dir "$build/tiny_one"
  "$build/bin/ostro" build --model_dir models/tiny-mixtral --dtype float32 --log_level off \
    --output_dir "$build/tiny_ep2" --tp_size 2 --moe_ep_size 2
}

if wanted ranks; then
  build_pair
  one=(--engine_dir "$build/tiny_one")
  shared=(--device cuda --share_gpus)
  step ids_cpu 60 bash -c 'run_ids "$@"' _ cpu_ids "${one[@]}" --device cpu
  step ids_cuda 60 bash -c 'same_ids "$@"' _ cuda "${one[@]}" --device cuda
  step ids_no_graphs 60 bash -c 'same_ids "$@"' _ no_graphs "${one[@]}" --device cuda --cuda_graphs false
  step ids_tp2 60 bash -c 'same_ids "$@"' _ tp2 "${one[@]}" "${shared[@]}" --tp_size 2
  step ids_pp2 60 bash -c 'same_ids "$@"' _ pp2 "${one[@]}" "${shared[@]}" --pp_size 2
  step ids_ep2 60 bash -c 'same_ids "$@"' _ ep2 --engine_dir "$build/tiny_ep2" "${shared[@]}"
  rm -rf "$build/tiny_one" "$build/tiny_ep2"

  # Two layers of Mixtral 8x7B at full width, in float32 so that a sum in another order is no tie.
  slice=$(mktemp -d -p /dev/shm)
  build_slice=("$build/bin/ostro" build --preset mixtral-8x7b --n_layer 2 --dtype float32)
  # NAME ENGINE flags...: the ids of dummy weights after two prompts.
  slice_ids() {
    local name=$1 engine=$2
    shift 2
    "$build/bin/ostro" run --engine_dir "$slice/$engine" --device cuda --max_output_len 16 --end_id -1 \
      --max_tokens_in_paged_kv_cache 8192 --input_file "$slice/prompts.csv" \
      --output_csv "$slice/$name.csv" "$@" && cmp "$slice/one.csv" "$slice/$name.csv"
  }
  export -f slice_ids
  export slice
  { seq -s, 100 37 9000 && seq -s, 7 1009 31000; } >"$slice/prompts.csv"
  step slice_build 180 "${build_slice[@]}" --output_dir "$slice/one"
  step slice_one 90 bash -c 'slice_ids "$@"' _ one one
  step slice_tp2 90 bash -c 'slice_ids "$@"' _ tp2 one --share_gpus --tp_size 2
  step slice_pp2 90 bash -c 'slice_ids "$@"' _ pp2 one --share_gpus --pp_size 2
  rm -rf "$slice/one"
  step slice_build_ep2 180 "${build_slice[@]}" --output_dir "$slice/ep2" --tp_size 2 --moe_ep_size 2
  step slice_ep2 90 bash -c 'slice_ids "$@"' _ ep2 ep2 --share_gpus
  rm -rf "$slice"
fi

# Ranks with a GPU each, over NCCL: the tokens of one rank on the CPU, times beside one GPU's, and a
# rank that is killed.
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
if wanted nccl && [ "$gpus" -lt 2 ]; then
  say "skip  nccl: this machine has $gpus GPU, it takes two"
elif wanted nccl; then
  build_pair
  one=(--engine_dir "$build/tiny_one")
  nccl=(--device cuda --comm nccl)
  peer=(--device cuda --comm peer)
  step nccl_ids_cpu 60 bash -c 'run_ids "$@"' _ cpu_ids "${one[@]}" --device cpu
  step nccl_ids_tp2 90 bash -c 'same_ids "$@"' _ nccl_tp2 "${one[@]}" "${nccl[@]}" --tp_size 2
  step nccl_ids_tp2_peer 90 bash -c 'same_ids "$@"' _ nccl_tp2_peer "${one[@]}" "${peer[@]}" --tp_size 2
  step nccl_ids_pp2 90 bash -c 'same_ids "$@"' _ nccl_pp2 "${one[@]}" "${nccl[@]}" --pp_size 2
  step nccl_ids_ep2 90 bash -c 'same_ids "$@"' _ nccl_ep2 --engine_dir "$build/tiny_ep2" "${nccl[@]}"
  step nccl_ids_tp2_no_graphs 90 bash -c 'same_ids "$@"' _ nccl_tp2_no_graphs "${one[@]}" \
    "${nccl[@]}" --tp_size 2 --cuda_graphs false
  # As between hosts: no shared memory and no peer access, so sockets.
  step nccl_ids_sockets 120 env NCCL_SHM_DISABLE=1 NCCL_P2P_DISABLE=1 bash -c 'same_ids "$@"' _ \
    nccl_sockets "${one[@]}" "${nccl[@]}" --tp_size 2
  rm -rf "$build/tiny_one" "$build/tiny_ep2"
  step nccl_kill 120 python3 tools/kill_a_rank.py "$build/bin/ostro" bench latency --dummy_weights \
    --preset mixtral-8x7b --n_layer 8 --enable_fp8 --batch_size 8 --input_len 64 --prompt_len 64 \
    --output_len 20000 "${peer[@]}" --tp_size 2
  say "      $(tail -1 "$logs/nccl_kill.log")"
  # How GPUs are named, two hosts made of namespaces, and sums alone.
  step nccl_ranks 300 ctest --test-dir "$build" -R 'gpu\.mpi\.|gpu\.comm\.' --output-on-failure
  step nccl_bench 60 "$build/bin/comm_nccl_bench"
  cat "$logs/nccl_bench.log" | tee -a "$report"
  # Mixtral 8x7B in fp8: NAME flags...
  nccl_latency() {
    local name=nccl_latency_$1
    shift
    case " $* " in *' --input_len '*) ;; *) set -- --input_len 512,2048,8192 "$@" ;; esac
    step "$name" 240 "$build/bin/ostro" bench latency --dummy_weights --device cuda \
      --preset mixtral-8x7b --enable_fp8 --batch_size 1,8,32,64,128 \
      --prompt_len 64 --output_len 20 --repetitions 3 --warm_up 2 "$@"
    cat "$logs/$name.log" | tee -a "$report"
  }
  nccl_latency one
  nccl_latency tp2 --tp_size 2 --comm peer
  nccl_latency tp2_nccl --tp_size 2 --comm nccl
  nccl_latency ep2 --tp_size 2 --moe_ep_size 2 --comm peer
  nccl_latency pp2 --pp_size 2 --comm nccl
  # Prompts through host memory take seconds.
  nccl_latency tp2_host --tp_size 2 --comm host --input_len 512
  nccl_throughput() {  # REQUESTS INPUT OUTPUT experts' groups
    local name=nccl_throughput_$1_$2_$3_ep$4
    step "$name" 120 "$build/bin/ostro" bench throughput --dummy_weights --device cuda --tp_size 2 \
      --preset mixtral-8x7b --enable_fp8 --fp8_kv_cache --num_prompts "$1" --input_len "$2" \
      --output_len "$3" --moe_ep_size "$4" --max_batch_size 1024 --warm_up 1 --log_level off
    grep -E '^(requests|tokens|steady|ttft|tpot|step) ' "$logs/$name.log" | tee -a "$report"
  }
  nccl_throughput 1024 128 128 1
  nccl_throughput 1024 128 128 2
  nccl_throughput 512 1000 1000 1
  nccl_throughput 256 2048 128 1
fi

if wanted kernels; then
  step kernels 240 "$build/bin/cuda_kernels_bench"
  cat "$logs/kernels.log" | tee -a "$report"
  step kernels_e4m3 240 "$build/bin/cuda_kernels_bench" f8e4m3
  cat "$logs/kernels_e4m3.log" | tee -a "$report"
  step kernels_int4_e4m3 60 "$build/bin/cuda_kernels_bench" int4_e4m3 3150 1385 512 2048 8192
  cat "$logs/kernels_int4_e4m3.log" | tee -a "$report"
fi

if wanted latency; then
  # NAME LAYERS flags...: of 8x7B with dummy weights. In bf16 16 layers fill a GPU of 80 GB.
  latency() {
    local name=latency_$1 layers=$2
    shift 2
    step "$name" 240 "$build/bin/ostro" bench latency --dummy_weights --device cuda \
      --preset mixtral-8x7b --n_layer "$layers" --input_len 512,2048,8192 \
      --batch_size 1,8,32,64,128 --prompt_len 64 --output_len 20 --repetitions 3 --warm_up 2 "$@"
    cat "$logs/$name.log" | tee -a "$report"
  }
  latency 2_no_graphs 2 --cuda_graphs false
  latency 2 2
  latency 16 16
  latency fp8 32 --enable_fp8
  latency fp8_kv 32 --enable_fp8 --fp8_kv_cache
  latency int8 32 --use_weight_only --weight_only_precision int8
  latency int4 32 --use_weight_only --weight_only_precision int4
  latency int4_fp8_prompts 32 --use_weight_only --weight_only_precision int4 --fp8_prompts
fi

# Which tiles `ostro build --tune` finds faster than the plan's for 8x7B in fp8, and what steps of two
# layers gain, tuned and not in turns.
if wanted tune; then
  engine=$(mktemp -d -p /dev/shm)
  step tune 150 "$build/bin/ostro" build --preset mixtral-8x7b --n_layer 2 --enable_fp8 --tune \
    --output_dir "$engine"
  grep -v '%, ' "$logs/tune.log" | tee -a "$report"
  mv "$engine/tactics.json" "$engine.json"
  for round in 1 2; do
    for name in tuned plan; do
      rm -f "$engine/tactics.json"
      [ $name = plan ] || cp "$engine.json" "$engine/tactics.json"
      step "tune_${name}_$round" 60 "$build/bin/ostro" bench latency --engine_dir "$engine" \
        --device cuda --input_len 128,512,2048 --batch_size 1,8,32,64,128 --prompt_len 64 \
        --output_len 20 --warm_up 1
      grep -E '^(prefill|decode) ' "$logs/tune_${name}_$round.log" | tee -a "$report"
    done
  done
  rm -rf "$engine" "$engine.json"
fi

# Many requests at once through the executor, 8x7B with fp8 weights and cache, which gets more of the
# free memory than by default, since nothing else uses the GPU.
throughput() {  # REQUESTS INPUT OUTPUT SLOTS
  local name=throughput_$1_$2_$3
  step "$name" 300 "$build/bin/ostro" bench throughput --dummy_weights --device cuda \
    --preset mixtral-8x7b --enable_fp8 --fp8_kv_cache --num_prompts "$1" --input_len "$2" \
    --output_len "$3" --max_batch_size "$4" --kv_cache_free_gpu_memory_fraction 0.95 --warm_up 2 \
    --log_level off
  grep -E '^(requests|tokens|steady|ttft|tpot|itl|step) ' "$logs/$name.log" | tee -a "$report"
}
if wanted throughput; then
  throughput 256 128 128 256
  throughput 256 512 512 256
  throughput 2000 128 128 2048
fi
# As many as others publish, but of the longest as many as a GPU of 80 GB holds at once: their steady
# rate is that of more.
if wanted throughput_long; then
  throughput 1000 1000 1000 512
  throughput 1000 2048 128 256
  throughput 100 2048 2048 256
fi

# How fast an engine in memory reaches the GPU, and how soon there is a token: 8x7B in fp8, 47 GB, or
# four layers where /dev/shm is too small. The first load after the engine was written is slower.
if wanted load; then
  layers=32
  [ "$(df --output=avail -BG /dev/shm | tail -1 | tr -dc 0-9)" -ge 50 ] || layers=4
  engine=$(mktemp -d -p /dev/shm)/engine
  step load_engine 200 "$build/bin/ostro" build --preset mixtral-8x7b --enable_fp8 --n_layer "$layers" \
    --workers "$(nproc)" --output_dir "$engine"
  echo 1,2,3 >"$logs/prompt.csv"
  for pass in 1 2; do
    begin=$(date +%s%N)
    step "load_$pass" 60 "$build/bin/ostro" run --engine_dir "$engine" --device cuda --log_level info \
      --max_output_len 1 --input_file "$logs/prompt.csv"
    say "      the process printed its token and ended after $((($(date +%s%N) - begin) / 1000000)) ms"
    grep -o 'rank 0: .* of weights.*' "$logs/load_$pass.log" | tee -a "$report"
  done
  rm -rf "$(dirname "$engine")"
  step upload 60 "$build/bin/cuda_upload_bench"
  cat "$logs/upload.log" | tee -a "$report"
fi

say "$failures failed"
exit $((failures > 0))
