"""Options that several methods share."""

from typing import Literal

Precision = Literal["fp32", "bf16", "fp16", "fp64"]
"""Number format of the passes that estimate curvature; `fp16` needs an accelerator."""
Estimator = Literal["exact", "rademacher", "hutchinson"]
"""`exact` is a closed form, `rademacher` needs one backward pass a draw, `hutchinson` one Hessian product a probe."""
