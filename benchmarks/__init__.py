"""Measurements of gradfuse beside its peers; `python -m benchmarks` lists them."""
