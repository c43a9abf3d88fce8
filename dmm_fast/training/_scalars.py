"""A synchronous writer of TensorBoard scalars, which raises errors at the call that causes them."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

from dmm_fast._io import naming


class ScalarFile:
    """A TensorBoard event file to which each call adds the scalars of a step.

    TensorBoard's own writer writes in a background thread, whose errors show late or not at all.

    Args:
        folder: TensorBoard's log folder; created with the first scalars.
        first_step: hide the scalars of earlier files in the folder from this step on; None: hide nothing.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._session = event_pb2.Event, event_pb2.SessionLog
        self._summary, self._writer = summary_pb2.Summary, RecordWriter
        self._first_step = first_step
        name = f"events.out.tfevents.{time.time_ns()}.{platform.node()}.{os.getpid()}"
        self.path = folder / name

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Write ``scalars`` by their names.

        Raises:
            OSError: the folder or the file cannot be written; the error names the file.
        """
        now = time.time()
        events = []
        if not self.path.exists():
            self.path.parent.mkdir(exist_ok=True)
            events.append(self._event(wall_time=now, file_version="brain.Event:2"))
            if self._first_step is not None:
                start = self._session(status=self._session.START)
                events.append(self._event(wall_time=now, step=self._first_step, session_log=start))
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        events.append(self._event(wall_time=now, step=step, summary=self._summary(value=values)))
        with naming(self.path), self.path.open("ab") as file:
            for event in events:
                self._writer(file).write(event.SerializeToString())
