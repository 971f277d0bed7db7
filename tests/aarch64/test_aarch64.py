"""The zoo and the suite's operators, as AArch64 code under QEMU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from educe import engines
from tests.aarch64.emulator import COMPILER, EMULATOR, IS_INSTALLED, run
from tests.compiler.test_runtime import chain

pytestmark = pytest.mark.skipif(not IS_INSTALLED, reason=f"needs {COMPILER} and {EMULATOR}")


def test_pointwise(tmp_path: Path):
    model = chain()
    x = np.random.default_rng(0).standard_normal((37, 257), np.float32)
    found = run(model, {"x": x}, tmp_path)
    expected = engines.compile(model, "reference").run({"x": x})
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-5, atol=1e-6)
