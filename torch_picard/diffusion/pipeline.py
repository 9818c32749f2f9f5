"""A pipeline of diffusers, with its loop replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..engine import Solution
from .chain import output_of, pick
from .sampler import PicardSampler


class ParallelPipeline:
    """Calls a pipeline of diffusers that has a ``unet`` and a ``scheduler``,
    with all steps of its loop made by :class:`PicardSampler`.

    Everything else is the pipeline's own: its arguments, encoders, guidance
    (classifier-free, where it has ``guidance_scale``), decoder and output.
    With the same generator the images are those of the pipeline, within
    ``tol``.

    Args:
        pipeline: DDPMPipeline, DDIMPipeline, StableDiffusionPipeline, ... It
            is left as it was after each call.
        window, tol, method, options: as of :class:`PicardSampler`.

    Attributes:
        solution: :class:`~torch_picard.Solution` of the last call.

    Raises:
        TypeError: the pipeline has no unet or no scheduler.
        NotImplementedError: at a call: it starts in the middle of the chain,
            rescales its guidance, or has a loop that cannot be replaced.
    """

    solution: Solution

    def __init__(
        self,
        pipeline: Any,
        window: int = 100,
        tol: float = 0.1,
        method: str = "picard",
        **options: Any,
    ):
        for part in ("unet", "scheduler"):
            if getattr(pipeline, part, None) is None:
                raise TypeError(
                    "pipeline must be one of diffusers (pip install "
                    f"torch-picard[diffusion]) that has a {part}, but "
                    f"{type(pipeline).__name__} has none"
                )
        self.pipeline = pipeline
        self.options = {
            "window": window, "tol": tol, "method": method, **options
        }  # fmt: skip
        # so that a wrong option is reported here
        PicardSampler(lambda x, t: x, pipeline.scheduler, 1, **self.options)

    def __getattr__(self, name: str) -> Any:
        if name in ("pipeline", "solution"):
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the pipeline returns."""
        loop = _WholeLoop(self)
        with loop.installed():
            out = self.pipeline(*args, **kwargs)
        if not loop.ran:
            raise NotImplementedError(
                f"{type(self.pipeline).__name__} did not start its loop at "
                "the first step, so it was not replaced"
            )
        return out


class _WholeLoop:
    """In place of the scheduler: has one step, which makes all of them. The
    model's call before it only shows what else the model is given."""

    def __init__(self, owner: ParallelPipeline):
        self._owner = owner
        self._pipeline = owner.pipeline
        self._scheduler = owner.pipeline.scheduler
        self._model = owner.pipeline.unet.forward
        self._given: dict[str, Any] = {}
        self._rows = 0
        self.ran = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_scheduler"], name)

    @contextmanager
    def installed(self) -> Iterator[None]:
        pipeline, unet = self._pipeline, self._pipeline.unet
        vars(pipeline)["scheduler"] = self
        unet.forward = self._watch
        try:
            yield
        finally:
            vars(pipeline)["scheduler"] = self._scheduler
            del unet.forward

    def _watch(self, sample: Tensor, timestep: Any, *args: Any, **given: Any):
        if args:
            given["encoder_hidden_states"], *rest = args
            if rest:
                raise NotImplementedError(
                    "the pipeline gives its unet more positional arguments "
                    "than x, t and encoder_hidden_states"
                )
        self._given, self._rows = given, len(sample)
        shape = [len(sample), self._pipeline.unet.config.out_channels]
        out = sample.new_zeros(*shape, *sample.shape[2:])
        if given.get("return_dict", True):
            return SimpleNamespace(sample=out)
        return (out,)

    @property
    def timesteps(self) -> Tensor:
        return self._scheduler.timesteps[:1]

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        generator: Any = None,
        return_dict: bool = True,
        use_clipped_model_output: bool | None = None,
    ) -> Any:
        if use_clipped_model_output:
            raise NotImplementedError("use_clipped_model_output=True")
        sampler = PicardSampler(
            self._denoise,
            self._scheduler,
            int(self._scheduler.num_inference_steps),
            eta=eta,
            **self._owner.options,
        )
        self._scale = self._guidance(len(sample))
        rows = torch.arange(len(sample), device=sample.device)
        out, solution = sampler(sample, generator=generator, condition=rows)
        self._owner.solution, self.ran = solution, True
        return SimpleNamespace(prev_sample=out) if return_dict else (out,)

    def _guidance(self, rows: int) -> float | None:
        """The scale, where the model was given twice the rows."""
        if self._rows == rows:
            return None
        if getattr(self._pipeline, "guidance_rescale", 0.0):
            raise NotImplementedError("guidance_rescale above 0")
        return float(self._pipeline.guidance_scale)

    def _denoise(self, x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        if self._scale is None:
            return self._call(x, t, rows)
        twice = torch.cat([rows, rows + self._rows // 2])
        out = self._call(torch.cat([x, x]), torch.cat([t, t]), twice)
        without, with_ = out.chunk(2)
        return without + self._scale * (with_ - without)

    def _call(self, x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        given = {
            name: self._of(part, rows) for name, part in self._given.items()
        }
        return output_of(self._model(x, t, **given))

    def _of(self, part: Any, rows: Tensor) -> Any:
        if isinstance(part, Tensor):
            whole = part.dim() > 0 and len(part) == self._rows
            return pick(part, rows) if whole else part
        if isinstance(part, dict):
            return {
                name: self._of(value, rows) for name, value in part.items()
            }
        return part
