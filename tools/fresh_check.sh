#!/usr/bin/env bash
# Runs ./demo.sh (twice) and ./test.sh on a system that has nothing installed: a minimal Debian or
# Ubuntu that debootstrap makes in a folder. Needs root and the debootstrap package.
#
#   tools/fresh_check.sh [options] [FOLDER]        without FOLDER: a temporary one, removed at the end
#     --suite NAME    bookworm (default), or another that the mirror has, such as noble
#     --mirror URL    default: the one that this machine's apt uses for the suite
#     --keyring FILE  the keys that sign the suite, if debootstrap does not know them
#     --worktree      copy the working tree with its changes, not the last commit
#     --only STAGES   of bootstrap,deps,demo,test; default: demo,test (both imply bootstrap)
#     --keep          leave a temporary folder in place
#
# apt, pip, proxy and certificate settings of this machine go along, so that registries are reached
# as they are here; files that hold passwords (auth.conf) do not. A FOLDER that has a system in it
# already is used as it is, with a fresh copy of the project.
set -euo pipefail

die() { echo "fresh_check: $*" >&2; exit 2; }

original=("$@")
suite=bookworm mirror='' keyring='' worktree=0 stages=demo,test keep=0 folder=''
while [ $# -gt 0 ]; do
  case $1 in
    --suite) suite=${2:?}; shift ;;
    --mirror) mirror=${2:?}; shift ;;
    --keyring) keyring=$(realpath "${2:?}"); shift ;;
    --only) stages=${2:?}; shift ;;
    --worktree) worktree=1 ;;
    --keep) keep=1 ;;
    -h | --help) sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) die "unknown option '$1'" ;;
    *) [ -z "$folder" ] || die "one folder, please"; folder=$1 ;;
  esac
  shift
done
[ "$(id -u)" = 0 ] || exec sudo --preserve-env "$0" "${original[@]}"
command -v debootstrap >/dev/null || die "needs the package debootstrap"
# A mount namespace of our own: whatever ends this script, its mounts end with it, and no `rm` ever
# meets a mount of the host.
if [ -z "${OSTRO_FRESH_CHECK-}" ]; then
  OSTRO_FRESH_CHECK=1 exec unshare --mount --propagation private "$0" "${original[@]}"
fi

temporary=0
if [ -z "$folder" ]; then
  folder=$(mktemp -d "${TMPDIR:-/tmp}/ostro-fresh.XXXXXX")
  temporary=1
else
  mkdir -p "$folder"
fi
folder=$(realpath "$folder")
[ "$folder" != / ] || die "not into /"
cd "$(dirname "$0")/.."

mounts=() child=''
clean_up() {
  local status=$?
  trap - EXIT INT TERM HUP
  if [ -n "$child" ]; then
    kill -KILL "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  fi
  for ((i = ${#mounts[@]} - 1; i >= 0; i--)); do umount -l "${mounts[i]}" 2>/dev/null || true; done
  if [ $temporary = 1 ] && [ $keep = 0 ]; then
    rm -rf --one-file-system "$folder" "$folder.log"
  else
    echo "The system is in $folder"
  fi
  exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

mount_in() {  # TYPE PLACE [options]
  mkdir -p "$folder/$2"
  mount -t "$1" ${3:+-o "$3"} "$1" "$folder/$2"
  mounts+=("$folder/$2")
}

# The address that apt here uses for a suite.
apt_mirror() {
  local found
  found=$(apt-get indextargets --format '$(RELEASE) $(CODENAME) $(REPO_URI)' 2>/dev/null |
          awk -v s="$suite" '$1 == s || $2 == s { print $3; exit }')
  [ -n "$found" ] || found=$(sed -n "s/^deb \(\[[^]]*\] \)\?\([^ ]*\) $suite .*/\2/p" \
    /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | head -n 1)
  echo "$found"
}

# By the name in the keys' user ids.
gpg_is_ubuntu() { grep -aq Ubuntu "$keyring"; }

bootstrap() {
  if [ -x "$folder/usr/bin/dpkg" ]; then
    echo "Using the system that is in $folder"
    return
  fi
  [ -n "$mirror" ] || mirror=$(apt_mirror)
  [ -n "$mirror" ] || die "apt here has no source for '$suite': give --mirror URL"
  echo "Making a minimal $suite in $folder"
  local options=(--variant=minbase) script=()
  [ -z "$keyring" ] || options+=(--keyring="$keyring")
  if [ ! -e "/usr/share/debootstrap/scripts/$suite" ]; then  # newer than this debootstrap
    script=(sid)
    [ ! -s "$keyring" ] || ! gpg_is_ubuntu || script=(gutsy)
  fi
  case ${script[*]-$(readlink "/usr/share/debootstrap/scripts/$suite" || true)} in
    gutsy) options+=(--components=main,universe) ;;  # what an installed Ubuntu has on
  esac
  debootstrap "${options[@]}" "$suite" "$folder" "$mirror" "${script[@]}" >"$folder.log" 2>&1 || {
    tail -n 20 "$folder.log" >&2
    die "debootstrap failed; its log is $folder.log"
  }
  rm -f "$folder.log"
}

# Settings by which package registries are reached from here.
copy_settings() {
  local file
  for file in /etc/resolv.conf /etc/hosts /etc/pip.conf "$HOME/.config/pip/pip.conf" \
              "$HOME/.pip/pip.conf"; do
    [ -e "$file" ] || continue
    mkdir -p "$folder$(dirname "$file")"
    cp -L --remove-destination "$file" "$folder$file"
  done
  if [ -d "$HOME/.config/pip" ] || [ -d "$HOME/.pip" ]; then  # root's home inside
    mkdir -p "$folder/root/.config/pip"
    cp -L "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf" "$folder/root/.config/pip/" 2>/dev/null || true
  fi
  # Proxy, validity and pinning settings; not hooks (Pre-Invoke, Post-Invoke ...), which call
  # programs of this machine.
  mkdir -p "$folder/etc/apt/apt.conf.d"
  for file in /etc/apt/apt.conf /etc/apt/apt.conf.d/*; do
    [ -f "$file" ] && grep -q Acquire "$file" && ! grep -q Invoke "$file" || continue
    cp "$file" "$folder$file"
  done
  # The suite's own sources, with updates and security as here if this machine runs that suite.
  if [ "$(. /etc/os-release && echo "${VERSION_CODENAME-}")" = "$suite" ]; then
    rm -f "$folder/etc/apt/sources.list"
    mkdir -p "$folder/etc/apt/sources.list.d" "$folder/usr/share/keyrings" "$folder/etc/apt/keyrings"
    local release
    release=$(. /etc/os-release && echo "$ID")
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/"$release".sources \
                /etc/apt/sources.list.d/"$release".list; do
      [ ! -e "$file" ] || cp "$file" "$folder$file"
    done
  fi
  # Certificates under a name that no package rewrites.
  certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
  if [ -e "$certificates" ]; then
    mkdir -p "$folder/etc/ssl/certs"
    cp -L "$certificates" "$folder/etc/ssl/fresh-check.crt"
    if [ ! -e "$folder/etc/ssl/certs/ca-certificates.crt" ]; then
      cp -L "$certificates" "$folder/etc/ssl/certs/ca-certificates.crt"  # for apt over https
    fi
  fi
  if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
    mkdir -p "$folder/usr/local/share/ca-certificates"
    cp -L /usr/local/share/ca-certificates/*.crt "$folder/usr/local/share/ca-certificates/"
  fi
}

copy_project() {
  rm -rf --one-file-system "$folder/ostro"
  mkdir -p "$folder/ostro"
  if [ $worktree = 1 ]; then
    # A file that an editor removes meanwhile is no reason to stop.
    git ls-files -co --exclude-standard -z | tar -c --null -T - --ignore-failed-read -f - 2>/dev/null |
      tar -x -C "$folder/ostro" --no-same-owner
  else
    git archive HEAD | tar -x -C "$folder/ostro"
  fi
}

inside() {  # a command in the project's folder, with a bare environment and this one's registry settings
  local settings=(HOME=/root TERM=dumb LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin)
  local name
  for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY PIP_INDEX_URL \
              PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT; do
    [ -z "${!name-}" ] || settings+=("$name=${!name}")
  done
  if [ -e "$folder/etc/ssl/fresh-check.crt" ]; then
    settings+=(PIP_CERT=/etc/ssl/fresh-check.crt SSL_CERT_FILE=/etc/ssl/fresh-check.crt)
  fi
  # Process ids of its own, so that ending it ends all that it started; and in the background, so
  # that a signal to this script is heard at once.
  unshare --pid --fork --kill-child --mount-proc="$folder/proc" \
    env -i "${settings[@]}" chroot "$folder" /bin/bash -c 'cd /ostro && exec "$@"' bash "$@" \
    </dev/null &
  child=$!
  local status=0
  wait $child || status=$?
  child=''
  return $status
}

verdict=()
failed=0
stage() {  # NAME LIMIT_S COMMAND...: LIMIT_S 0 is none
  local name=$1 limit=$2 start status=0 ms
  shift 2
  printf '\n== %s ==\n' "$name"
  start=$(date +%s%N)
  inside "$@" || status=$?
  ms=$((($(date +%s%N) - start) / 1000000))
  local line
  line=$(printf '%-14s %7d.%01d s' "$name" $((ms / 1000)) $((ms % 1000 / 100)))
  if [ $status != 0 ]; then
    line+="  FAILED with exit code $status"
    failed=1
  elif [ "$limit" != 0 ] && [ $ms -ge $((limit * 1000)) ]; then
    line+="  FAILED: $limit s are allowed"
    failed=1
  else
    line+="  passed"
  fi
  verdict+=("$line")
  [ $status = 0 ]
}

start=$SECONDS
bootstrap
verdict+=("$(printf '%-14s %7d s' bootstrap $((SECONDS - start)))")
copy_settings
copy_project
mkdir -p "$folder/proc"
mount_in sysfs sys ro
[ -c "$folder/dev/null" ] || die "debootstrap left no $folder/dev/null: devices are not allowed here"
mount_in tmpfs dev/shm  # Open MPI's shared memory
mount_in devpts dev/pts newinstance,ptmxmode=0666

case ,$stages, in *,deps,*)
  stage deps 0 tools/deps.sh && stage 'deps again' 1 tools/deps.sh || true ;;
esac
case ,$stages, in *,demo,*)
  stage demo 0 ./demo.sh && stage 'demo again' 3 ./demo.sh || true ;;
esac
case ,$stages, in *,test,*)
  stage test 0 ./test.sh || true ;;
esac

printf '\n%s, copied from %s\n' "$(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' "$folder/etc/os-release")" \
  "$([ $worktree = 1 ] && echo "the working tree" || git describe --always HEAD)"
printf '%s\n' "${verdict[@]}"
[ $failed = 0 ] && echo "fresh_check: passed" || echo "fresh_check: FAILED"
exit $failed
