#!/usr/bin/env bash
# The wheel in an environment as a user may have it: torch at our floor and a timm of their own choice.
# Installing must change nothing but this package; ops, nn and files of centroids must pass their tests there.
#
#   tools/check_torch_floor.sh dist/clustermim_fast-*.whl      (PYTHON chooses the interpreter)
set -euo pipefail
cd "$(dirname "$0")/.."

wheel=$(realpath "$1")
environment=$PWD/build/torch-floor
python=$environment/bin/python
torch_floor=$(sed -nE 's/.*"torch>=([0-9.]+)".*/\1/p' pyproject.toml)

if ! "$python" -c "import hypothesis, torch; assert torch.__version__.startswith('$torch_floor.')" 2>/dev/null; then
  rm -rf "$environment"
  "${PYTHON:-python3}" -m venv "$environment"
  "$python" -m pip install --quiet "torch==$torch_floor.*" 'numpy<2' 'timm==0.9.16' setuptools pytest \
    pytest-benchmark hypothesis
fi
"$python" -m pip uninstall --quiet --yes clustermim_fast 2>/dev/null || true
"$python" -m pip freeze >build/floor-before.txt
"$python" -m pip install --quiet "$wheel"
"$python" -m pip freeze | grep -v '^clustermim' >build/floor-after.txt
diff build/floor-before.txt build/floor-after.txt && echo "pip changed nothing but clustermim_fast"
grep -iE '^(torch|numpy|timm)==' build/floor-after.txt

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r tests tools benchmarks examples pyproject.toml "$folder"
cd "$folder"
"$python" -m clustermim_fast.info
"$python" -m pytest tests/ops tests/nn tests/test_info.py tests/test_imports.py \
  tests/tokenizers/test_centroid_files.py \
  --deselect tests/test_imports.py::test_every_public_name_resolves
