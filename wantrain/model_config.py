"""What a model is in the Hugging Face layout: the config that is found in it, and what of it the run does not hold."""

import json
import logging
from typing import Any

from torch import nn

from wantrain.peers.description import flaw
from wantrain.peers.messages import Describe
from wantrain.wrappers import plain_name, unwrapped

ABSENT_MOST = 8

logger = logging.getLogger("wantrain")


def describe(model: nn.Module) -> Describe | None:
    """The config of a model, or of the module in it that has all that is trained; None if there is none.

    A config is what gives itself as JSON: an attribute `config` with `to_json_string()` or `to_dict()`. One that
    cannot be used is told of in the log.
    """
    model = unwrapped(model)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        if config is None or not (hasattr(config, "to_json_string") or hasattr(config, "to_dict")):
            continue
        if not trained <= {id(parameter) for parameter in module.parameters()}:
            continue
        try:
            found = _as_json(config)
        except Exception as error:  # it is the code of others, and nothing of the training depends on it
            logger.warning("the config of %s gives no JSON, so none is kept: %s", type(module).__name__, error)
            return None
        if hasattr(module, "save_pretrained") and not found.get("architectures"):
            found["architectures"] = [_class_name(unwrapped(module))]
        path = plain_name(name)
        described = Describe(
            json.dumps(found, indent=2, sort_keys=True),
            _generation_config(module),
            f"{path}." if path else "",
            _absent(module, trained)[:ABSENT_MOST],
        )
        if reason := flaw(described):
            logger.warning("the config of %s cannot be kept: %s", type(module).__name__, reason)
            return None
        return described
    return None


def _as_json(config: Any) -> dict[str, Any]:
    """What a config gives as JSON, as plain values; raises whatever it raises."""
    found = json.loads(config.to_json_string()) if hasattr(config, "to_json_string") else config.to_dict()
    if not isinstance(found, dict):
        raise TypeError(f"it is a {type(found).__name__}, allowed is an object")
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _generation_config(module: nn.Module) -> str:
    config = getattr(module, "generation_config", None)
    if config is None:
        return ""
    try:
        return json.dumps(_as_json(config), indent=2, sort_keys=True)
    except Exception as error:  # as above
        logger.warning("the generation config of %s gives no JSON: %s", type(module).__name__, error)
        return ""


def _class_name(module: nn.Module) -> str:
    """Of the model's own class: fully_shard puts another one in front."""
    kinds = [kind.__name__ for kind in type(module).__mro__]
    return kinds[kinds.index("FSDPModule") + 1] if "FSDPModule" in kinds else kinds[0]


def _absent(module: nn.Module, trained: set[int]) -> tuple[str, ...]:
    """Names of what a state_dict has and the run has not: frozen parameters, buffers that are not made anew."""
    frozen = [name for name, parameter in module.named_parameters() if id(parameter) not in trained]
    kept = [
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        for name, buffer in part.named_buffers(recurse=False)
        if buffer is not None and name not in part._non_persistent_buffers_set
    ]
    return tuple(plain_name(name) for name in frozen + kept)
