"""What it means that the machine ran out of something, and what to lower. No torch here."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from segtrain.errors import Interrupted, Stopped, UserError

# What the libraries say, as few of them have a type for it; and errors of loader workers arrive as
# text. Each stands in the source of Python, torch, CUDA's libraries, glibc or Linux.
GPU = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "HIP out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "Unable to allocate",
    "bad_alloc",
    "failed to map segment",
)
FILES = ("Too many open files",)
THREADS = ("can't start new thread", "Resource temporarily unavailable")
OF_ERRNO = {
    errno.ENOMEM: MEMORY[0],
    errno.EMFILE: FILES[0],
    errno.ENFILE: FILES[0],
    errno.EAGAIN: THREADS[0],
}
ASKED = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate) ([\d.]+ ?\w+)")

# What takes memory in each command.
LOWER = {
    "segtrain": "train.batch_size, dataset.crop, train.workers or train.processes",
    "segeval": "eval.processes, eval.scales or the windows of inference=",
    "segpredict": "eval.scales or the windows of inference=, or make the images smaller",
}


def exhausted(error: BaseException | None, command: str = "segtrain") -> str | None:
    """Say what ran out, and what to lower; None where `error` has another cause."""
    if isinstance(error, UserError):  # what a part raised as it was built is its cause
        error = error.__cause__
    if error is None or isinstance(error, (Interrupted, Stopped)):
        return None
    for cause in _causes(error):
        text = _text(cause)
        asked = ASKED.search(text)
        wanted = f" (it asked for {asked[1]})" if asked else ""
        lower = LOWER.get(command, "the size of the images, or close what else runs here")
        if any(sign in text for sign in GPU):
            more = ", or set train.accumulate=auto" if command == "segtrain" else ""
            return f"the GPU ran out of memory{wanted}: lower {lower}{more}"
        if isinstance(cause, MemoryError) or any(sign in text for sign in MEMORY):
            return f"this machine ran out of memory{wanted}: lower {lower}"
        if any(sign in text for sign in FILES):
            return "too many files are open: raise the limit (ulimit -n), or lower train.workers"
        if any(sign in text for sign in THREADS):
            return (
                "no more threads or processes can be started: raise the limit (ulimit -u), or "
                "lower train.threads, train.workers or train.processes"
            )
    return None


def gpu_is_full(error: BaseException) -> bool:
    """Tell whether an error means that a GPU has no memory left."""
    return any(sign in str(error) for sign in GPU)


def _text(error: BaseException) -> str:
    """Return what an error says; of one of the system what its number means."""
    if isinstance(error, OSError) and error.errno is not None:
        return OF_ERRNO.get(error.errno, "")
    return str(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those it was raised from."""
    cause: BaseException | None = error
    seen: list[BaseException] = []
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or cause.__context__
