"""gadjax's side of the benchmark of checkpoints: runs steps, and saves them as the trainer's loop does."""

from __future__ import annotations

import pathlib
import shutil
import time
from typing import Any

from benchmarks.harness.models import write_models
from benchmarks.workers.gadjax_step import StepRun
from benchmarks.workers.protocol import serve
from gadjax.trainer.loop import saved_networks
from gadjax.workdir.checkpoints import Checkpoints


class Side:
    """A run that saves into a folder."""

    def load(self, models: dict[str, str], fields: dict[str, Any], folder: str) -> None:
        """See `gadjax_step.StepRun`. `folder`: for the checkpoints, on the disk to measure."""
        self.folder = pathlib.Path(folder)
        self.run = StepRun(models, fields)
        self.checkpoints = Checkpoints(self.folder, keep=1)

    def turn(self, batch: dict[str, Any], steps: int, save: bool) -> dict[str, Any]:
        """Runs from one save to the next: starts a save if asked to, and runs steps while it is written.

        Returns:
          `seconds` of all. `waiting`: seconds for which the loop stands still: until the arrays are copied, and at the
          end, as the next save would, until the files are complete. `bytes` of the checkpoint.
        """
        begin = time.perf_counter()
        waiting = self._timed(self._save) if save else 0.0
        for _ in range(steps):
            self.run.step(batch)
        waiting += self._timed(self.checkpoints.wait) if save else 0.0
        seconds = time.perf_counter() - begin
        files = [path for path in self.folder.rglob("*") if path.is_file()] if save else []
        return {"seconds": seconds, "waiting": waiting, "bytes": sum(path.stat().st_size for path in files)}

    def _save(self) -> None:
        networks = saved_networks(self.run.state)
        self.checkpoints.save(self.run.count, networks, {}, {"stage": "gad", "stage_step": self.run.count})

    def close(self) -> None:
        """Closes the checkpoints and empties the folder."""
        self.checkpoints.close()
        shutil.rmtree(self.folder)

    @staticmethod
    def _timed(action: Any) -> float:
        begin = time.perf_counter()
        action()
        return time.perf_counter() - begin

    def write_models(self, folder: str, fields: dict[str, Any]) -> dict[str, str]:
        """See `benchmarks.harness.models`; it stands here because it needs JAX."""
        return write_models(pathlib.Path(folder), fields)


if __name__ == "__main__":
    side = Side()
    serve(**{name: getattr(side, name) for name in ("write_models", "load", "turn", "close")})
