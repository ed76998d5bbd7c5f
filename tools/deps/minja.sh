#!/usr/bin/env bash
# minja (Google, MIT), which renders the chat templates of checkpoints: two headers into
# .deps/minja/include/minja/. They come inside the source package of llama-cpp-python (50 MB, gone
# again afterwards); the PyPI project named minja is something else.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tools/deps/pypi.bash

target=.deps/minja/include/minja
[ -e "$target/minja.hpp" ] && [ -e "$target/chat-template.hpp" ] && exit 0

sdist=$(mktemp -d)
trap 'rm -rf "$sdist"' EXIT
if ! pypi_fetch llama-cpp-python==0.3.16 llama_cpp_python-0.3.16.tar.gz \
     34ed0f9bd9431af045bb63d9324ae620ad0536653740e9bb163a2e1fcb973be6 "$sdist" \
     --no-binary llama-cpp-python; then
  echo "tools/deps/minja.sh: without a network, copy $target/ from a machine that has it" >&2
  exit 1
fi
mkdir -p "$target"
cp "$sdist"/llama_cpp_python-0.3.16/vendor/llama.cpp/vendor/minja/*.hpp "$target/"
