"""Recover a lean run in a loop of your own under Hugging Face Accelerate: its launcher, devices and precision.

    accelerate launch with_accelerate.py runs/merged runs/dense photos/ runs/recovered

Each process takes its share of every batch: 64 images in all.
"""

import sys

import torch
from accelerate import Accelerator

from leanvit import open_dataset, save
from leanvit.data import loader
from leanvit.recipe import load_run
from leanvit.training import SoftDistillation

lean, dense, accelerator = load_run(sys.argv[1]), load_run(sys.argv[2]), Accelerator()
data = open_dataset(sys.argv[3], "train")
objective = SoftDistillation(dense.model, teacher_preprocess=dense.preprocess)
objective.bind(lean.model, lean.preprocess)
optimizer = torch.optim.AdamW(lean.model.parameters(), lr=1e-4)
model, optimizer = accelerator.prepare(lean.model, optimizer)
share = (accelerator.process_index, accelerator.num_processes)
for epoch in range(3):
    for batch in loader(data, lean.preprocess, batch_size=64, train=True, epoch=epoch, drop_last=True, share=share):
        accelerator.backward(objective(model, batch.to(accelerator.device), 0, {}).total)
        optimizer.step()
        optimizer.zero_grad()
if accelerator.is_main_process:
    save(accelerator.unwrap_model(model), sys.argv[4], preprocess=lean.preprocess, classes=lean.classes)
