"""What the metrics share: each sample is reduced to a row of statistics, and only these rows go through evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate


class StatisticsMetric(evaluate.Metric):
    """A metric that stores, in place of predictions and references, what its value needs to know of each sample.

    A subclass gives `_info` (whose features are those of the stored rows, in columns that evaluate wants to be called
    `predictions` and `references`), `_reduce` and `_compute`. Of several processes, each with its own
    `process_id`, process 0 gets the value of all samples and the others None. A process may have no samples, but must
    call `compute`.

    Args:
        cache_dir: where the rows of several processes are exchanged: a folder that all of them see; evaluate's own by
            default.
        keep_in_memory: writes no files; the default for one process and not possible for more.
        num_process: number of processes.
        process_id: this process, from 0.
        experiment_id: a name that the processes of one run share and no other run has; needed for several processes.
        timeout: seconds to wait for the other processes, at the first `add_batch` and in `compute`.

    Raises:
        ValueError: several processes without `experiment_id`.
    """

    def __init__(
        self,
        *,
        cache_dir: str | None = None,
        keep_in_memory: bool | None = None,
        num_process: int = 1,
        process_id: int = 0,
        experiment_id: str | None = None,
        timeout: float = 100,
    ) -> None:
        if num_process > 1 and experiment_id is None:
            raise ValueError(
                f"A metric of {num_process} processes needs an experiment_id, the same in all of them: under "
                "evaluate's default name, runs on one file system would mix their samples."
            )
        super().__init__(
            cache_dir=cache_dir,
            keep_in_memory=num_process == 1 if keep_in_memory is None else keep_in_memory,
            num_process=num_process,
            process_id=process_id,
            experiment_id=experiment_id,
            timeout=timeout,
        )
        self._experiment = self.experiment_id
        self._rounds = 0

    def _reduce(self, predictions: Sequence, references: Sequence) -> tuple[list, list]:
        """Statistics of at least one sample: what to store in the two columns, a row a sample."""
        raise NotImplementedError

    def add(self, *, prediction: Any = None, reference: Any = None, **inputs: Any) -> None:
        """Adds one sample, without the batch axis."""
        # evaluate.combine says `predictions` and `references` here, too.
        prediction, reference = inputs.pop("predictions", prediction), inputs.pop("references", reference)
        if inputs:
            raise ValueError(f"Unknown inputs of {self.name}: {sorted(inputs)}; it takes prediction and reference.")
        if prediction is None or reference is None:
            raise ValueError(f"{self.name} needs a prediction and a reference.")
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Sequence | None = None, references: Sequence | None = None) -> None:
        """Adds a batch of samples; an empty one is none."""
        if predictions is None or references is None:
            raise ValueError(f"{self.name} needs both predictions and references.")
        if len(predictions) != len(references):
            raise ValueError(f"Got {len(predictions)} predictions and {len(references)} references.")
        rows = self._reduce(predictions, references) if len(predictions) else ([], [])
        super().add_batch(predictions=rows[0], references=rows[1])

    def compute(self, *, predictions: Sequence | None = None, references: Sequence | None = None) -> dict | None:
        """The value of all samples added since the last call, and of those given here; None in processes but 0."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if self.writer is None:  # the other processes wait for this one's file
            super().add_batch(predictions=[], references=[])
        try:
            return super().compute()
        finally:
            self._end_round()

    def _end_round(self) -> None:
        """Removes what evaluate 0.4.6 leaves of a round of several processes, and gives the next another name: a
        process that is already there must not overwrite what process 0 has still to read of this one."""
        if self.num_process > 1:
            if self.process_id == 0:
                for lock in self.filelocks or []:
                    lock.release()  # still held if the computation failed
                name = f"{self.experiment_id}-{self.num_process}"
                for suffix in (
                    "rdv.lock",
                    *(f"{i}.arrow{end}" for i in range(self.num_process) for end in ("", ".lock")),
                ):
                    Path(self.data_dir, f"{name}-{suffix}").unlink(missing_ok=True)
            self._rounds += 1
            self.info.experiment_id = f"{self._experiment}-{self._rounds}"
