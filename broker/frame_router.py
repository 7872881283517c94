"""What each frame that arrives at an API process means for the stream of its request."""

from collections.abc import Callable, Mapping

import structlog

from broker.broadcasts import Broadcasts
from broker.drill_watch import DrillWatch
from broker.malformed import decode_frames
from broker.reply_tokens import ReplyTokens
from broker.session import Delivery, vouched_node
from broker.stream import Stream
from broker.wire import (
    MAX_ATTEMPTS,
    NO_RUN,
    AnyFrame,
    Cancel,
    Failed,
    Finished,
    ResumeGrant,
    ResumeRequest,
    Supersede,
    Waiting,
)

log = structlog.get_logger()


class FrameRouter:
    """Passes frames to the streams, and ends runs that no stream follows.

    `streams`: the open ones by request; the client adds and removes them. `tokens`: which frames
    are believed. `send_to_node(node, message)` and `start_over(stream)`, which publishes its job
    again, do nothing while the broker is away. `refused` counts frames that are not believed.
    While a drill runs, `drills` hears of each frame that its stream has, now or from before, and of
    each grant before it is made: the grant changes which run the stream's newest is.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        broadcasts: Broadcasts,
        tokens: ReplyTokens,
        send_to_node: Callable[[str, ResumeGrant | Cancel], None],
        start_over: Callable[[Stream], None],
        drills: DrillWatch,
    ) -> None:
        self._streams = streams
        self._broadcasts = broadcasts
        self.refused = 0
        self._tokens = tokens
        self._send_to_node = send_to_node
        self._start_over = start_over
        self._drills = drills

    def on_frames(self, delivery: Delivery) -> None:
        """A message arrived in the reply queue."""
        delivery.ack()
        frames, reasons = decode_frames(delivery.body)
        if delivery.exchange:
            frames = self._from_joined(delivery, frames)
        refused: list[AnyFrame] = []
        for frame in frames:
            if not frame.token or self._tokens.is_valid(frame.request_id, frame.token):
                self.on_frame(frame)
            else:
                refused.append(frame)
        if refused:
            self._refuse(refused, vouched_node(delivery))
        if reasons:
            log.warning("undecodable frames dropped", count=len(reasons), reason=reasons[0])

    def _from_joined(self, delivery: Delivery, frames: list[AnyFrame]) -> list[AnyFrame]:
        """Those with a token whose sender does not pretend to be another node."""
        sender = vouched_node(delivery)
        honest = []
        for frame in frames:
            node = getattr(frame, "node", sender)
            if sender and frame.token and node == sender:
                honest.append(frame)
        if len(honest) < len(frames):
            self.refused += len(frames) - len(honest)
            log.warning("frames of a joined node dropped", sender=delivery.sender)
        return honest

    def _refuse(self, frames: list[AnyFrame], sender: str) -> None:
        """These jobs were never given to a joined node, or were altered there; or they are of a
        former process with this one's name.

        A node that asks to run such a job is told to end its copy, and so is a joined node that
        runs it: one in each message, as it may send any number.
        """
        self.refused += len(frames)
        log.warning(
            "frames without their job's token dropped",
            count=len(frames),
            request_id=frames[0].request_id,
            sender=sender or None,
        )
        for frame in frames[:1] if sender else frames:
            node = frame.node if isinstance(frame, ResumeRequest) else sender
            if node:
                self._send_to_node(node, Cancel(request_id=frame.request_id, token=frame.token))

    def on_frame(self, frame: AnyFrame) -> None:
        stream = self._streams.get(frame.request_id)
        if stream is None:
            if not isinstance(frame, Finished | Failed):  # a node still runs it
                self._broadcasts.send(Cancel(request_id=frame.request_id, before=frame.attempt + 1))
        elif isinstance(frame, ResumeRequest):
            self.grant(stream, frame)
        elif frame.attempt != stream.attempt and _is_of_run(frame):
            self._on_other_attempt(stream, frame)
        elif not stream.push(frame):
            self._on_gap(stream)
        elif self._drills.tally is not None:
            self._drills.on_frame(stream, frame)

    def _on_other_attempt(self, stream: Stream, frame: AnyFrame) -> None:
        if frame.attempt < stream.attempt:
            self._supersede(stream)
        else:
            log.warning(
                "frame of an attempt that was never granted ignored", request_id=frame.request_id
            )

    def grant(self, stream: Stream, request: ResumeRequest) -> None:
        """The newest request goes on; older runs, of a job that was delivered twice, end."""
        self._drills.on_resume(stream, request)
        self._send_to_node(request.node, stream.grant(request))
        self._supersede(stream)

    def _on_gap(self, stream: Stream) -> None:
        """A frame of the newest run is missing, which counts against the job: it starts over."""
        log.error(
            "a frame is missing; starting over", request_id=stream.request_id, node=stream.node
        )
        stream.lose_run("a frame of its answer was missing")
        if len(stream.faults) > MAX_ATTEMPTS:  # a node runs it although it should give it up
            faults = "; ".join(stream.faults)
            stream.fail("given_up", f"given up after {len(stream.faults)} lost runs: {faults}")
            self._broadcasts.send(Cancel(request_id=stream.request_id))
        else:
            self._start_over(stream)
            self._supersede(stream)

    def _supersede(self, stream: Stream) -> None:
        """Ends all runs but those of the stream's newest attempt."""
        message = Supersede(request_id=stream.request_id, attempt=stream.attempt)
        self._broadcasts.send(message)


def _is_of_run(frame: AnyFrame) -> bool:
    return frame.seq != NO_RUN and not isinstance(frame, Waiting)
