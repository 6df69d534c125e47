"""Fixed draws of stationary Gaussian fields: white noise coloured by the root of a spectrum, on a torus of all positions."""

from __future__ import annotations

import numpy as np

from .autocovariance import Autocovariance
from .channel_covariance import ChannelCovariance
from .quadrature import Array

__all__ = ["MAX_PRODUCTS", "fields"]

MAX_PRODUCTS = 200_000_000
"""Multiplications in the roots of the spectra of all pairs of channels, beyond which channels are drawn as uncorrelated."""


def fields(rho: Autocovariance | ChannelCovariance, rng: np.random.Generator, count: int) -> Array:
    """Draws of mean 0, `[count, C, *positions]`. Those of many positions are of many channels as if these were uncorrelated."""
    if isinstance(rho, Autocovariance):
        return _coloured(rho, rng, count)
    if rho.channels**3 * rho.pairs.count > MAX_PRODUCTS:
        return _coloured(rho.lags, rng, count)
    spectra = np.moveaxis(_spectra(rho.pairs), 0, -1)
    values, vectors = np.linalg.eigh(spectra.reshape(*spectra.shape[:-1], rho.channels, rho.channels))
    root = vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]
    noise, axes = _noise((count, rho.channels, *rho.pairs.lengths), rng)
    mixed = np.einsum("...cd,nd...->nc...", root, noise, optimize=True)
    return np.asarray(np.fft.irfftn(mixed, s=rho.pairs.lengths, axes=axes))


def _coloured(rho: Autocovariance, rng: np.random.Generator, count: int) -> Array:
    noise, axes = _noise((count, len(rho.near), *rho.lengths), rng)
    noise *= np.sqrt(np.maximum(_spectra(rho).real, 0.0))
    return np.asarray(np.fft.irfftn(noise, s=rho.lengths, axes=axes))


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Array, tuple[int, ...]]:
    axes = tuple(range(2, len(shape)))
    return np.fft.rfftn(rng.standard_normal(shape), axes=axes), axes


def _spectra(rho: Autocovariance) -> Array:
    """Of each row, its lags laid out among all."""
    full = rho.laid_out()
    return np.asarray(np.fft.rfftn(full, axes=tuple(range(1, full.ndim))))
