"""The error hierarchy: what happened, why, what to do, and the exit code it maps to."""

from __future__ import annotations

import enum
import errno as errno_names


class ExitCode(enum.IntEnum):
    """Exit codes of every verb; a contract with scripts (documented in the manual page)."""

    DONE = 0
    FAILED = 1  # the old kernel runs on, untouched
    USAGE = 2
    REFUSED = 3  # preflight or policy
    ROLLED_BACK = 4
    NEEDS_HUMAN = 5
    OVER_BUDGET = 6  # aborted before the freeze
    PLAN_READY = 10  # only with --detailed-exitcode
    NOT_NOW = 75  # locked, or outside the window
    INTERRUPTED = 130


class KupgradeError(Exception):
    """An error an operator reads: `what` happened, `why`, and the `remedy`."""

    code: ExitCode = ExitCode.FAILED

    def __init__(self, what: str, why: str = "", remedy: str = "", code: ExitCode | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.remedy = remedy
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        text = self.what
        if self.why:
            text += f": {self.why}"
        if self.remedy:
            text += f". {self.remedy}"
        return text

    def to_json(self) -> dict[str, object]:
        """The error as one JSON object: what, why, remedy, code."""
        return {"what": self.what, "why": self.why, "remedy": self.remedy, "code": int(self.code)}


class UsageError(KupgradeError):
    """The command line or an argument is wrong; nothing was changed."""

    code = ExitCode.USAGE


class RefusedError(KupgradeError):
    """Preflight, policy or the planner says no; nothing was changed."""

    code = ExitCode.REFUSED


class NotNowError(KupgradeError):
    """Another kupgrade holds the lock, or the window is closed; try again later."""

    code = ExitCode.NOT_NOW


class OverBudgetError(KupgradeError):
    """The predicted blackout exceeds the policy's max_blackout; aborted before the freeze."""

    code = ExitCode.OVER_BUDGET


class NeedsHumanError(KupgradeError):
    """A state that cannot be placed: hands off, evidence kept."""

    code = ExitCode.NEEDS_HUMAN


class BadInputError(RefusedError):
    """A file given to kupgrade is truncated, corrupt, of the wrong kind or has hostile modes."""


class KernelError(KupgradeError):
    """A system call or a kernel file said no: `call`, `path` and `errno` are facts, not prose."""

    def __init__(self, call: str, path: str, errno: int, remedy: str = "") -> None:
        name = errno_names.errorcode.get(errno, str(errno))
        super().__init__(f"{call} failed on {path}" if path else f"{call} failed", name, remedy)
        self.call = call
        self.path = path
        self.errno = errno


class ToolError(KupgradeError):
    """A userspace tool failed: `argv`, exit `status`, the end of its `output`."""

    def __init__(self, argv: tuple[str, ...], status: int, output: str, remedy: str = "") -> None:
        last = output.strip().splitlines()[-1] if output.strip() else "no output"
        super().__init__(f"{argv[0]} failed (exit status {status})", last, remedy)
        self.argv = argv
        self.status = status
        self.output = output
