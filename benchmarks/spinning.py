"""The embedded engine beside a busy neighbour: `python -m benchmarks.spinning`.

Scores the same records with all cores, with libgomp's own spinning and with the product's, alone and beside one
process that keeps a core busy. Prints one JSON object of records/s.
"""

import json
import os
import subprocess
import sys
import time

TEXTS = [
    f"Message {n}: the invoice of last month has not arrived, please send it again. " * 3 for n in range(24)
]


def measure(spin: str) -> float:
    """Records/s of this process with the given number of turns ("" = libgomp's own choice)."""
    if spin:
        os.environ["GOMP_SPINCOUNT"] = spin
    else:
        os.environ["OMP_WAIT_POLICY"] = "undefined"  # keeps the product from setting its own
    from concurrent.futures import ThreadPoolExecutor

    from labeling.engines.embedded import EmbeddedEngine
    from labeling.engines.model_files import model_file
    from labeling.engines.protocol import LabelCode

    cores = len(os.sched_getaffinity(0))
    engine = EmbeddedEngine(model_file("smollm2-135m-instruct"), context=1024, slots=4, threads=cores)
    codes = [LabelCode(word, word, engine.token_ids(f" {word}")[0]) for word in ("Bill", "Visit", "Other")]
    prompts = [
        engine.tokenize(f"What is it about? Bill, Visit or Other.\n\n{text}\nTopic:") for text in TEXTS
    ]
    engine.score(prompts[0], codes, slot=0)
    started = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda turn: engine.score(prompts[turn], codes, slot=turn % 4), range(1, len(prompts))))
    pace = (len(prompts) - 1) / (time.perf_counter() - started)
    engine.close()
    return pace


def main() -> None:
    """Runs every case in a process of its own: the library reads its settings once."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1] if sys.argv[1] != "own" else "")))
        return
    from labeling.engines.embedded import SPIN_TURNS

    figures: dict[str, float] = {}
    for neighbours in (0, 1):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
        try:
            for name, spin in (("libgomp", "own"), ("product", SPIN_TURNS)):
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.spinning", spin], stdout=subprocess.PIPE, check=True
                )
                figures[f"{name}, {neighbours} busy neighbours"] = round(json.loads(done.stdout), 2)
        finally:
            for process in busy:
                process.kill()
    print(json.dumps({"benchmark": "spinning", "records_per_s": figures}, indent=2))


if __name__ == "__main__":
    main()
