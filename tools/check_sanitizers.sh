#!/usr/bin/env bash
# The C++ tests of the core (tests/cpp, no Python in the process) under AddressSanitizer with
# UndefinedBehaviorSanitizer, and under ThreadSanitizer. Builds into build/address and build/thread.
set -euo pipefail
cd "$(dirname "$0")/.."

for sanitizer in address thread; do
  build=build/$sanitizer
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DCLUSTERMIM_MODULE=OFF -DCLUSTERMIM_TESTS=ON -DCLUSTERMIM_SANITIZE=$sanitizer >/dev/null
  cmake --build "$build"
  echo "--- $sanitizer sanitizer"
  for isa in generic avx2 avx512 avx512_vnni amx; do
    case $isa in avx512) flag=avx512bw ;; amx) flag=amx_bf16 ;; *) flag=$isa ;; esac
    if [ "$isa" != generic ] && ! grep -qw "$flag" /proc/cpuinfo; then
      echo "CLUSTERMIM_ISA=$isa: skipped, this machine lacks it"
      continue
    fi
    echo "CLUSTERMIM_ISA=$isa"
    CLUSTERMIM_ISA=$isa ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 \
      TSAN_OPTIONS=halt_on_error=1 ctest --test-dir "$build" --output-on-failure --no-tests=error
  done
done
