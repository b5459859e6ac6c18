"""Silence what torch's exporters say about themselves; our errors name the place and the remedy in one line."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

CHATTY_LOGGERS = (
    "torch.onnx",
    "torch.utils._pytree",
    "torchao",
    "torch.export",
    "torch.fx",
    "torch._dynamo",
    "onnxscript",
    "onnx_ir",
    "onnx",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back warnings, logs and prints of the exporters for a block; everything is restored on exit."""
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
