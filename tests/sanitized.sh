#!/usr/bin/env bash
# The operators' tests, on native code under AddressSanitizer and UndefinedBehaviorSanitizer, built in a copy of the
# sources. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r cnnviz csrc plugins tests setup.py pyproject.toml "$copy"
rm -f "$copy"/cnnviz/*.so
cd "$copy"

sanitizers="-fsanitize=address,undefined -fno-sanitize-recover=all"
CNNVIZ_BUILD=cpu CFLAGS="$sanitizers -fno-omit-frame-pointer -g1 -O1" LDFLAGS="$sanitizers" \
  "$python" setup.py --quiet build_ext --inplace >build.log 2>&1 || { tail -50 build.log; exit 1; }

# Python itself is not built so: the libraries come first, and its own leaks are not ours.
preload=$("${CXX:-g++}" -print-file-name=libasan.so):$("${CXX:-g++}" -print-file-name=libubsan.so)
run() {
  env LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 "$python" "$@"
}
run -c 'from cnnviz import ops; told = ops.status()["cpu"]; assert told.startswith("native"), told'
# A check of the check: what reads past its memory must end with a report.
if run -c 'import torch; from cnnviz import ops; torch.ops.cnnviz.overlay_crop(
    torch.ones(1, 9999, 8, 8), torch.ones(1, 1, 2, 2), *torch.zeros(2, 1, 2).long(), [2, 2], 0.0)' 2>report.log; then
  echo "the address sanitizer let a read outside of a tensor pass" && exit 1
fi
grep -q "AddressSanitizer" report.log
# Nothing is captured, or a report would be lost with the process.
run -m pytest -q -s -p no:cacheprovider tests/ops --deselect tests/ops/test_operators.py::test_compiled_without_a_break \
  --ignore tests/ops/test_native.py
# Masked moves of short rows are not checked; without them the loops that take their place are.
ATEN_CPU_CAPABILITY=avx2 run -m pytest -q -s -p no:cacheprovider tests/ops/test_crop_patches.py tests/ops/test_overlay_crop.py \
  tests/ops/test_conv_crops.py tests/ops/test_winograd_crops.py tests/ops/test_overlay_cat.py
# The host's part: plans of windows, and what tells whether a network changed.
run -m pytest -q -s -p no:cacheprovider tests/incremental/test_geometry.py tests/models/test_state.py
