"""The states of a supervised process, as a table.  No process is in here, no time and no policy.

    state      meaning                                          a process exists
    STARTING   started, and has not shown yet that it runs      yes
    RUNNING    has lived for a while, or has been heard of      yes
    BACKOFF    ended, will be started again                     no
    STOPPING   was told to end                                  yes
    EXITED     ended, and is not wanted again                   no
    FATAL      ended, and starting it again is no use           no

A pair that isn't in the table can't happen; meeting one is a bug of ours, and ``next_state`` says so.
"""

import enum


class ProcessState(enum.Enum):
    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    EXITED = "exited"
    FATAL = "fatal"

    @property
    def is_alive(self) -> bool:
        return self in {ProcessState.STARTING, ProcessState.RUNNING, ProcessState.STOPPING}


class ProcessChange(enum.Enum):
    STARTED = "started"  # a new process exists
    PROVED = "proved"  # it runs
    TOLD_TO_STOP = "told_to_stop"
    ENDED_WANTED = "ended_wanted"  # to be started again
    ENDED_DONE = "ended_done"  # not wanted any more
    ENDED_FATAL = "ended_fatal"  # the budget is used up, or it can't run as it is configured


_S = ProcessState
_C = ProcessChange

TRANSITIONS: dict[tuple[ProcessState, ProcessChange], ProcessState] = {
    (_S.STARTING, _C.PROVED): _S.RUNNING,
    (_S.STARTING, _C.TOLD_TO_STOP): _S.STOPPING,
    (_S.STARTING, _C.ENDED_WANTED): _S.BACKOFF,
    (_S.STARTING, _C.ENDED_DONE): _S.EXITED,
    (_S.STARTING, _C.ENDED_FATAL): _S.FATAL,
    (_S.RUNNING, _C.PROVED): _S.RUNNING,
    (_S.RUNNING, _C.TOLD_TO_STOP): _S.STOPPING,
    (_S.RUNNING, _C.ENDED_WANTED): _S.BACKOFF,
    (_S.RUNNING, _C.ENDED_DONE): _S.EXITED,
    (_S.RUNNING, _C.ENDED_FATAL): _S.FATAL,
    (_S.BACKOFF, _C.STARTED): _S.STARTING,
    (_S.BACKOFF, _C.TOLD_TO_STOP): _S.EXITED,
    (_S.STOPPING, _C.PROVED): _S.STOPPING,
    (_S.STOPPING, _C.TOLD_TO_STOP): _S.STOPPING,
    (_S.STOPPING, _C.ENDED_DONE): _S.EXITED,
    (_S.EXITED, _C.STARTED): _S.STARTING,
    (_S.EXITED, _C.TOLD_TO_STOP): _S.EXITED,
    (_S.FATAL, _C.TOLD_TO_STOP): _S.FATAL,
}


def next_state(state: ProcessState, change: ProcessChange) -> ProcessState:
    following = TRANSITIONS.get((state, change))
    assert following is not None, f"a process that is {state.value} can't be {change.value}"
    return following
