"""Classify a photo with an OpenVINO artefact: numpy, pillow and openvino, nothing else. No leanvit.

    leanvit export runs/slim --to openvino --input u8
    python run_openvino.py runs/slim/artefacts/openvino photo.jpg

The normalisation is in the graph. What is left is in artefact.json: the shorter side is resized, the centre cut out
(`crop_mode` "center" and a square input, as nearly all of timm's models have). On a CPU with bf16,
OpenVINO uses it for what is not int8, unless told f32.
"""

import json
import sys
from pathlib import Path

import numpy as np
import openvino as ov
from PIL import Image

about = json.loads(Path(sys.argv[1], "artefact.json").read_text())
(channels, height, width), pre = about["input"], about["preprocess"]
image = Image.open(sys.argv[2]).convert("RGB" if channels == 3 else "L")
size = [int(int(height / pre["crop_pct"]) * side / min(image.size)) for side in image.size]
left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
image = image.resize(size, Image.Resampling[pre["interpolation"].upper()]).crop((left, top, left + width, top + height))
model = ov.Core().compile_model(Path(sys.argv[1], "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
logits = model(np.asarray(image).reshape(1, height, width, channels))[0][0]
print(*(f"{logits[i]:9.4f}  {(about['labels'] or range(len(logits)))[i]}" for i in np.argsort(-logits)[:5]), sep="\n")
