#!/bin/sh
# Fails if an object file compiled for one instruction set defines a symbol that the linker could
# give to other code: a weak one, or any outside its own namespace (src/backends/cpu/kernels/kernels.h
# says why).
#
#   check_isa.sh libbackends_cpu.a
set -eu
library=$(realpath "$1")
own='ostro::cpu::(avx2|avx512|avx512bf16|amx)::'
# AddressSanitizer gives each global a byte that carries its mangled name.
sanitizer='__odr_asan\._ZN5ostro3cpu(4avx2|6avx512|10avx512bf16|3amx)'
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
# The archive has members of the same name, one for each instruction set.
for member in $(ar t "$library" | sort -u); do
  count=$(ar t "$library" | grep -cFx "$member")
  for i in $(seq "$count"); do
    ar xN "$i" "$library" "$member"
    mv "$member" "$i.$member.o"
  done
done

bad=0
kernels=0
for object in *.o; do
  defined=$(nm --defined-only --demangle "$object")
  # A kernel's object defines something global in a namespace of its own.
  printf '%s\n' "$defined" | grep -Eq " [TRD] $own" || continue
  kernels=$((kernels + 1))
  leaks=$(printf '%s\n' "$defined" | grep -E ' [A-Zu] ' | grep -Ev " [TRDB] $own| B $sanitizer" || true)
  if [ -n "$leaks" ]; then
    printf '%s is compiled for one instruction set and defines\n%s\n' "$object" "$leaks"
    bad=1
  fi
done
if [ "$kernels" -lt 4 ]; then
  echo "only $kernels kernel objects in $library"
  bad=1
fi
[ "$bad" -eq 0 ] || exit 1
echo "isa: $kernels kernel objects, none defines a symbol for others"
