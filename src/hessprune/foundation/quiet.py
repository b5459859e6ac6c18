"""Silence what exporters and other packages say; our errors name the place and the remedy in one line."""

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator

CHATTY_LOGGERS = (
    "torch.onnx",
    "torch.utils._pytree",
    "torchao",
    "torch.export",
    "torch.fx",
    "torch._dynamo",
    "torch._subclasses.fake_tensor",
    "onnxscript",
    "onnx_ir",
    "onnx",
    "transformers",
    "timm",
)
_one_at_a_time = threading.RLock()
"""Exporters and the redirection of outputs change the state of the process: one thread at a time."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back warnings, logs and prints of the exporters for a block; everything is restored on exit.

    Other threads that enter such a block wait for the end of this one; what others print meanwhile is lost, too.
    """
    with _one_at_a_time:
        yield from _quiet()


def _quiet() -> Iterator[None]:
    loggers = [(logger, logger.level) for logger in map(logging.getLogger, CHATTY_LOGGERS)]
    nowhere = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            for logger, _ in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
    finally:
        for logger, level in loggers:
            logger.setLevel(level)
