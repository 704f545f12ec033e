"""llama.cpp on a prompt and an answer, for bench_cpu_llm.py; runs in an environment that has llama-cpp-python."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import llama_cpp

STATUS = Path("/proc/self/status")


def memory(field: str) -> int:
    """Bytes of this process by Linux's count: VmRSS now, VmHWM at most."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def seconds(run: Callable[[], object]) -> float:
    started = perf_counter()
    run()
    return perf_counter() - started


def main() -> None:
    file, threads, prompt, answer = sys.argv[1], *map(int, sys.argv[2:])
    before = memory("VmRSS")
    model = llama_cpp.Llama(
        file, n_ctx=prompt + answer + 1, n_batch=prompt, n_ubatch=prompt, n_threads=threads, n_threads_batch=threads,
        verbose=False,
    )  # fmt: skip

    def begin() -> None:
        model.reset()
        model.eval(list(range(prompt)))

    first = min(seconds(begin) for _ in range(2))
    found = {"prefill": first, "decode": min(seconds(lambda: model.eval([1])) for _ in range(answer))}
    found |= {"weights": Path(file).stat().st_size, "cache": 0}
    print(json.dumps({**found, "peak": memory("VmHWM") - before}))


if __name__ == "__main__":
    main()
