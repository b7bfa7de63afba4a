"""Run CoOp's and CoCoOp's own models on small filled weights and write tests/golden/coop.json.

Usage: ``python scripts/golden/coop.py --official FOLDER``, a checkout of KaiyangZhou/CoOp at COMMIT.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from prompt_learners import CAPTIONS, SIZES, fill, pictures, prepare, rounded, settings, tokenizer, write

COMMIT = "ff61507c790454bce7c5052c3ac39e60772f1f89"
TOKENS = 4


def main() -> None:
    """Read the arguments, run the code, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    prepare(parser.parse_args().official)
    torch.set_num_threads(1)
    from clip.model import CLIP
    from trainers import cocoop, coop

    cases = {}
    with torch.no_grad():
        for name, module in (("coop", coop), ("cocoop", cocoop)):
            module.clip.tokenize = tokenizer()
            clip = CLIP(*SIZES.values()).float()
            frozen = fill(clip)
            position = {"N_CTX": TOKENS, "CSC": False, "CLASS_TOKEN_POSITION": "end"}
            model = module.CustomCLIP(settings(name.upper(), **position), CAPTIONS, clip).eval()
            shapes = fill(model.prompt_learner, skip=r"token_(prefix|suffix)")
            result = {"tokens": TOKENS, "clip": frozen, "learner": shapes, "logits": rounded(model(pictures()))}
            if name == "coop":
                text = model.text_encoder(model.prompt_learner(), model.tokenized_prompts)
                result["text"] = rounded(text)
                result["image"] = rounded(model.image_encoder(pictures()))
            cases[name] = result
    write("coop", {"KaiyangZhou/CoOp": COMMIT}, cases)


if __name__ == "__main__":
    main()
