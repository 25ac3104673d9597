"""Classify a photo with an ONNX artefact: numpy, pillow and onnxruntime, nothing else. No leanvit.

    leanvit export runs/slim --to onnx --input u8
    python run_onnxruntime.py runs/slim/artefacts/onnx photo.jpg

The normalisation is in the graph. What is left is in artefact.json: the shorter side is resized, the centre cut out
(`crop_mode` "center" and a square input, as nearly all of timm's models have).
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

about = json.loads(Path(sys.argv[1], "artefact.json").read_text())
(channels, height, width), pre = about["input"], about["preprocess"]
image = Image.open(sys.argv[2]).convert("RGB" if channels == 3 else "L")
size = [int(int(height / pre["crop_pct"]) * side / min(image.size)) for side in image.size]
left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
image = image.resize(size, Image.Resampling[pre["interpolation"].upper()]).crop((left, top, left + width, top + height))
pixels = np.asarray(image).reshape(1, height, width, channels)
logits = ort.InferenceSession(Path(sys.argv[1], "model.onnx")).run(None, {"images": pixels})[0][0]
print(*(f"{logits[i]:9.4f}  {(about['labels'] or range(len(logits)))[i]}" for i in np.argsort(-logits)[:5]), sep="\n")
