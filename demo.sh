#!/usr/bin/env bash
# From a fresh clone to generated text: installs what is missing, builds ostro, builds an engine from
# the Mixtral in models/tiny-mixtral, and lets it continue two prompts.
set -euo pipefail
cd "$(dirname "$0")"

ostro=build/cpu/bin/ostro
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
if [ -e build/cpu/CMakeCache.txt ] &&
   ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" build/cpu/CMakeCache.txt; then
  rm -rf build/cpu
fi
if [ ! -e build/cpu/build.ninja ]; then
  echo "Configuring (log: build/configure.log)"
  mkdir -p build
  cmake --preset cpu >build/configure.log 2>&1 || { tail -n 30 build/configure.log >&2; exit 1; }
  echo "Compiling ostro with $(nproc) processes"
fi
quiet=(--quiet)
[ -t 1 ] && quiet=()
ninja -C build/cpu -j "$(nproc)" "${quiet[@]}" ostro

# An engine older than the program may be of an older format: building it takes a second.
if [ ! -e $engine/config.json ] || [ $ostro -nt $engine/config.json ]; then
  run $ostro build --model_dir $model --output_dir $engine
fi

run $ostro run --engine_dir $engine --tokenizer_dir $model --max_output_len 48 \
  --input_text "I love french quiche" "A fast web server"

echo
echo "Try a prompt of your own with the line above, or: $ostro --help"
