"""Run MaPLe's repository (MaPLe and IVLP) on small filled weights and write tests/golden/maple.json.

Usage: ``python scripts/golden/maple.py --official FOLDER``, a checkout of muzairkhattak/multimodal-prompt-learning at COMMIT.

MaPLe's deep prompts and couplings are fixed to widths 512 and 768; they are replaced by the same kind in small.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from prompt_learners import CAPTIONS, SIZES, fill, pictures, prepare, rounded, settings, tokenizer, write
from torch import nn

COMMIT = "69bce21ae8eda80ad6187534b2dce09cf6c59e17"
TOKENS, DEPTH = 2, 2
FIXED = r"prompt_learner\.token_(prefix|suffix)"
NO_DESIGN = {"vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    prepare(parser.parse_args().official)
    torch.set_num_threads(1)
    from clip.model import CLIP
    from trainers import independentVL, maple

    with torch.no_grad():
        maple.clip.tokenize = independentVL.clip.tokenize = tokenizer()
        design: dict[str, Any] = {"trainer": "MaPLe", **NO_DESIGN, "maple_length": TOKENS}
        clip = CLIP(*SIZES.values(), design)
        words = fill(clip)["token_embedding.weight"]
        learner = settings("MAPLE", N_CTX=TOKENS, PROMPT_DEPTH=DEPTH)
        model = maple.CustomCLIP(learner, CAPTIONS, clip).eval()
        widths = SIZES["transformer_width"], SIZES["vision_width"]
        model.prompt_learner.proj = nn.Linear(*widths)
        model.prompt_learner.compound_prompt_projections = nn.ModuleList(nn.Linear(*widths) for _ in range(DEPTH - 1))
        deep = (nn.Parameter(torch.empty(TOKENS, widths[0])) for _ in range(DEPTH - 1))
        model.prompt_learner.compound_prompts_text = nn.ParameterList(deep)
        shapes = fill(model, skip=FIXED)
        prompts, shared, deeper, visual = model.prompt_learner()
        cases = {
            "maple": {
                "tokens": TOKENS,
                "depth": DEPTH,
                "words": words,
                "shapes": shapes,
                "text": rounded(model.text_encoder(prompts, model.tokenized_prompts, deeper)),
                "image": rounded(model.image_encoder(pictures(), shared, visual)),
            }
        }
        design = {"trainer": "IVLP", "vision_depth": 3, "language_depth": 2, "vision_ctx": 3, "language_ctx": 2}
        clip = CLIP(*SIZES.values(), design)
        words = fill(clip)["token_embedding.weight"]
        learner = settings("IVLP", N_CTX_TEXT=2, N_CTX_VISION=3, PROMPT_DEPTH_TEXT=2, PROMPT_DEPTH_VISION=3)
        independent = independentVL.CustomCLIP(learner, CAPTIONS, clip).eval()
        shapes = fill(independent, skip=FIXED)
        cases["ivlp"] = {
            **{key: design[key] for key in NO_DESIGN},
            "words": words,
            "shapes": shapes,
            "text": rounded(independent.text_encoder(independent.prompt_learner(), independent.tokenized_prompts)),
            "image": rounded(independent.image_encoder(pictures())),
        }
    write("maple", {"muzairkhattak/multimodal-prompt-learning": COMMIT}, cases)


if __name__ == "__main__":
    main()
