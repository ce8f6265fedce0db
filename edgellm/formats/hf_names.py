"""Hugging Face tensor names as GGUF names.

The gguf package knows them for most architectures. Names that it lacks, chosen in its style:

    OPT   decoder.embed_positions            position_embd
          decoder.project_in, project_out    project_in, project_out
          decoder.final_layer_norm           output_norm
          self_attn_layer_norm               blk.N.attn_norm
          self_attn.{q,k,v,out}_proj         blk.N.attn_{q,k,v,output}
          final_layer_norm (of a block)      blk.N.ffn_norm
          fc1, fc2                           blk.N.ffn_up, blk.N.ffn_down
    BitNet  attn_sub_norm, ffn_sub_norm      blk.N.attn_sub_norm, blk.N.ffn_sub_norm
            weight_scale                     blk.N.attn_q.scale, ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from edgellm.errors import EdgeError

# Buffers that old versions saved, and the parts of Gemma 3 that see.
_SKIPPED = re.compile(
    r".*\.(rotary_emb\.inv_freq|masked_bias)|(model\.)?(vision_tower|multi_modal_projector)\..*"
)
_NAME = re.compile(r"(?P<stem>.+)\.(?P<part>weight|bias|weight_scale)")
_BLOCK = re.compile(r"(?:model\.)?(?:decoder\.)?layers\.(?P<number>\d{1,4})\.(?P<rest>.+)")
_EXTRA = {
    "opt": {
        "model.decoder.embed_tokens": "token_embd",
        "model.decoder.embed_positions": "position_embd",
        "model.decoder.project_in": "project_in",
        "model.decoder.project_out": "project_out",
        "model.decoder.final_layer_norm": "output_norm",
        "self_attn_layer_norm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_output",
        "final_layer_norm": "ffn_norm",
        "fc1": "ffn_up",
        "fc2": "ffn_down",
    },
    "bitnet": {
        "self_attn.attn_sub_norm": "attn_sub_norm",
        "mlp.ffn_sub_norm": "ffn_sub_norm",
    },
}
_PARTS = {"weight": "weight", "bias": "bias", "weight_scale": "scale"}


def gguf_names(path: Path, names: Iterable[str], architecture: str, n_layers: int) -> dict[str, str]:
    """GGUF name -> name in the folder, for every tensor of the language model.

    Raises EdgeError for a tensor that the architecture does not have and for two with the same meaning.
    """
    stems = _Stems(architecture, n_layers)
    found: dict[str, str] = {}
    for name in names:
        if _SKIPPED.fullmatch(name):
            continue
        match = _NAME.fullmatch(_without_wrapper(name, architecture))
        stem = stems.find(match["stem"]) if match else None
        if match is None or stem is None:
            raise EdgeError(
                f"{path}: the tensor {name} is not part of the architecture {architecture} with {n_layers} "
                "layers, so the model is damaged or of an unsupported variant."
            )
        gguf_name = f"{stem}.{_PARTS[match['part']]}"
        if gguf_name in found:
            raise EdgeError(
                f"{path}: the tensors {found[gguf_name]} and {name} mean the same; one is too many."
            )
        found[gguf_name] = name
    return found


class _Stems:
    """Looks names up without their ".weight"."""

    def __init__(self, architecture: str, n_layers: int):
        self.n_layers = n_layers
        # llama.cpp ties some architectures for good and has no name for their output matrix
        self.extra = {"lm_head": "output", **_EXTRA.get(architecture, {})}
        self.known = {}
        if architecture != "opt":
            from gguf import MODEL_ARCH, get_tensor_name_map  # late: gguf is slow to import

            kind = MODEL_ARCH["LLAMA" if architecture == "mistral" else architecture.upper()]
            self.known = {
                name: target for name, (_, target) in get_tensor_name_map(kind, n_layers).mapping.items()
            }

    def find(self, stem: str) -> str | None:
        block = _BLOCK.fullmatch(stem)
        if block and int(block["number"]) >= self.n_layers:
            return None
        if block and block["rest"] in self.extra:
            return f"blk.{int(block['number'])}.{self.extra[block['rest']]}"
        if not block and stem in self.extra:
            return self.extra[stem]
        return self.known.get(stem)


def _without_wrapper(name: str, architecture: str) -> str:
    """The name as a text-only checkpoint of the newest layout has it."""
    if architecture == "gemma3":
        name = re.sub(r"^language_model\.", "", name)
        return re.sub(r"^model\.language_model\.", "model.", name)
    if architecture == "opt" and name.startswith("decoder."):
        return f"model.{name}"
    return name
