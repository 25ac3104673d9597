"""LGViT: early exits with local and global heads (Xu et al., ACM MM 2023, arXiv 2308.00255).

Heads behind some blocks answer for the images that they are sure of; those leave, and nothing behind is computed for
them. Convolutional heads (LPH) stand behind the first of these blocks, heads with attention over every second or third
token (GAH) behind the later ones. Stage 1 trains backbone and heads end to end (here optional: `stage1_epochs`), stage
2 the heads alone, taught by the network's own end. The threshold is given, or chosen on held-out training images for
a speed-up in MACs or a loss in points; the curve of all thresholds is in the plan, so another threshold, or another
target, needs neither data nor training: `leanvit retune RUN --with lgvit:speedup=1.5`.

Departures: each image of a batch decides for itself (published: the most confident one for all, so batch 1 only). The
teacher of stage 2 is the end as it is deployed (published code: without its final norm). Speed-ups are counted in MACs
with the heads, beside depth / mean exit. Grids need not be square. Swin's heads learn from labels and teacher alone,
since its features change their width; published code has no more. Trainings are short by default; the published one
has 50 epochs a stage at a rate of 5e-5 and batches of 192, after 10 of the backbone (preset `lgvit_backbone`).
"""

from leanvit.exits.lgvit.method import LGViT

__all__ = ["LGViT"]
