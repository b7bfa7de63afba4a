"""Broken on purpose: LoRA on the output projection, whose weight the packed attention reads without calling it."""

import peft

from petlbench.methods.base import Method


class OutProjLora(Method):
    title = "LoRA on out_proj"
    family = "baseline"
    kinds = ("open_clip",)
    identity_start = True

    def build(self, backbone):
        peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["out_proj"]), backbone)
        return backbone

    def trainable(self, model):
        return [name for name, _ in model.named_parameters() if "lora_" in name]
