"""Speed, measured: `python -m benchmarks NAME`."""
