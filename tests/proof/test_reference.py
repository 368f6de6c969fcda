"""What the original itself refuses is no fault of an artefact."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tests import zoo
from trueport.errors import RunError
from trueport.proof.asked import Asked
from trueport.proof.inputs import Batch
from trueport.proof.reference import OriginalError, Reference


def test_inputs_that_the_original_refuses():
    own = Reference(zoo.build("bert"), "encoder", ["last_hidden_state"])
    long, short = (Batch(np.ones((1, n), dtype=np.int64), np.ones((1, n), dtype=np.int64)) for n in (200, 7))
    with pytest.raises(OriginalError, match=r"refuses \(1, 200\)"):
        own.forward(long)
    asked = SimpleNamespace(exact=own)
    asked._original_refuses = lambda batch: Asked._original_refuses(asked, batch)
    assert not Asked.refused(asked, "long", long, RunError("no")).failed
    assert Asked.refused(asked, "short", short, RunError("no")).failed
