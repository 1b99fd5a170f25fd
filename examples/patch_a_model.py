"""Run DeepSeek-V4 of transformers on lemmata, see which code each module ran, and take it back.

A small model with random weights stands for yours; it runs on a CPU. Needs: pip install 'lemmata[hf]'
"""

import torch

from lemmata.integrations.tiny import tiny_model
from lemmata.integrations.transformers import apply_to, paths, undo

torch.manual_seed(0)
model = tiny_model().bfloat16()  # yours: AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
ids = torch.randint(0, 256, (2, 96))

with torch.no_grad():
    before = model(ids).logits
    apply_to(model)  # strict=True raises where a module would run its own code
    after = model(ids).logits

for name, path in paths(model).items():
    print(f"{name:<48} {path.last}" + (f" because of {path.reason}" if path.reason else ""))

apart = (before - after).abs()  # some large: where near ties of an indexer or a router fell otherwise in bf16
print(f"logits differ by {apart.median().item():.4f} in the median; `lemmata demo` compares both with fp64")
generated = model.generate(ids[:1], max_new_tokens=8, do_sample=False)
print("generated", generated.shape[1] - ids.shape[1], "tokens")
undo(model)  # the very classes that it had before
