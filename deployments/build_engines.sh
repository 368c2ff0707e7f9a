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

if [ "$what" != ollama ] && [ ! -x "$out/bin/llama-server" ]; then
  source_tree
  echo "building llama-server and llama-bench (some minutes) ..." >&2
  cmake -S "$out/src/llama.cpp" -B "$out/src/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_C_FLAGS="$no_amx" -DCMAKE_CXX_FLAGS="$no_amx" \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON >/dev/null
  cmake --build "$out/src/build" --target llama-server llama-bench >/dev/null
  cp "$out"/src/build/bin/llama-server "$out"/src/build/bin/llama-bench "$out/bin/"
fi

# The limit of the engine in the process: llama-bench of the source that the xllamacpp wheel was made of, on the code in it
# (benchmarks/llama_bench_in_wheel.py loads the two together).
wheel=$("$python" -c 'from importlib.metadata import version; print(version("xllamacpp"))')
bench=$out/bin/llama-bench-$wheel.so
if [ "$what" != ollama ] && [ ! -e "$bench" ]; then
  echo "building llama-bench for the xllamacpp wheel (half a minute) ..." >&2
  rm -rf "$out/src/wheel" && mkdir -p "$out/src/wheel"
  "$python" -m pip download --quiet --no-deps --no-binary xllamacpp --dest "$out/src/wheel" "xllamacpp==$wheel"
  tar -xzf "$out"/src/wheel/xllamacpp-*.tar.gz -C "$out/src/wheel"
  tree=$(echo "$out"/src/wheel/xllamacpp-*/thirdparty/llama.cpp)
  # Hidden: the standard library's templates in the two must not be taken for each other.
  "${CXX:-c++}" -O2 -DNDEBUG -std=c++17 -shared -fPIC -fvisibility=hidden -Wl,-Bsymbolic \
    -I"$tree/include" -I"$tree/ggml/include" -I"$tree/common" -I"$tree/vendor" \
    "$tree/tools/llama-bench/llama-bench.cpp" "$root/deployments/llama_bench_in_wheel.cpp" -o "$bench.part"
  mv "$bench.part" "$bench"
fi
ls "$out/bin"
