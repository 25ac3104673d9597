"""Recover a lean run under Lightning's Trainer: its strategies, devices, precision and loggers.

    python with_lightning.py runs/merged runs/dense photos/ runs/recovered

Each process takes its share of every batch: 64 images in all. Leave Lightning's own sampler out, as here.
"""

import sys

import lightning
import torch

from leanvit import open_dataset, save
from leanvit.data import loader
from leanvit.recipe import load_run
from leanvit.training import SoftDistillation


class Recovery(lightning.LightningModule):
    def __init__(self, lean, dense, data):
        super().__init__()
        self.model, self.preprocess, self.data = lean.model, lean.preprocess, data
        self.objective = SoftDistillation(dense.model, teacher_preprocess=dense.preprocess)
        self.objective.bind(lean.model, lean.preprocess)

    def train_dataloader(self):
        epoch, share = self.current_epoch, (self.global_rank, self.trainer.world_size)
        return loader(self.data, self.preprocess, batch_size=64, train=True, epoch=epoch, drop_last=True, share=share)

    def training_step(self, batch, batch_idx):
        return self.objective(self.model, batch, self.global_step, {}).total

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


lean, dense = load_run(sys.argv[1]), load_run(sys.argv[2])
trainer = lightning.Trainer(
    max_epochs=3,
    reload_dataloaders_every_n_epochs=1,
    use_distributed_sampler=False,
    enable_checkpointing=False,
    default_root_dir=sys.argv[4],
)
trainer.fit(Recovery(lean, dense, open_dataset(sys.argv[3], "train")))
if trainer.is_global_zero:
    save(lean.model, sys.argv[4], preprocess=lean.preprocess, classes=lean.classes)
