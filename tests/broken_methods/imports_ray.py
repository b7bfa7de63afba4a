"""Broken on purpose: schedules by itself."""

from petlbench.methods.base import Method, parameters_under


class ImportsRay(Method):
    title = "Imports ray"
    family = "baseline"

    def build(self, backbone):
        return backbone

    def trainable(self, model):
        return parameters_under(model, "clip.visual.ln_post", "vision.layernorm")

    def search(self):
        from ray import tune

        return tune
