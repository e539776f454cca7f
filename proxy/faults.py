"""Named steps of the agent's life, at which tests end it as ``kill -9`` would.

``SLUICE_DIE_AT=NAME`` in the environment ends the process when it reaches the step NAME, ``NAME:2`` when it does so for the
second time. Nothing else reads the variable, and without it a step is one comparison. Who can set root's environment can
kill the agent anyway.
"""

import os
import signal

# In the order in which an agent comes by. What a death at each of them leaves behind: tests/e2e/test_lifecycle_steps.py.
START = (
    "bound",  # the port is ours on every address
    "loaded",  # the programs are in the kernel
    "installed",  # the policy is in the kernel's tables
    "admin",  # the admin listener's addresses are taken
    "hooked",  # the connect hooks are attached
    "attached",  # all programs are
    "guard-locked",
    "guard-started",  # it has its descriptors, but has not said its number yet
    "guard-ready",
    "held",  # the guard is in a cgroup of its own: from here on ours outlive us
    "taken-over",  # what older guards hold that has to last is ours as well
    "alone",  # older guards have ended
)
STOP = (
    "ended",  # the hooks redirect nobody any more
    "drained",
    "unhooked",  # our links are closed, the guard's are not
    "let-go",  # the guard has ended
)

_name, _, _time = os.environ.get("SLUICE_DIE_AT", "").partition(":")
_left = int(_time or 1)


def step(name: str) -> None:
    """The process has come to a step."""
    global _left  # noqa: PLW0603 - a count of this process, as the environment is
    if name == _name:
        _left -= 1
        if not _left:
            os.kill(os.getpid(), signal.SIGKILL)
