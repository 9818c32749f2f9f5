"""Autoregressive models: the text as a fixed point."""

from .generate import jacobi_generate

__all__ = ["jacobi_generate"]
