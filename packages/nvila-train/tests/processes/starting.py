"""One of several processes that open the folder of a run at once; run by ``test_run_folder`` with its settings."""

from pathlib import Path

import torch.distributed as dist
from nvila_train.run_folder import RunFolder


def opened(out: Path, recipe: Path) -> str:
    """What becomes of opening the folder."""
    try:
        with RunFolder(out, recipe, resume=False):
            return "open"
    except ValueError as error:
        return str(error)


def run(*, out: str, recipe: str, store: str, rank: int, world: int) -> None:
    """Open the folder, and once more after the first process has left a state there; write down how that ended."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    first = opened(Path(out), Path(recipe))
    if rank == 0:
        state = Path(out) / "1-one" / "state" / "00000002"
        state.mkdir(parents=True)
        (state / ".metadata").write_text("")
    second = opened(Path(out), Path(recipe))
    Path(f"{store}.{rank}").write_text(f"{first}\n{second}")
    dist.destroy_process_group()


if __name__ == "__main__":
    run(**SETTINGS)  # type: ignore[name-defined]  # noqa: F821
