"""What `educe serve --on ray` says before there is a cluster."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

SECONDS = 60


def refused(*options: str, code: str = "from educe.cli.main import run; run()") -> tuple[int, str]:
    words = [sys.executable, "-c", code, "serve", "zoo/breast_cancer", "--on", "ray", *options]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    return done.returncode, done.stderr


def test_what_a_cluster_does_not_have_is_refused():
    status, said = refused("--admin")
    assert status == 2, said
    assert "admin: there is no such thing on a cluster of Ray" in said
    status, said = refused("--replicas", "4:1")
    assert status == 2, said
    assert "MIN:MAX" in said


def test_without_ray_the_extra_is_named():
    status, said = refused(
        code="import sys; sys.modules['ray'] = None; from educe.cli.main import run; run()"
    )
    assert status == 3, said
    assert "pip install 'educe[ray]'" in said
