"""The options of `quantize`; what it does is command.py.

uv run v2 quantize --model sft --scheme int8 --out sft-int8
"""

from pathlib import Path
from typing import Annotated

import typer

from shared_data.command_options import Config, Device, Model, Overrides, open_folder


def add_quantize(app: typer.Typer, level: str, package: str) -> None:
    """`package` is that of the level."""

    @app.command("quantize", help="Write a model with weights of 8 or 4 bits, and show what it costs.")
    def quantize_command(
        out: Annotated[
            Path,
            typer.Option(
                "--out",
                metavar="FOLDER",
                help="The folder to write, which --model of any command takes; a stage of another run is --model RUN/sft.",
            ),
        ],
        scheme: Annotated[
            str,
            typer.Option(
                "--scheme", metavar="NAME", help="int8, int4, nf4, gptq or awq; level 1: int8, int4 or nf4."
            ),
        ] = "int8",
        config: Config = None,
        overrides: Overrides = None,
        device: Device = None,
        model: Model = None,
        group_size: Annotated[
            int | None,
            typer.Option(
                "--group-size",
                metavar="N",
                help="Of int4, gptq and awq: inputs that share a scale. Default 128, fewer in narrow models.",
            ),
        ] = None,
        calibration: Annotated[
            Path | None,
            typer.Option(
                "--calibration",
                metavar="FILE",
                help="Of gptq and awq: text to calibrate on, if not the run's training text.",
            ),
        ] = None,
        samples: Annotated[
            int,
            typer.Option("--calibration-samples", min=1, metavar="N", help="Sequences of that text to use."),
        ] = 128,
        json: Annotated[
            Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers into this file, too.")
        ] = None,
        force: Annotated[
            bool, typer.Option("--force", help="Replace a quantized model that is there already.")
        ] = False,
    ) -> None:
        from shared_data.pipeline import load_function
        from shared_data.quantization.command import Request

        run = open_folder(level, config, overrides, None, device=device)
        request = Request(model or "sft", scheme, out, group_size, calibration, samples, force, json)
        load_function(f"{package}.inference.quantization:quantize_command")(run.settings, run, request)
