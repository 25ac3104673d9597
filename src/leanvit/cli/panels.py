"""Help that reads well: options in panels by what they are about, and flags without a type."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

# panels in their order, and the parameters in each by their name in Python; an option's own `rich_help_panel` wins
PANELS = {
    "Model": ("model", "adapt", "model_arg", "pretrained", "weights", "convert"),
    "Data": (
        *("data", "split", "task", "class_names", "classes", "shots", "limit", "on_bad"),
        *("grid", "every", "sample", "workers"),
        *("interpolation", "crop_pct", "mean", "std"),
    ),
    "Methods": ("with_", "part", "recipe", "macs", "tolerance", "controls"),
    "Training": ("epochs", "samples", "lr", "batch_size", "set_", "keep", "tensorboard", "dry"),
    "Recovery": ("recover", "recover_lr", "recover_batch", "recover_with", "recover_set"),
    "Distillation": ("distill", "teacher", "teacher_weights", "alpha", "temperature"),
    "Measuring": ("measured", "against", "runtime", "all_runtimes", "int8", "batch", "rounds", "threads", "check"),
    "Deployment": ("to", "input_type", "opset"),
    "Record": ("store", "title", "preset", "licence", "data_source", "trained_on", "most_mb"),
    "Answers": ("top", "several"),
    "Output": ("out", "resume", "overwrite", "wide", "open_"),
    "General": ("seed", "as_json", "modules", "debug", "version", "help"),
}
_PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}
_ORDER = {panel: number for number, panel in enumerate(PANELS)}


def _in_panels(params: list[Any]) -> list[Any]:
    """The parameters with arguments first, as they were, and options by panel; flags show no type."""
    arguments = [p for p in params if p.param_type_name == "argument"]
    options = [p for p in params if p.param_type_name != "argument"]
    for option in options:
        option.rich_help_panel = option.rich_help_panel or _PANEL_OF.get(option.name)
        if option.is_flag and option.metavar is None:
            option.metavar = ""
    return arguments + sorted(options, key=lambda option: _ORDER.get(option.rich_help_panel, len(_ORDER)))


class Verb(TyperCommand):
    """A command whose help is in panels."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _in_panels(super().get_params(ctx))


class Verbs(TyperGroup):
    """A group of them, whose own help is in panels, too."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _in_panels(super().get_params(ctx))
