"""llama-bench on the code in the xllamacpp wheel: `python -m benchmarks.llama_bench_in_wheel ARGUMENTS`.

The most that the engine in the process can do is what its own build of llama.cpp can do; a llama-bench of another
version or by another compiler says something else. Takes llama-bench's arguments and prints what that prints. Needs
`make engines`.
"""

import ctypes
import os
import sys
from importlib.metadata import version
from pathlib import Path

from deployments.engine_servers import built


def library() -> Path | None:
    """The llama-bench that `make engines` built for the installed wheel, if it did."""
    return built(f"llama-bench-{version('xllamacpp')}.so")


def main() -> None:
    """Loads the wheel's library for all to see, then llama-bench, which finds its llama.cpp there."""
    found = library()
    if found is None:
        sys.exit("llama-bench for the xllamacpp wheel is not built: run `make engines`")
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    import xllamacpp  # noqa: F401  only loaded

    arguments = [b"llama-bench", *map(os.fsencode, sys.argv[1:])]
    pointers = (ctypes.c_char_p * (len(arguments) + 1))(*arguments, None)
    sys.exit(ctypes.CDLL(str(found)).llama_bench_in_wheel(len(arguments), pointers))


if __name__ == "__main__":
    main()
