"""Unloading modules: what is not there is an error with its errno."""

from __future__ import annotations

import errno

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import modules


def test_a_module_that_is_not_loaded_is_told() -> None:
    """By errno, whoever asks: the kernel looks at rights first."""
    with pytest.raises(KernelError, match="kupgrade_none") as caught:
        modules.unload("kupgrade_none")
    assert caught.value.errno in (errno.ENOENT, errno.EPERM, errno.ENOSYS)
