"""diffusers' pipelines with their loop replaced; guidance."""

import pytest
import torch

from torch_picard import Status
from torch_picard.diffusion import (
    Guided,
    ParallelPipeline,
    PicardSampler,
    reverse_chain,
)

diffusers = pytest.importorskip("diffusers")


def unet(**options):
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        **options,
    )
    return model.eval()


def seeded():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("DDPMPipeline", {}),
        pytest.param("DDIMPipeline", {}, marks=pytest.mark.slow),
        pytest.param("DDIMPipeline", {"eta": 1.0}, marks=pytest.mark.slow),
    ],
)
def test_an_unconditional_pipeline(kind, options):
    scheduler = getattr(diffusers, kind.replace("Pipeline", "Scheduler"))()
    pipe = getattr(diffusers, kind)(unet(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    call = {
        "batch_size": 2, "num_inference_steps": 12, "output_type": "pt",
        **options,
    }  # fmt: skip
    want = pipe(generator=seeded(), **call).images
    fast = ParallelPipeline(pipe, window=6, tol=0.0)
    found = fast(generator=seeded(), **call).images
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
    assert fast.solution.rounds <= 12
    assert (fast.solution.status == Status.CONVERGED).all()
    # left as it was
    again = pipe(generator=seeded(), **call).images
    torch.testing.assert_close(again, want, rtol=0, atol=0)
    assert type(pipe.scheduler).__name__ == kind.replace("line", "")[:4] + (
        "Scheduler"
    )


def test_the_wrapper_passes_on_what_the_pipeline_has():
    pipe = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    fast = ParallelPipeline(pipe)
    assert fast.device == pipe.device
    assert not hasattr(fast, "solution")


def test_an_error_leaves_the_pipeline_as_it_was():
    scheduler = diffusers.DDPMScheduler(thresholding=True)
    pipe = diffusers.DDPMPipeline(unet(), scheduler)
    with pytest.raises(ValueError, match="thresholding"):
        ParallelPipeline(pipe)
    pipe = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    kept = pipe.scheduler
    fast = ParallelPipeline(pipe, window=6)
    with pytest.raises(NotImplementedError, match="use_clipped"):
        fast(num_inference_steps=3, use_clipped_model_output=True)
    assert pipe.scheduler is kept
    assert "forward" not in vars(pipe.unet)


def test_a_pipeline_without_a_unet():
    with pytest.raises(TypeError, match=r"pipeline must be one .* has a unet"):
        ParallelPipeline(object())


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_text_conditioned_pipeline(guidance):
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=8,
    )
    for kind in ("DDIMScheduler", "EulerDiscreteScheduler"):
        pipe = diffusers.StableDiffusionPipeline(
            vae=vae.eval(),
            text_encoder=None,
            tokenizer=None,
            unet=model.eval(),
            scheduler=getattr(diffusers, kind)(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        call = {
            "prompt_embeds": torch.randn(2, 5, 12),
            "negative_prompt_embeds": torch.randn(2, 5, 12),
            "num_inference_steps": 8,
            "guidance_scale": guidance,
            "height": 8,
            "width": 8,
            "output_type": "latent",
        }
        want = pipe(generator=seeded(), **call).images
        fast = ParallelPipeline(pipe, window=5, tol=0.0)
        found = fast(generator=seeded(), **call).images
        size = float(want.abs().max())
        torch.testing.assert_close(found, want, rtol=0, atol=1e-5 * size)
        assert fast.solution.rounds <= 8


def test_a_model_of_diffusers_as_denoiser():
    model, scheduler = unet(), diffusers.DDPMScheduler()
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    want = reverse_chain(model, scheduler, 6, x, generator=seeded())
    solve = PicardSampler(model, scheduler, 6, 6, 0.0)
    found, _ = solve(x, generator=seeded())
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)


def test_guidance_in_one_call_a_round():
    alphas = torch.linspace(0.99, 0.01, 20)
    seen = []

    def denoiser(x, t, condition):
        seen.append(len(x))
        return torch.tanh(x + condition["shift"])

    nothing = {"shift": torch.zeros(3)}
    guided = Guided(denoiser, 3.0, nothing)
    x = torch.randn(2, 3)
    given = {"shift": torch.tensor([[1.0, 0, 0], [0, 1, 0]])}
    want = reverse_chain(
        lambda x, t, c: torch.tanh(x)
        + 3 * (torch.tanh(x + c["shift"]) - torch.tanh(x)),
        alphas, 20, x, condition=given,
    )  # fmt: skip
    solve = PicardSampler(guided, alphas, 20, 5, 0.0)
    found, solution = solve(x, condition=given)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
    assert len(seen) == solution.rounds
    assert sum(seen) == 2 * solution.evaluations
    with pytest.raises(ValueError, match="unconditional must be as one row"):
        Guided(denoiser, 3.0, {"shift": torch.zeros(2)})(
            x, torch.zeros(2), given
        )
