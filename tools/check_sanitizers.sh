#!/usr/bin/env bash
# The C++ tests of the core (tests/cpp, no Python in the process) under AddressSanitizer with
# UndefinedBehaviorSanitizer, and under ThreadSanitizer. Builds into build/address and build/thread.
# Those of emulated GPU kernels, which no instruction set of the CPU changes, run once under each, and
# once plain (build/plain).
set -euo pipefail
cd "$(dirname "$0")/.."

configure() {  # configure FOLDER SANITIZER
  cmake -S . -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DCLUSTERMIM_MODULE=OFF -DCLUSTERMIM_TESTS=ON -DCLUSTERMIM_SANITIZE="$2" >/dev/null
}
run() {  # run FOLDER CTEST-ARGUMENTS...
  ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 \
    ctest --output-on-failure --no-tests=error --test-dir "$@"
}

configure build/plain ""
cmake --build build/plain --target emulated_tests
echo "--- emulated GPU kernels, plain"
run build/plain --label-regex emulated

for sanitizer in address thread; do
  build=build/$sanitizer
  configure "$build" $sanitizer
  cmake --build "$build"
  echo "--- $sanitizer sanitizer"
  run "$build" --label-regex emulated
  for isa in generic avx2 avx512 avx512_vnni amx; do
    case $isa in avx512) flag=avx512bw ;; amx) flag=amx_bf16 ;; *) flag=$isa ;; esac
    if [ "$isa" != generic ] && ! grep -qw "$flag" /proc/cpuinfo; then
      echo "CLUSTERMIM_ISA=$isa: skipped, this machine lacks it"
      continue
    fi
    echo "CLUSTERMIM_ISA=$isa"
    CLUSTERMIM_ISA=$isa run "$build" --label-exclude emulated
  done
done
