"""For tests that ask for no steady numbers: each graph is timed for few frames, and a tenth of the seconds."""

from edgekd.core.benchmark import benchmark_interleaved

benchmark_interleaved.__kwdefaults__.update(min_seconds=0.2, min_iterations=20)
