"""libnftables(3): what nft(8) does, in this process. Starting a program costs more than all that it does.

nft(8) itself is linked to this library, so it is there wherever that is, and says the same of errors.
"""

from __future__ import annotations

import ctypes
import functools

from kupgrade.host.command import Completed

SONAME = "libnftables.so.1"
_DEFAULT = 0  # NFT_CTX_DEFAULT, nftables/libnftables.h


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library; None where it is not there, or is another one."""
    try:
        library = ctypes.CDLL(SONAME)
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_free.argtypes = [ctypes.c_void_p]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        library.nft_ctx_set_dry_run.argtypes = [ctypes.c_void_p, ctypes.c_bool]
        for name in ("output", "error"):
            getattr(library, f"nft_ctx_buffer_{name}").argtypes = [ctypes.c_void_p]
            get = getattr(library, f"nft_ctx_get_{name}_buffer")
            get.restype, get.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return library


def run(library: ctypes.CDLL, commands: str, *, dry: bool = False) -> Completed:
    """Carry out commands as `nft -f -` reads them; the exit status, output and error output that it would have.

    `dry`: as `nft -c`, the kernel checks them and does nothing.
    """
    context = library.nft_ctx_new(_DEFAULT)
    if not context:
        return Completed(1, "", "libnftables has no memory")
    try:
        library.nft_ctx_set_dry_run(context, dry)
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        failed = library.nft_run_cmd_from_buffer(context, commands.encode())
        out, err = library.nft_ctx_get_output_buffer(context), library.nft_ctx_get_error_buffer(context)
        texts = [(text or b"").decode(errors="replace") for text in (out, err)]
    finally:
        library.nft_ctx_free(context)
    return Completed(1 if failed else 0, *texts)
