"""RopeConfig from config.json: rope_theta and rope_scaling (transformers 4) or rope_parameters (5)."""

from __future__ import annotations

import math
from typing import Any

from edgellm.formats.config import RopeConfig
from edgellm.formats.keys import Keys

_RULES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_LAYER_TYPES = ("full_attention", "sliding_attention")
_THETA = {"bitnet": 500000.0, "gemma3": 1000000.0}
_MAY_BE_ZERO = ("attention_factor", "mscale", "mscale_all_dim")


def rope_config(keys: Keys, architecture: str, head_dim: int, context: int) -> RopeConfig:
    """The rotary embedding of an architecture whose heads have `head_dim` dimensions.

    Raises EdgeError for an unknown scaling rule and for factors that are not positive numbers.
    """
    parameters = keys.table("rope_scaling") or keys.table("rope_parameters")
    theta = keys.number("rope_theta", _THETA.get(architecture, 10000.0))
    local = keys.number("rope_local_base_freq", 10000.0) if architecture == "gemma3" else None
    if any(kind in parameters for kind in _LAYER_TYPES):
        parameters, local = _by_layer_type(keys, parameters, theta, local)
    inner = Keys(keys.path, parameters)
    base = inner.number("rope_theta", theta)
    if architecture != "gemma3":
        if local not in (None, base):
            keys.fail(
                "rope_parameters", "gives the layers different bases, which this architecture does not have"
            )
        local = None
    portion = inner.number("partial_rotary_factor", keys.number("partial_rotary_factor", 1.0))
    dims = int(head_dim * min(portion, 1.0))
    if dims < 2 or dims % 2:
        keys.fail("partial_rotary_factor", f"of {portion} leaves {dims} of {head_dim} dimensions to rotate")
    scaling = _scaling(keys, architecture, parameters, dims, context)
    return RopeConfig(base=base, dims=dims, style="half", scaling=scaling, local_base=local)


def _by_layer_type(
    keys: Keys, parameters: dict[str, Any], theta: float, local: float | None
) -> tuple[dict[str, Any], float | None]:
    """The parameters of full attention, and the base of the sliding-window layers, which are not scaled."""
    inner = Keys(keys.path, parameters)
    full, sliding = (inner.table(kind) for kind in _LAYER_TYPES)
    if sliding:
        if sliding.get("rope_type", sliding.get("type", "default")) != "default":
            keys.fail(
                "rope_parameters", "scales the positions of sliding-window layers, which is not supported"
            )
        if full and sliding.get("partial_rotary_factor") != full.get("partial_rotary_factor"):
            keys.fail("rope_parameters", "rotates layers of different kinds by different parts of a head")
        local = Keys(keys.path, sliding).number("rope_theta", theta if local is None else local)
    return full, local


def _scaling(
    keys: Keys, architecture: str, parameters: dict[str, Any], dims: int, context: int
) -> dict[str, Any]:
    """The scaling rule with checked numbers; empty for none."""
    rule = parameters.get("rope_type") or parameters.get("type") or "default"
    if rule == "su" or (rule == "yarn" and architecture == "phi3"):
        rule = "longrope"  # what the first Phi-3 files called it
    if rule not in _RULES:
        keys.fail("rope_scaling", f"names the rule {str(rule)[:40]!r}; known are {', '.join(_RULES)}")
    if rule == "default":
        return {}
    inner = Keys(keys.path, parameters)
    scaling: dict[str, Any] = {"rope_type": rule}
    for name, value in parameters.items():
        if name in ("rope_type", "type", "rope_theta", "partial_rotary_factor") or value is None:
            continue
        if isinstance(value, list):
            scaling[name] = _factors(keys, name, value, dims)
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            scaling[name] = value
        elif name == "original_max_position_embeddings":
            scaling[name] = inner.integer(name)
        else:
            scaling[name] = inner.number(name, positive=name not in _MAY_BE_ZERO)
    if rule in ("llama3", "yarn", "longrope"):
        if "original_max_position_embeddings" in keys:
            # Phi-3 writes it beside the dictionary, and there it wins
            scaling["original_max_position_embeddings"] = keys.integer("original_max_position_embeddings")
        else:
            scaling.setdefault("original_max_position_embeddings", context)
    if rule == "llama3" and inner.number("high_freq_factor") <= inner.number("low_freq_factor"):
        keys.fail("rope_scaling", "should have a high_freq_factor above its low_freq_factor")
    if rule in ("llama3", "linear", "dynamic"):
        inner.number("factor")
    if rule == "longrope":
        for name in ("short_factor", "long_factor"):
            if name not in scaling:
                keys.fail("rope_scaling", f"lacks the list {name}")
    return scaling


def _factors(keys: Keys, name: str, values: list[Any], dims: int) -> list[float]:
    if len(values) != dims // 2:
        keys.fail("rope_scaling", f"has {len(values)} numbers in {name} instead of {dims // 2}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            keys.fail("rope_scaling", f"has something other than positive numbers in {name}")
    return [float(value) for value in values]
