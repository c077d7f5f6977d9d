"""The old kernel's end of the talk with the agent in a spawned one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kupgrade.errors import KupgradeError
from kupgrade.kernel.window import Channel, Side, Verdict
from kupgrade.model import standby
from kupgrade.model.standby import Answer, Request

POLL = 0.0005  # seconds; what takes longer is looked for less often: who is asked needs the processors
LONGEST_POLL = 0.005
TORN_PATIENCE = 1.0  # seconds in which a message must be whole


class AgentError(KupgradeError):
    """The agent in the new kernel answered that it could not do what it was asked."""


@dataclass
class StandbyClient:
    """Asks the agent in the new kernel. `alive` raises when that kernel is known to be dead."""

    channel: Channel
    alive: Callable[[], None]
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _rest: float = POLL

    def ask(self, verb: str, timeout: float = 10.0, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait up to `timeout` seconds for its answer; answers to earlier ones are dropped.

        An agent that was killed over it and is there again is asked again, where that makes no difference.
        Raises KupgradeError: dead, silent, or killed over it; AgentError: it could not do it.
        """
        deadline = self.clock() + timeout
        while True:
            begun = self.channel.begun(Side.NEW)
            number = self.channel.last_sent + 1
            payload = standby.pack(Request(number, verb, arguments))
            while self.channel.send(payload) is None:
                self._wait(verb, deadline, timeout)
            self._rest = POLL
            answer = self._answer(verb, number, begun, deadline, timeout)
            if answer is not None:
                return self._result(verb, answer)
            if verb not in standby.REPEATABLE:
                raise KupgradeError("The agent in the new kernel was killed", f"nobody knows whether it did {verb}")

    def _answer(self, verb: str, number: int, begun: int, deadline: float, timeout: float) -> Answer | None:
        """None: whoever took request `number` is gone, and another one is there."""
        torn = 0.0
        while True:
            lost = self._lost(number, begun)  # before the look for an answer: it may be the last word of who is gone
            found = self.channel.take()
            if found.verdict is Verdict.MESSAGE and found.message is not None:
                answer = standby.unpack_answer(found.message.payload)
                if answer.number == number:
                    return answer
                continue
            if found.verdict is Verdict.FOREIGN:
                self.channel.discard()
                continue
            if lost:
                return None
            if found.verdict is Verdict.TORN:
                torn = torn or self.clock()
                if self.clock() - torn > TORN_PATIENCE:
                    raise KupgradeError("The shared window is damaged", f"no whole answer to {verb}")
            else:
                torn = 0.0
            self._wait(verb, deadline, timeout)

    def _lost(self, number: int, begun: int) -> bool:
        """Whether a process that is gone has taken request `number`; one not taken yet waits for the next."""
        return self.channel.begun(Side.NEW) != begun and self.channel.taken_before(Side.NEW) >= number

    def _wait(self, verb: str, deadline: float, timeout: float) -> None:
        if self.clock() > deadline:
            raise KupgradeError("The agent in the new kernel does not answer", f"{verb} took longer than {timeout:g} s")
        self.alive()
        self.pause(self._rest)
        self._rest = min(self._rest * 1.5, LONGEST_POLL)

    def _result(self, verb: str, answer: Answer) -> dict[str, Any]:
        if answer.error:
            raise AgentError(f"The agent in the new kernel could not do {verb}: {answer.error}", answer.why)
        return dict(answer.result)
