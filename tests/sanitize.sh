#!/usr/bin/env bash
# The tests of the operators on a CPU library that was built with
# AddressSanitizer and UndefinedBehaviorSanitizer. Any report of theirs ends
# the run with an error.
#
#   tests/sanitize.sh [arguments of pytest]      PYTHON=python3 names another
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(command -v "${PYTHON:-.venv/bin/python}")
compiler=${CXX:-g++}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A narrow row is read as a whole vector, which reaches into the next row:
# hence no check of alignment.
export TORCH_PICARD_CFLAGS="-fsanitize=address,undefined \
    -fno-sanitize=alignment -fno-sanitize-recover=all -O1 -g"
CXX=$compiler FORCE_ONLY_CPU=1 "$python" setup.py -q build_ext \
    --build-lib "$work/lib" --build-temp "$work/temp"

# Python itself is not instrumented, so the runtimes are loaded ahead of it;
# libstdc++ too, or ASan does not find the function that throws. What Python
# never frees is no leak of ours.
preload=
for library in libasan.so libubsan.so libstdc++.so; do
    preload+=" $("$compiler" -print-file-name="$library")"
done
export TORCH_PICARD_LIBRARY="$work/lib/torch_picard"
report=$work/report
export ASAN_OPTIONS="detect_leaks=0:halt_on_error=1:log_path=$report"
export UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1:log_path=$report"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive HYPOTHESIS_PROFILE=ci

# -p no:faulthandler: the report of a crash is the sanitizer's. What is
# compiled by others, or in processes of its own, has its turn elsewhere.
status=0
LD_PRELOAD=$preload "$python" -m pytest -p no:faulthandler \
    tests/ops tests/nn/test_plan.py tests/nn/test_plan_traps.py \
    -m "not slow" -k "not scatter and not 100_runs and not compile" \
    --ignore tests/ops/test_compile.py --ignore tests/ops/test_build.py \
    --ignore tests/ops/test_cuda.py --ignore tests/ops/test_cuda_build.py \
    "$@" || status=$?

# pytest keeps what a process writes that ends halfway: it is in files.
for file in "$report".*; do
    if [[ -e $file ]]; then
        cat "$file" >&2
        status=1
    fi
done
exit "$status"
