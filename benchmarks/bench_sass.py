"""How many instructions do the GPU kernels execute, and are they sound? Read from machine code; no GPU is needed.

Compiles every kernel that nvila-kernels ships, for seven architectures, with the compiler and disassemblers that come
with triton, and counts what one round of the main loop executes: instructions for a 4-bit weight (fewer are better) or
multiply-adds for an instruction and thread (more are better). Checks each for spills, shared memory, the matrix
instruction asked for, and, in the 4-bit decode loop, conversions and loads that are waited for. Compares the number of
instructions with ``golden_sass.json``: more than 3 % growth fails, as do the faults above. Another version of triton
than the golden file's makes other code: then only the faults count.

Counts are no timings. Nothing here has run on a GPU.

    uv run python benchmarks/bench_sass.py                      # all; some 10 minutes of processor time
    uv run python benchmarks/bench_sass.py --arch 89 --only "w4a16 fp16 8x128"
    uv run python benchmarks/bench_sass.py --json
    uv run python benchmarks/bench_sass.py --write-golden       # accept the counts as they are
"""

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))  # proofs, which no wheel holds

import triton
from nvila_kernels.triton.tiles import ARCHITECTURES

from proofs.findings import Finding, examine
from proofs.shipped import shipped

GOLDEN = Path(__file__).parent / "golden_sass.json"
GROWTH = 1.03
"""By which an instruction count may grow before it is a fault."""


def examine_named(arch: int, name: str) -> Finding:
    """In a worker: kernels cannot be sent between processes, their names can."""
    return examine(next(case for case in shipped((arch,)) if case.name == name))


def read_golden() -> dict[str, int]:
    """Instruction counts by name; none if the file belongs to another triton."""
    if not GOLDEN.is_file():
        return {}
    golden = json.loads(GOLDEN.read_text())
    return golden["instructions"] if golden["triton"] == triton.__version__ else {}


def write_golden(findings: list[Finding]) -> None:
    """Keep the counts of these findings, and what was kept of others."""
    counts = read_golden() | {finding.name: finding.instructions for finding in findings}
    golden = {"triton": triton.__version__, "instructions": dict(sorted(counts.items()))}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


def growth(finding: Finding, golden: dict[str, int]) -> list[str]:
    """A sentence if this kernel grew since the golden file was written, or is not in it; none without a file."""
    if not golden:
        return []
    before = golden.get(finding.name)
    if before is None:
        return ["not in the golden file: --write-golden adds it"]
    grew = finding.instructions > GROWTH * before
    return [f"{finding.instructions} instructions, the golden file has {before}"] if grew else []


def report(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        unit = next(key for key in row if key.endswith(("_per_weight", "_per_instruction", "_per_element")))
        sizes = f"{row['registers']:4} registers {row['shared_bytes']:7} B shared"
        print(f"{row['name']:58} {row[unit]:8.2f} {unit.replace('_', ' '):24} {sizes}  {'; '.join(row['faults'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", type=int, default=list(ARCHITECTURES), help="architectures, 89 for sm_89")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that compile")
    parser.add_argument("--write-golden", action="store_true", help="accept the counts as they are")
    parser.add_argument("--quiet", action="store_true", help="print faults only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    cases = [case for case in shipped(tuple(arguments.arch)) if arguments.only in case.name]
    if not cases:
        parser.error(f"no kernel's name contains {arguments.only!r}")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(arguments.workers, len(cases)), mp_context=context) as pool:
        findings = list(pool.map(examine_named, [case.arch for case in cases], [case.name for case in cases]))
    if arguments.write_golden:
        write_golden(findings)
    golden = read_golden()
    rows = [{**finding.row(), "faults": [*finding.faults, *growth(finding, golden)]} for finding in findings]
    faulty = [row for row in rows if row["faults"]]
    if arguments.json:
        print(json.dumps({"triton": triton.__version__, "golden": bool(golden), "kernels": rows}, indent=1))
    else:
        report(faulty if arguments.quiet else rows)
        compared = "compared with the golden counts" if golden else "the golden counts are of another triton"
        print(f"{len(rows)} kernels compiled by triton {triton.__version__}, {len(faulty)} with faults; {compared}")
    sys.exit(bool(faulty))


if __name__ == "__main__":
    main()
