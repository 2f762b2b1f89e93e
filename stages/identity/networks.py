"""How networks are taken in: by all their attributes, of which weights and parts are two."""

import io
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from stages.identity.walk import Walk

# What is for saving and loading only, or says how a network is run and not what it computes.
ASIDE = {
    "_non_persistent_buffers_set",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_compiled_call_impl",
    "_is_torch_compile",
}
HOOKS = "_hooks"  # ends the names of dictionaries from a number, which counts all hooks of the process, to a hook


def take_network(walk: "Walk", network: nn.Module, at: str) -> None:
    if (compiled := network._modules.get("_orig_mod")) is not None:  # torch.compile
        walk.visit(compiled, at)
        return
    kept = {name: value for name, value in vars(network).items() if name not in ASIDE}
    if isinstance(network, torch.fx.GraphModule):
        walk.write("graph", network.code)
        kept = {name: value for name, value in kept.items() if name not in ("_graph", "_code")}
    walk.visit(type(network), f"the class of {at}")
    for name, value in kept.items():
        walk.write(name)
        walk.visit(
            list(value.values()) if name.endswith(HOOKS) and isinstance(value, Mapping) else value, f"{at}.{name}"
        )


def take_script(walk: "Walk", network: torch.jit.ScriptModule, at: str) -> None:
    """A TorchScript module by what would be saved of it, but for where its source stood."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of all of TorchScript, which is the user's choice
        torch.jit.save(network, buffer)
    with zipfile.ZipFile(buffer) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith((".debug_pkl", "serialization_id")):
                content = archive.read(name)
                walk.write(name.partition("/")[2], _in_order(content) if name.endswith(".py") else content)


def _in_order(source: bytes) -> str:
    """TorchScript's source without what differs from process to process: numbers in names, the order of constants."""
    lines = re.sub(r"___torch_mangle_\d+", "", source.decode()).splitlines()
    return "\n".join(
        sorted(line for line in lines if ": Final[" in line) + [line for line in lines if ": Final[" not in line]
    )


KINDS: tuple[tuple[Any, Callable[["Walk", Any, str], None]], ...] = (
    (torch.jit.ScriptModule, take_script),
    (nn.Module, take_network),
)
