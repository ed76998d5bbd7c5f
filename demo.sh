#!/usr/bin/env bash
# From a fresh clone to generated text: installs what is missing, builds ostro, builds an engine from
# the Mixtral in models/tiny-mixtral, and lets it continue two prompts.
set -euo pipefail
cd "$(dirname "$0")"

# On a GPU, where there is one and a compiler for it.
preset=cpu
if command -v nvcc >/dev/null && nvidia-smi -L 2>/dev/null | grep -q ^GPU; then preset=cuda; fi
ostro=build/$preset/bin/ostro
model=models/tiny-mixtral
engine=engines/tiny-mixtral

run() {
  local word line='$'
  for word in "$@"; do
    case $word in *\ *) line+=" \"$word\"" ;; *) line+=" $word" ;; esac
  done
  printf '\n%s\n' "$line"
  "$@"
}

tools/deps.sh

# A build folder that came along with a copied or moved tree is of no use here.
if [ -e build/$preset/CMakeCache.txt ] &&
   ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" build/$preset/CMakeCache.txt; then
  rm -rf build/$preset
fi
if [ ! -e build/$preset/build.ninja ]; then
  echo "Configuring (log: build/configure.log)"
  mkdir -p build
  cmake --preset $preset >build/configure.log 2>&1 || { tail -n 30 build/configure.log >&2; exit 1; }
  echo "Compiling ostro with $(nproc) processes"
fi
quiet=(--quiet)
[ -t 1 ] && quiet=()
ninja -C build/$preset -j "$(nproc)" "${quiet[@]}" ostro

# An engine older than the program may be of an older format: building it takes a second.
if [ ! -e $engine/config.json ] || [ $ostro -nt $engine/config.json ]; then
  run $ostro build --model_dir $model --output_dir $engine
fi

run $ostro run --engine_dir $engine --tokenizer_dir $model --max_output_len 48 \
  --input_text "I love french quiche" "A fast web server"

echo
echo "Try a prompt of your own with the line above, or: $ostro --help"
