#!/usr/bin/env bash
# Builds a real Ollama, llama-server and llama-bench from registry packages into the folder that git ignores.
#   [OLLAMA=0.34.3] deployments/build_engines.sh [ollama|llama-server|all]
# Needs Go (and for an Ollama before 0.30 a C++ compiler) for Ollama, a C++ compiler, cmake and ninja for the others.
# Nothing is built twice; what was built of another version is built anew.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
home=${COUNTERSIGN_HOME:-$root/.cache/countersign}
out=$home/engines
what=${1:-all}
python=${PYTHON:-$root/.venv/bin/python}
ollama=${OLLAMA:-0.34.3}
wheel=$("$python" -c 'from importlib.metadata import version; print(version("xllamacpp"))')
# Older Ollamas leave llama.cpp's AMX kernels out but call them, and virtual machines often show AMX and forbid its use.
no_amx=""
if [ "$(uname -m)" = x86_64 ]; then no_amx="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"; fi
mkdir -p "$out/bin" "$out/lib/ollama" "$out/src"

# One llama.cpp for all: the one that the xllamacpp wheel was made of, which its MIT source distribution carries.
tree=$out/src/xllamacpp-$wheel/thirdparty/llama.cpp
if [ ! -d "$tree" ]; then
  rm -rf "$out/src/sdist" && mkdir -p "$out/src/sdist"
  "$python" -m pip download --quiet --no-deps --no-binary xllamacpp --dest "$out/src/sdist" "xllamacpp==$wheel"
  tar -xzf "$out"/src/sdist/xllamacpp-*.tar.gz -C "$out/src/sdist"
  mv "$out"/src/sdist/xllamacpp-*/ "$out/src/xllamacpp-$wheel"
fi

built() { [ -e "$out/bin/$1" ] && [ "$(cat "$out/bin/$1.version" 2>/dev/null)" = "$2" ]; }

if [ "$what" != llama-server ] && ! built ollama "$ollama"; then
  echo "building Ollama $ollama (some minutes) ..." >&2
  # Before 0.30 it computes in C++ of its own, which without -march=native runs on baseline instructions at a tenth of
  # the speed, and its module leaves out header-only libraries that llama.cpp carries.
  fast="-O3 -march=native $no_amx"
  CGO_ENABLED=1 GOBIN="$out/bin" GOFLAGS=-mod=mod \
    CGO_CPPFLAGS="-I$tree/vendor" CGO_CFLAGS="$fast" CGO_CXXFLAGS="$fast" \
    go install -ldflags "-X github.com/ollama/ollama/version.Version=$ollama" "github.com/ollama/ollama@v$ollama"
  echo "$ollama" >"$out/bin/ollama.version"
fi

# Since 0.30 Ollama starts a llama-server of its own for each model: ours, so `ollama` needs it too.
if ! built llama-server "$wheel"; then
  echo "building llama-server and llama-bench (some minutes) ..." >&2
  cmake -S "$tree" -B "$out/src/build-$wheel" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_C_FLAGS="$no_amx" -DCMAKE_CXX_FLAGS="$no_amx" \
    -DLLAMA_BUILD_NUMBER=0 -DLLAMA_BUILD_COMMIT="xllamacpp-$wheel" \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF \
    -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON >/dev/null
  cmake --build "$out/src/build-$wheel" --target llama-server llama-bench >/dev/null
  cp "$out/src/build-$wheel/bin/llama-server" "$out/src/build-$wheel/bin/llama-bench" "$out/bin/"
  echo "$wheel" >"$out/bin/llama-server.version"
fi
ln -sf ../../bin/llama-server "$out/lib/ollama/llama-server"

# The limit of the engine in the process: llama-bench of the wheel's source on the code in the wheel
# (benchmarks/llama_bench_in_wheel.py loads the two together).
bench=$out/bin/llama-bench-$wheel.so
if [ "$what" != ollama ] && [ ! -e "$bench" ]; then
  echo "building llama-bench for the xllamacpp wheel (half a minute) ..." >&2
  # Hidden: the standard library's templates in the two must not be taken for each other.
  "${CXX:-c++}" -O2 -DNDEBUG -std=c++17 -shared -fPIC -fvisibility=hidden -Wl,-Bsymbolic \
    -I"$tree/include" -I"$tree/ggml/include" -I"$tree/common" -I"$tree/vendor" \
    "$tree/tools/llama-bench/llama-bench.cpp" "$root/deployments/llama_bench_in_wheel.cpp" -o "$bench.part"
  mv "$bench.part" "$bench"
fi
ls "$out/bin"
