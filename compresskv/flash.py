"""Find the functions of FlashAttention-2: in the library flash-attn, or in its build on the Hugging Face hub.

The package `kernels` loads the hub's build, which transformers falls back to as well. It is used only if `kernels.lock`
in the working directory names its commit, and only from the local cache: nothing is downloaded here.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

HUB = "kernels-community/flash-attn2"
LOCK = Path("kernels.lock")

Reason = tuple[str, str]
"""Why a kernel cannot run, and the fix."""


def flash_version() -> str | None:
    """Return the version of flash-attn, or `<repository>@<commit>` of the hub's build; None if neither is installed.

    The distribution flash-attn-4 has a module of the same name as flash-attn.
    """
    try:
        return version("flash-attn")
    except PackageNotFoundError:
        if not LOCK.exists():
            return None
    try:
        locks, build = import_module("kernels.locking").get_locked_kernel_revision(HUB, LOCK)
    except Exception:  # `flash_kernels` says why
        return HUB
    return f"{HUB}@{locks[build].commit}"


def flash_kernels() -> ModuleType:
    """Return the module with `flash_attn_func` and `flash_attn_with_kvcache`.

    If it was built for another torch or CUDA, importing it raises errors of several types.
    """
    if (flash_version() or "").startswith(HUB):
        return import_module("kernels").load_kernel(HUB, lockfile=LOCK)
    return import_module("flash_attn")


def unusable() -> Reason | None:
    """Return why the functions of FlashAttention-2 cannot be used; None if they can."""
    installed = flash_version()
    if installed is None:
        return "flash-attn is not installed", "see FlashAttention-2 under Install in the README"
    name = installed if installed.startswith(HUB) else f"flash-attn {installed}"
    try:
        kernels = flash_kernels()
    except Exception as error:
        said = " ".join(str(error).split())[:120]
        return f"{name} does not load ({said})", "install a build for the installed torch"
    if not hasattr(kernels, "flash_attn_with_kvcache"):
        return f"{name} has no flash_attn_with_kvcache", "install 2.7 or newer"
    return None
