#!/usr/bin/env bash
# Installs what the CPU build and its tests need, and nothing when everything is there already (then
# it needs neither root nor a network and takes a moment). Debian 12 and Ubuntu 24.04.
#
#   tools/deps.sh            the build and the fast tests
#   tools/deps.sh --slow     and what ./test.sh --slow uses: clang with libFuzzer, an ssh server,
#                            Chromium (Ubuntu has it as a snap alone; without it the test of the
#                            page is skipped)
#
# From apt: the lists below. From PyPI, pinned by hash, into .deps/: each tools/deps/NAME.sh, run
# once (the stamp .deps/stamps/NAME is the script's checksum, so an edited script runs again).
set -euo pipefail
cd "$(dirname "$0")/.."

# A tool counts as present wherever it comes from; a library has to be the package.
tools=(g++:g++ cmake:cmake ninja:ninja-build ccache:ccache pkg-config:pkg-config python3:python3
       mpirun:openmpi-bin openssl:openssl)
libraries=(ca-certificates libbenchmark-dev libc6-dev libcli11-dev libgtest-dev libopenmpi-dev
           libpcre2-dev libsentencepiece-dev libssl-dev libxxhash-dev nlohmann-json3-dev)
# The newest Boost of each system; Debian's libboost-dev is older and lacks what the server uses.
if grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release; then
  libraries+=(libboost1.81-dev)
else
  libraries+=(libboost1.83-dev)
fi
for arg in "$@"; do
  case $arg in
    --slow) tools+=(clang++-19:clang-19 clang-format:clang-format)
            # tests/mpi/hosts.py makes hosts with an sshd each. Installing the server starts one.
            libraries+=(libclang-rt-19-dev openssh-client openssh-server)
            ! grep -qs '^ID=debian' /etc/os-release || tools+=(chromium:chromium) ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "tools/deps.sh: unknown argument '$arg' (known: --slow)" >&2; exit 2 ;;
  esac
done

# The PyPI parts that are not there yet.
pending=()
for script in tools/deps/*.sh; do
  [ -e "$script" ] || continue
  stamp=.deps/stamps/$(basename "$script" .sh)
  [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$(sha256sum <"$script")" ] || pending+=("$script")
done

missing=()
for pair in "${tools[@]}"; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ ${#pending[@]} -gt 0 ] && ! python3 -m pip --version >/dev/null 2>&1; then
  missing+=(python3-pip)
fi
if command -v dpkg-query >/dev/null; then
  installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${libraries[@]}" 2>/dev/null || true)
  for package in "${libraries[@]}"; do
    grep -qxF "installed $package" <<<"$installed" || missing+=("$package")
  done
elif [ ${#missing[@]} -gt 0 ]; then
  echo "tools/deps.sh: this is not a Debian or Ubuntu system; please install what these packages" \
       "hold: ${missing[*]} ${libraries[*]}" >&2
  exit 1
fi

if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "Some packages are missing, and installing them needs root. Please run:" >&2
      echo "  apt-get update && apt-get install -y --no-install-recommends ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  echo "Installing ${#missing[@]} packages: ${missing[*]}"
  mkdir -p build
  log=build/deps.log
  # --no-install-recommends keeps a bare system small; `env` passes the setting through sudo.
  if ! { "${as_root[@]}" apt-get update -qq &&
         "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
           --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "tools/deps.sh: apt-get failed; the whole log is $log" >&2
    exit 1
  fi
fi

need=3.25
have=$(cmake --version | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')
if [ "$(printf '%s\n%s\n' "$need" "$have" | sort -V | head -n 1)" != "$need" ]; then
  echo "tools/deps.sh: cmake is $have ($(command -v cmake)), but the presets need $need or newer" >&2
  exit 1
fi

for script in "${pending[@]}"; do
  name=$(basename "$script" .sh)
  echo "Fetching $name into .deps/"
  mkdir -p .deps/stamps
  bash "$script"
  sha256sum <"$script" >".deps/stamps/$name"
done
