"""Classify a photo with a torch.export archive: torch and pillow, nothing else. No leanvit.

    leanvit export runs/slim --to torch --input u8
    python run_torch_export.py runs/slim/artefacts/torch photo.jpg

The normalisation is in the graph. What is left is in artefact.json: the shorter side is resized, the centre cut out
(`crop_mode` "center" and a square input, as nearly all of timm's models have). Loading such
an archive can run code: only open one that you made or trust.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image

about = json.loads(Path(sys.argv[1], "artefact.json").read_text())
(channels, height, width), pre = about["input"], about["preprocess"]
image = Image.open(sys.argv[2]).convert("RGB" if channels == 3 else "L")
size = [int(int(height / pre["crop_pct"]) * side / min(image.size)) for side in image.size]
left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
image = image.resize(size, Image.Resampling[pre["interpolation"].upper()]).crop((left, top, left + width, top + height))
pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, height, width, channels)
logits = torch.export.load(Path(sys.argv[1], "model.pt2")).module()(pixels)[0]
order, names = logits.argsort(descending=True)[:5].tolist(), about["labels"] or range(len(logits))
print(*(f"{logits[i]:9.4f}  {names[i]}" for i in order), sep="\n")
