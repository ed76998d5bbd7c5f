# Sourced by the scripts of this folder.
#
#   pypi_fetch NAME==VERSION FILE SHA256 FOLDER [pip options]
#
# brings one wheel or sdist from the package index that pip is configured for, checks its hash and
# unpacks it into FOLDER. Pip options: --no-binary NAME for an sdist (pip then asks its build script
# for its metadata, with the build tools that it names, but builds nothing).
pypi_fetch() {
  local requirement=$1 file=$2 sha256=$3 folder=$4
  shift 4
  local options=("$@")
  [ ${#options[@]} -gt 0 ] || options=(--only-binary=:all:)
  local work
  work=$(mktemp -d)
  if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" \
       "${options[@]}" "$requirement"; then
    rm -rf "$work"
    echo "could not download $requirement" >&2
    return 1
  fi
  if ! sha256sum --quiet --check <<<"$sha256  $work/$file"; then
    echo "$requirement: the checksum of $file is not the one that this project was tried with" >&2
    rm -rf "$work"
    return 1
  fi
  mkdir -p "$folder"
  case $file in
    *.whl) python3 -m zipfile -e "$work/$file" "$folder" ;;
    *) tar -xf "$work/$file" -C "$folder" --no-same-owner ;;
  esac
  rm -rf "$work"
}
