#!/usr/bin/env bash
# xgrammar (Apache 2.0), which keeps generated text within a grammar: the C++ sources of its core
# into .deps/xgrammar/, out of its source package (2.7 MB). src/guide compiles them, so that they
# have the compiler and the sanitizers of the rest.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tools/deps/pypi.bash

target=.deps/xgrammar
[ -e "$target/LICENSE" ] && exit 0

sdist=$(mktemp -d)
trap 'rm -rf "$sdist"' EXIT
if ! pypi_fetch xgrammar==0.2.8 xgrammar-0.2.8.tar.gz \
     8305646fd2b319d6c3003f51a1665e54cbbe9cba1fb636bc41d0b46434ccbb80 "$sdist" \
     --no-binary xgrammar; then
  echo "tools/deps/xgrammar.sh: without a network, copy $target/ from a machine that has it" >&2
  exit 1
fi
source=$sdist/xgrammar-0.2.8
mkdir -p "$target/3rdparty"
rm -rf "$source/cpp/tvm_ffi" # the Python bindings
cp -R "$source/cpp" "$source/include" "$target/"
cp -R "$source/3rdparty/picojson" "$target/3rdparty/"
cp -R "$source/3rdparty/dlpack/include/dlpack" "$target/3rdparty/"
cp "$source/NOTICE" "$target/"
cp "$source/LICENSE" "$target/" # last: it tells that all is there
