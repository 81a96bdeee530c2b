#!/usr/bin/env bash
# All that asks for a GPU: tests of operators, techniques and training on it, and the kernels under compute-sanitizer.
# PYTHON names the interpreter; the CUDA kernels are built already.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.cuda.is_available(), "no GPU is to be seen here"; print(torch.cuda.get_device_name())'
"$python" -c 'from cnnviz import ops; told = ops.status()["cuda"]; assert told.startswith("native"), told; print(told)'
"$python" -m pytest -q tests/ops tests/test_gpu.py --slow

if sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null); then
  # A caching allocator would hide what reads past its own tensor.
  for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 1 --target-processes all \
      "$python" -m pytest -q -p no:cacheprovider tests/ops -k "cuda and not 32_bits"
  done
else
  echo "compute-sanitizer is not there: its checks were left out" >&2
  exit 1
fi
