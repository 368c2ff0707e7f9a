#!/usr/bin/env bash
# Builds a real Ollama and a real llama-server from registry packages into the folder that git ignores.
#   deployments/build_engines.sh [ollama|llama-server|all]
# Needs Go and a C++ compiler (Ollama), cmake and ninja (llama-server). Nothing is built twice.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
home=${COUNTERSIGN_HOME:-$root/.cache/countersign}
out=$home/engines
what=${1:-all}
python=${PYTHON:-$root/.venv/bin/python}
OLLAMA=0.24.0
LLAMA_CPP_PYTHON=0.3.36
# Ollama's module leaves the AMX kernels out but calls them, and virtual machines often show AMX and forbid its use.
no_amx=""
if [ "$(uname -m)" = x86_64 ]; then no_amx="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"; fi
mkdir -p "$out/bin" "$out/src"

# The MIT source distribution of llama-cpp-python carries llama.cpp and the header-only libraries Ollama's module leaves out.
source_tree() {
  if [ ! -d "$out/src/llama.cpp" ]; then
    rm -rf "$out/src/sdist" && mkdir -p "$out/src/sdist"
    "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python \
      --dest "$out/src/sdist" "llama-cpp-python==$LLAMA_CPP_PYTHON"
    tar -xzf "$out"/src/sdist/llama_cpp_python-*.tar.gz -C "$out/src/sdist"
    mv "$out"/src/sdist/llama_cpp_python-*/vendor/llama.cpp "$out/src/llama.cpp"
  fi
}

if [ "$what" != llama-server ] && [ ! -x "$out/bin/ollama" ]; then
  source_tree
  echo "building Ollama $OLLAMA (some minutes) ..." >&2
  # Without -march=native it runs on baseline instructions at a tenth of the speed.
  fast="-O3 -march=native $no_amx"
  CGO_ENABLED=1 GOBIN="$out/bin" GOFLAGS=-mod=mod \
    CGO_CPPFLAGS="-I$out/src/llama.cpp/vendor" CGO_CFLAGS="$fast" CGO_CXXFLAGS="$fast" \
    go install -ldflags "-X github.com/ollama/ollama/version.Version=$OLLAMA" "github.com/ollama/ollama@v$OLLAMA"
fi
configure() {
  source_tree
  cmake -S "$out/src/llama.cpp" -B "$out/src/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_C_FLAGS="$no_amx" -DCMAKE_CXX_FLAGS="$no_amx" \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DBUILD_SHARED_LIBS=OFF "$@" >/dev/null
}

if [ "$what" != ollama ] && [ ! -x "$out/bin/llama-server" ]; then
  echo "building llama-server and llama-bench (some minutes) ..." >&2
  configure -DGGML_NATIVE=ON
  cmake --build "$out/src/build" --target llama-server llama-bench >/dev/null
  cp "$out"/src/build/bin/llama-server "$out"/src/build/bin/llama-bench "$out/bin/"
fi
# The limit of the engine in the process: the xllamacpp wheel holds AVX2 code only, whatever the machine has.
if [ "$what" != ollama ] && [ "$(uname -m)" = x86_64 ] && [ ! -x "$out/bin/llama-bench-avx2" ]; then
  echo "building llama-bench with AVX2 only (a minute) ..." >&2
  configure -DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON \
    -DGGML_F16C=ON
  cmake --build "$out/src/build" --target llama-bench >/dev/null
  cp "$out/src/build/bin/llama-bench" "$out/bin/llama-bench-avx2"
fi
ls "$out/bin"
