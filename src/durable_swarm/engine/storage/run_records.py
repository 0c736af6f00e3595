"""The records in the rows of runs, decoded and encoded by the codec of each run's swarm."""

from __future__ import annotations

from collections.abc import Callable

from durable_swarm import errors
from durable_swarm.codec import Codec, Place
from durable_swarm.engine.records import base
from durable_swarm.engine.records.encoding import RecordCodec, failure_of, input_of, is_sealed, output_of
from durable_swarm.engine.records.rows import RecordedError, RunRow, StepRow
from durable_swarm.engine.records.runs import read_reply
from durable_swarm.engine.storage.run_state import notes_on
from durable_swarm.loop import Reply


def no_codec(_swarm: str) -> None:
    """Return no codec, for the swarm of any name."""
    return


def stored_start(row: RunRow | None) -> object:
    """Return a run's start record as it is stored, or None if there is none."""
    return row.input[0] if row is not None and isinstance(row.input, list) and row.input else None


class RunRecords:
    """Decodes the records of runs, which may raise `Unreadable`, and encodes their start records.

    `codec_for` returns the codec of the swarm of a name. `guesses` says that this codec may differ from the program's:
    new records are then written in the form of the existing ones.
    """

    def __init__(self, codec_for: Callable[[str], Codec | None], *, guesses: bool) -> None:
        self._codec_for = codec_for
        self._guesses = guesses

    def codec_for(self, swarm: str) -> RecordCodec:
        """Return the codec of the records of a swarm."""
        return RecordCodec(self._codec_for(swarm))

    def record_codec(self, row: RunRow) -> RecordCodec:
        """Return the codec of a run's records, by its row."""
        return self.codec_for(notes_on(row).get("swarm", ""))

    def start_record(self, row: RunRow) -> base.Record:
        """Return a run's input."""
        run_id = row.workflow_id
        stored = stored_start(row)
        if stored is None:
            raise errors.ReplayMismatch(f"the input of run {run_id!r} cannot be read", run_id=run_id)
        return self.record_codec(row).open(stored, input_of(run_id), f"the input of run {run_id!r}")

    def step_record(self, step: StepRow, row: RunRow) -> base.Record:
        """Return the record of a step of a run or of an undecorated tool call in it; `row` is the run's."""
        place = Place(step.workflow_id, step.function_name, step.function_id)
        what = f"step {step.function_id} ({step.function_name}) of run {step.workflow_id!r}"
        return self.record_codec(row).open(step.output, place, what)

    def reply(self, step: StepRow, row: RunRow) -> Reply:
        """Return the reply in the record of a model's step."""
        return read_reply(self.step_record(step, row))

    def output_record(self, child: RunRow, row: RunRow) -> base.Record:
        """Return the output of an undecorated tool call; `row` is its run's."""
        call = child.workflow_id
        return self.record_codec(row).open(child.output, output_of(call), f"tool call {call!r}")

    def failure_record(self, row: RunRow) -> base.Record | None:
        """Return the error that ended a failed run; None if it is not a record of this package."""
        data = row.error.data if isinstance(row.error, RecordedError) else None
        if not isinstance(data, dict) or not isinstance(data.get("type"), str):
            return None
        run_id = row.workflow_id
        record = self.record_codec(row).open({"v": 1, **data}, failure_of(run_id), f"the error of run {run_id!r}")
        return {"run_id": run_id, **record}

    def closed_like(self, row: RunRow, run_id: str, record: base.Record, swarm: str) -> base.Record:
        """Return the start record of a fork as it is stored: by its swarm's codec, in the form of its source in `row`.

        Raises `ConfigurationError` if the source is encoded and the fork would not be.
        """
        sealed = is_sealed(stored_start(row))
        record_codec = RecordCodec(None if self._guesses and not sealed else self._codec_for(swarm))
        stored = record_codec.close(record, input_of(run_id))
        if sealed and not is_sealed(stored):
            raise errors.ConfigurationError(
                f"run {row.workflow_id!r} was stored through a codec, such as encryption, and its fork would be stored "
                f"in the clear, since swarm {swarm!r} has no such codec; fork it with the DurableSwarm it belongs to"
            )
        return stored

    def settled(self, run_id: str, record: base.Record, swarm: str) -> base.Record:
        """Return a run's start record as it will be read back through the swarm's codec."""
        return self.codec_for(swarm).settle(record, input_of(run_id))
